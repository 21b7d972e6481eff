"""Changing a store: its schema, and what it no longer may hold."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from multifacet.pipeline.commands.graph.options import Id, Properties, Relations, Store, Type, parse_properties
from multifacet.pipeline.console import stderr
from multifacet.pipeline.options import parse_time
from multifacet.pipeline.output import AsJson, emit_json, emit_rows, stdout


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (add_node_type, add_relation, add_property, drop_before, forget, compact, backup):
        app.command()(command)


def add_node_type(
    store: Store,
    name: Annotated[str, typer.Argument(help="Name of the new node type.")],
    id_type: Annotated[Literal["int64", "string"], typer.Option(help="Type of its external ids.")] = "int64",
    properties: Properties = None,
    as_json: AsJson = False,
) -> None:
    """Adds a node type to the schema of a store."""
    from multifacet.graphdb import GraphStore, NodeType

    node = NodeType(name=name, id_type=id_type, properties=parse_properties(properties))
    with GraphStore.open(store) as graph:
        graph.add_node_type(node)
    _say(f"added node type {name}", node.model_dump(), as_json=as_json)


def add_relation(
    store: Store,
    src: Annotated[str, typer.Argument(help="Node type of its heads.")],
    name: Annotated[str, typer.Argument(help="Name of the new relation.")],
    dst: Annotated[str, typer.Argument(help="Node type of its tails.")],
    surface: Annotated[Literal["onsite", "offsite"], typer.Option(help="Where its edges are seen.")] = "onsite",
    timed: Annotated[bool, typer.Option("--timed/--untimed", help="Whether its edges have times.")] = True,
    weighted: Annotated[bool, typer.Option("--weighted/--unweighted", help="Whether its edges have weights.")] = False,
    duplicates: Annotated[
        Literal["first", "last", "sum", "all"], typer.Option(help="What becomes of rows with the same src, dst and time.")
    ] = "first",
    out_clustered: Annotated[bool, typer.Option("--out-clustered", help="Keep a copy clustered by (src, time).")] = False,
    properties: Properties = None,
    as_json: AsJson = False,
) -> None:
    """Adds a relation between known node types to the schema of a store."""
    from multifacet.graphdb import GraphStore, Relation

    relation = Relation(
        src=src,
        name=name,
        dst=dst,
        surface=surface,
        timed=timed,
        weighted=weighted,
        duplicates=duplicates,
        out_clustered=out_clustered,
        properties=parse_properties(properties),
    )
    with GraphStore.open(store) as graph:
        graph.add_relation(relation)
    _say(f"added relation {relation}", relation.model_dump(), as_json=as_json)


def add_property(
    store: Store,
    owner: Annotated[str, typer.Argument(help="Node type or relation that gets the property.")],
    name: Annotated[str, typer.Argument(help="Name of the property.")],
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="DuckDB type, such as VARCHAR or DOUBLE.")],
    as_json: AsJson = False,
) -> None:
    """Adds a property, null so far, to a node type or a relation."""
    from multifacet.graphdb import GraphStore

    with GraphStore.open(store) as graph:
        graph.add_property(owner, name, kind.upper())
    document = {"owner": owner, "property": name, "type": kind.upper()}
    _say(f"added property {name} of {owner}", document, as_json=as_json)


def drop_before(
    store: Store,
    time: Annotated[
        dt.datetime,
        typer.Argument(parser=parse_time, metavar="TIME", help="Edges from before this time (UTC unless it has an offset) go."),
    ],
    relation: Relations = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count the edges that would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Drops the edges of timed relations from before a time, for good; the view `removals` keeps the account."""
    from multifacet.graphdb import GraphStore

    with GraphStore.open(store, read_only=dry_run) as graph:
        if dry_run:
            view = graph.view(as_of=time, relations=relation or None)
            timed = {kept.name for kept in view.relations if kept.timed}
            edges = {name: count for name, count in view.num_edges.items() if name in timed}
        else:
            with stderr.status("dropping"):
                edges = graph.drop_before(time, relation or None)
    _emit_counts(edges, "edges that would go" if dry_run else "edges dropped", as_json=as_json)


def forget(
    store: Store,
    type: Type,  # noqa: A002 - the argument's name
    id: Id,  # noqa: A002 - the argument's name
    snapshots: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of snapshots, at any depth, to name those that hold the id; give it again for others."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Deletes a node with its edges and what was rejected or held of it; bytes of its id stay in the file until `compact`."""
    from multifacet.graphdb import GraphStore

    with GraphStore.open(store) as graph, stderr.status("deleting"):
        identifier = graph.schema.node(type).external_id(id)
        deleted = graph.forget(type, id)
    holders = [str(folder) for root in snapshots or () for folder in _snapshots_with(root, type, identifier)]
    if as_json:
        emit_json({"edges": deleted, "snapshots": holders} if snapshots else deleted)
        return
    _emit_counts(deleted, "edges deleted", as_json=False)
    for folder in holders:
        stdout.print(f"the snapshot {folder} still holds it", highlight=False, soft_wrap=True)


def _snapshots_with(root: Path, node_type: str, identifier: int | str) -> Iterator[Path]:
    """The snapshots below a folder that have a row for an id."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from multifacet.tables import Snapshot

    for manifest in sorted(root.rglob("manifest.json")):
        try:
            snapshot = Snapshot.load(manifest.parent, verify=False)
        except ValueError:
            continue  # a release, or another artefact
        if node_type in snapshot.node_types:
            ids = snapshot.ids(node_type)
            if pc.any(pc.equal(ids, pa.scalar(identifier, ids.type))).as_py():
                yield manifest.parent


def compact(store: Store, as_json: AsJson = False) -> None:
    """Merges recent loads into the clustered tables."""
    from multifacet.graphdb import GraphStore

    with GraphStore.open(store) as graph, stderr.status("compacting"):
        merged = graph.compact()
    _emit_counts(merged, "edges merged", as_json=as_json)


def backup(
    store: Store,
    to: Annotated[Path, typer.Argument(help="The file to make.")],
    as_json: AsJson = False,
) -> None:
    """Copies a store, also while another process writes to it: what was committed last, for readers meanwhile."""
    from multifacet.graphdb import GraphStore

    with stderr.status("copying"):
        GraphStore.backup(store, to)
    _say(f"copied {store} to {to}", {"store": str(store), "backup": str(to)}, as_json=as_json)


def _emit_counts(edges: Mapping[str, int], name: str, *, as_json: bool) -> None:
    if as_json:
        emit_json(edges)
    else:
        emit_rows([{"relation": relation, name: count} for relation, count in edges.items()])


def _say(message: str, document: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        emit_json(document)
    else:
        stdout.print(message, highlight=False, soft_wrap=True)
