"""The relations' parameters and their Adagrad state."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from multifacet.kge.models.model import Model, Side

__all__ = ["Inverse", "RelationKey", "RelationParameters", "relation_names"]

logger = logging.getLogger(__name__)


class Inverse(NamedTuple):
    """Key of the parameters that answer a reciprocal relation's head queries: of no type that a relation's name can have.

    Attributes:
        relation: the relation's name.
    """

    relation: str

    def __repr__(self) -> str:
        return f"Inverse({self.relation!r})"


RelationKey = str | Inverse

# How files named an inverse before `Inverse` was a key of its own.
_LEGACY_INVERSE: Final = "^-1"


class RelationParameters:
    """Parameters of every relation, a row each of one table, learned with Adagrad (a state for each number).

    Args:
        model: the scoring model, which knows the parameters' shapes.
        names: the relations' names, in the order of their numbers.
        reciprocal: whether head queries have parameters of their own. A head query is then a tail query of the inverse.
        generator: source of the first values.

    Attributes:
        table: float32 [K, P]: the relations in order, then their inverses if there are any.
        state: accumulated squares, float32 [K, P].
        shapes: name of a parameter -> its shape, in the order in which they lie in a row.
        values: key (a relation's name, or `Inverse` of it) -> its parameters by name, views of the table.
        squares: likewise, views of the state.
    """

    def __init__(self, model: Model, names: Sequence[str], *, reciprocal: bool, generator: torch.Generator) -> None:
        self.names = tuple(names)
        self.reciprocal = reciprocal
        keys: list[RelationKey] = [*self.names, *(Inverse(name) for name in self.names if reciprocal)]
        drawn = [model.initial_relation(generator) for _ in keys]
        self.table: Tensor = torch.stack([torch.cat([value.flatten() for value in values.values()]) for values in drawn])
        self.state: Tensor = torch.zeros_like(self.table)
        shapes = self.shapes = {name: value.shape for name, value in drawn[0].items()}
        self.values: dict[RelationKey, dict[str, Tensor]] = _name_parts(self.table, keys, shapes)
        self.squares: dict[RelationKey, dict[str, Tensor]] = _name_parts(self.state, keys, shapes)

    def query(self, relation: str, side: Side) -> tuple[RelationKey, Side]:
        """Give the key of the parameters that answer for one side, and the side that the model translates to."""
        if self.reciprocal and side == "head":
            return Inverse(relation), "tail"
        return relation, side

    def to_tensors(self) -> dict[str, Tensor]:
        """Give the values and their Adagrad state by name: `<kind>/<relation>/<parameter>`.

        The kinds are `relation` and `relation_adagrad`, and of inverses `inverse` and `inverse_adagrad`: a relation's name,
        which may hold any character, stands between the first and the last slash.
        """
        return {
            _tensor_name(key, name, of_state=of_state): value
            for of_state, tables in ((False, self.values), (True, self.squares))
            for key, parameters in tables.items()
            for name, value in parameters.items()
        }

    def copy_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `to_tensors` gave, in place.

        Raises:
            ValueError: if the tensors do not tell a relation from another's inverse.
        """
        for of_state, tables in ((False, self.values), (True, self.squares)):
            for key, parameters in tables.items():
                found = self._find(tensors, key, of_state=of_state)
                for name, value in parameters.items():
                    value.copy_(found[name])

    def warm_start(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the relations that an older training knew; others begin as from scratch.

        Args:
            tensors: from `to_tensors` of that training.

        Raises:
            ValueError: if a relation's parameters are of another model.
        """
        for key, parameters in self.values.items():
            old = self._find(tensors, key)
            if not old:
                logger.info("warm start: the snapshot has no parameters of %s; they begin anew", key)
                continue
            shapes = {name: tuple(value.shape) for name, value in parameters.items()}
            if {name: tuple(value.shape) for name, value in old.items()} != shapes:
                raise ValueError(
                    f"relation {key!r} has the parameters { {name: tuple(value.shape) for name, value in old.items()} } in the "
                    f"older snapshot, and {shapes} here: start from one of the same model, dim and rank"
                )
            squares = self._find(tensors, key, of_state=True)
            for name, value in parameters.items():
                value.copy_(old[name])
                self.squares[key][name].copy_(squares[name])

    def _find(self, tensors: Mapping[str, Tensor], key: RelationKey, *, of_state: bool = False) -> dict[str, Tensor]:
        """Give a key's parameters by name, also of files in which an inverse was named like a relation."""
        names = list(next(iter(self.values.values())))
        prefix = _tensor_name(key, "", of_state=of_state)
        found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.rpartition("/")[0] + "/" == prefix}
        if found or not isinstance(key, Inverse) or any(name.startswith("inverse/") for name in tensors):
            return found
        legacy = f"{key.relation}{_LEGACY_INVERSE}"
        if legacy in self.names:
            raise ValueError(
                f"the relations {key.relation!r} and {legacy!r} shared parameters when these tensors were written: train anew"
            )
        old = {name: tensors.get(_tensor_name(legacy, name, of_state=of_state)) for name in names}
        return {name: value for name, value in old.items() if value is not None}

    def __repr__(self) -> str:
        return f"RelationParameters(relations={len(self.names)}, reciprocal={self.reciprocal}, numbers={self.table.numel()})"


def relation_names(tensors: Mapping[str, Tensor], *, reciprocal: bool) -> tuple[str, ...]:
    """Give the names of the relations that some tensors of `RelationParameters.to_tensors` are of."""
    parts = (name.split("/", 1) for name in tensors)
    names = dict.fromkeys(rest.rpartition("/")[0] for kind, rest in parts if kind == "relation")
    if reciprocal and not any(name.startswith("inverse/") for name in tensors):
        names = {name: None for name in names if name.removesuffix(_LEGACY_INVERSE) not in names or not name.endswith("^-1")}
    return tuple(names)


def _tensor_name(key: RelationKey, parameter: str, *, of_state: bool) -> str:
    kind, relation = ("inverse", key.relation) if isinstance(key, Inverse) else ("relation", key)
    return f"{kind}{'_adagrad' if of_state else ''}/{relation}/{parameter}"


def _name_parts(
    table: Tensor, keys: Sequence[RelationKey], shapes: Mapping[str, torch.Size]
) -> dict[RelationKey, dict[str, Tensor]]:
    return {
        key: {
            name: part.view(shape)
            for part, (name, shape) in zip(row.split([shape.numel() for shape in shapes.values()]), shapes.items(), strict=True)
        }
        for key, row in zip(keys, table, strict=True)
    }
