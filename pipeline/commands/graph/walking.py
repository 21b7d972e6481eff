"""Questions about nodes: their neighbours, what two have in common, what is around one, and the way to another."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from multifacet.pipeline.commands.graph.options import Id, OneRelation, Relations, Store, SurfaceOption, Type, open_queries
from multifacet.pipeline.options import AsOf, Since
from multifacet.pipeline.output import AsJson, emit_arrow, emit_rows

Limit = Annotated[int, typer.Option(min=1, help="Most rows to show.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (neighbors, common, hops, paths, top):
        app.command()(command)


def neighbors(
    store: Store,
    type: Type,  # noqa: A002 - the argument's name
    id: Id,  # noqa: A002 - the argument's name
    relation: OneRelation = None,
    direction: Annotated[Literal["out", "in", "both"], typer.Option(help="Which of the node's edges to follow.")] = "both",
    since: Since = None,
    as_of: AsOf = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """Lists the neighbours of one node, latest first."""
    with open_queries(store) as queries:
        queries.idx(type, id)  # the query itself has no answer for a node that is not there, and here a person asks
        rows = queries.neighbors(type, id, relation=relation, direction=direction, since=since, as_of=as_of, limit=limit)
    emit_arrow(rows, as_json=as_json, drop_empty=True)


def common(
    store: Store,
    type: Type,  # noqa: A002 - the argument's name
    id: Id,  # noqa: A002 - the argument's name
    other: Annotated[str, typer.Argument(help="External id of another node of the type.")],
    relation: OneRelation = None,
    since: Since = None,
    as_of: AsOf = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """Lists the neighbours that two nodes of a type have in common."""
    with open_queries(store, since=since, as_of=as_of) as queries:
        emit_arrow(queries.common_neighbors(type, id, other, relation=relation, limit=limit), as_json=as_json)


def hops(
    store: Store,
    type: Type,  # noqa: A002 - the argument's name
    id: Id,  # noqa: A002 - the argument's name
    num_hops: Annotated[int, typer.Option("--hops", min=0, help="How far to go.")] = 2,
    since: Since = None,
    as_of: AsOf = None,
    relation: Relations = None,
    surface: SurfaceOption = None,
    as_json: AsJson = False,
) -> None:
    """Counts the nodes that are first reached in 0, 1, 2, ... hops, edges taken both ways."""
    with open_queries(store, since=since, as_of=as_of, relations=relation, surface=surface) as queries:
        answer = queries.hops(type, id, num_hops=num_hops)
    if as_json:
        emit_arrow(answer, as_json=True)
    else:
        emit_rows(answer.to_pylist())


def paths(
    store: Store,
    type: Type,  # noqa: A002 - the argument's name
    id: Id,  # noqa: A002 - the argument's name
    to_type: Annotated[str, typer.Argument(help="Node type of the other end.")],
    to_id: Annotated[str, typer.Argument(help="External id of the other end.")],
    max_hops: Annotated[int, typer.Option(min=0, help="The longest path to look for.")] = 3,
    limit: Annotated[int, typer.Option(min=1, help="Most paths to show.")] = 5,
    since: Since = None,
    as_of: AsOf = None,
    relation: Relations = None,
    surface: SurfaceOption = None,
    as_json: AsJson = False,
) -> None:
    """Finds the shortest paths between two nodes, edges taken both ways."""
    with open_queries(store, since=since, as_of=as_of, relations=relation, surface=surface) as queries:
        answer = queries.paths((type, id), (to_type, to_id), max_hops=max_hops, limit=limit)
    if as_json:
        emit_arrow(answer, as_json=True)
        return
    ways: dict[int, str] = {}
    for step in answer.to_pylist():
        arrow = f"-{step['relation']}->" if step["direction"] == "out" else f"<-{step['relation']}-"
        ways[step["path"]] = f"{ways.get(step['path'], f'{type} {id}')} {arrow} {step['type']} {step['id']}"
    emit_rows(({"path": way} for way in ways.values()), empty=f"no path within {max_hops} hops")


def top(
    store: Store,
    type: Type,  # noqa: A002 - the argument's name
    id: Id,  # noqa: A002 - the argument's name
    path: Annotated[
        list[str],
        typer.Argument(help="Relations to follow from the node, such as: buys made_by; made_by^-1 goes back along it."),
    ],
    k: Annotated[int, typer.Option("-k", min=1, help="How many to show.")] = 10,
    since: Since = None,
    as_of: AsOf = None,
    surface: SurfaceOption = None,
    as_json: AsJson = False,
) -> None:
    """Ranks the nodes at the end of a path of relations by the number of ways to them: a user's advertisers, for one."""
    with open_queries(store, since=since, as_of=as_of, surface=surface) as queries:
        answer = queries.top(type, id, path, k=k)
    if as_json:
        emit_arrow(answer, as_json=True)
    else:
        emit_rows(answer.to_pylist())
