"""What the commands on a store share: its path, the window, and how ids and properties are given."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from multifacet.graphdb import GraphStore, GraphView
    from multifacet.graphdb.queries import Queries

Store = Annotated[Path, typer.Argument(help="Path of the store, a DuckDB file.")]
Type = Annotated[str, typer.Argument(help="Node type.")]
Id = Annotated[str, typer.Argument(help="External id.")]
OneRelation = Annotated[str | None, typer.Option(help="Only this relation.")]
Relations = Annotated[list[str] | None, typer.Option("--relation", help="Only this relation; give it again for several.")]
SurfaceOption = Annotated[Literal["onsite", "offsite"] | None, typer.Option(help="Only relations of this surface.")]
MinDegree = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NUMBER|TYPE=NUMBER",
        help="Drop the edges of nodes with fewer edges in the window: for all types, or for one, given again for others.",
    ),
]
Properties = Annotated[
    list[str] | None,
    typer.Option("--property", metavar="NAME=TYPE", help="A property and its DuckDB type, such as price=DOUBLE."),
]


def open_window(
    graph: GraphStore,
    *,
    since: dt.datetime | None,
    as_of: dt.datetime | None,
    relations: Sequence[str] | None = None,
    surface: Literal["onsite", "offsite"] | None = None,
    min_degree: Sequence[str] | None = None,
) -> GraphView:
    """The window that the options ask for."""
    return graph.view(
        as_of=as_of, since=since, relations=relations or None, surface=surface, min_degree=parse_min_degree(min_degree)
    )


@contextlib.contextmanager
def open_queries(store: Path, **window: Any) -> Iterator[Queries]:
    """The ready-made questions to a store, or to a window of it where the options ask for one."""
    from multifacet.graphdb import GraphStore

    with GraphStore.open(store, read_only=True) as graph:
        # The whole store answers faster than a window, and without torch, which takes seconds to import.
        yield open_window(graph, **window).queries if any(window.values()) else graph.queries


def parse_min_degree(given: Sequence[str] | None) -> int | dict[str, int] | None:
    """Reads `5`, or one `type=5` for each of some types."""
    if not given:
        return None
    numbers: dict[str, int] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        if not number.isdecimal():
            msg = f"--min-degree takes a NUMBER or TYPE=NUMBER, got {text!r}"
            raise typer.BadParameter(msg)
        numbers[name] = int(number)
    if "" not in numbers:
        return numbers
    if len(given) > 1:
        msg = f"--min-degree takes one NUMBER for all types, or TYPE=NUMBER for each, got {' and '.join(given)}"
        raise typer.BadParameter(msg)
    return numbers[""]


def parse_properties(given: Sequence[str] | None) -> dict[str, str]:
    """Reads `NAME=TYPE` options."""
    properties = {}
    for text in given or ():
        name, equals, kind = text.partition("=")
        if not (name and equals and kind):
            msg = f"--property takes NAME=TYPE, got {text!r}"
            raise typer.BadParameter(msg)
        properties[name] = kind.upper()
    return properties
