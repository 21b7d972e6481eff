"""Names of relations taken against their direction, and how they are kept apart from names that users choose."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from multifacet.graphdb.sql import GraphError

if TYPE_CHECKING:
    from multifacet.graphdb.schema import Relation

EdgeType = tuple[str, str, str]

#: What PyG's `ToUndirected` puts before a relation's name.
REVERSE_PREFIX: Final = "rev_"
#: What a step of a path puts behind it.
INVERSE: Final = "^-1"


def reverse_types(relations: Collection[Relation]) -> dict[str, EdgeType]:
    """The edge type of each relation's reverse, by the relation's name.

    Raises:
        GraphError: A relation has the name that another's reverse would get.
    """
    names = {relation.name for relation in relations}
    reverses = {}
    for relation in relations:
        name = f"{REVERSE_PREFIX}{relation.name}"
        if name in names:
            msg = (
                f"relation {name!r} has the name that the reverse of {relation.name!r} would get; leave one of the two out: "
                f"GraphStore.view(relations=[...]) without {name!r}, or no reversed relations"
            )
            raise GraphError(msg)
        reverses[relation.name] = relation.dst, name, relation.src
    return reverses


def parse_step(step: str, relations: Collection[str]) -> tuple[str, bool]:
    """The relation that a step of a path takes, and whether it goes back along it (`"clicks^-1"`).

    Args:
        step: A relation's name, with `^-1` behind it to go back.
        relations: The names of all relations.

    Raises:
        GraphError: The step is the name of one relation and a step back along another.
    """
    name = step.removesuffix(INVERSE)
    if step == name or name not in relations:
        return (step, False) if step in relations else (name, step != name)
    if step in relations:
        msg = f"step {step!r} is a relation, and also the way back along {name!r}; leave one of the two out of the view"
        raise GraphError(msg)
    return name, True
