"""`multifacet graph`: create, load, look at and export a graph store."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from pipeline.console import stderr
from pipeline.options import Settings, parse_settings
from pipeline.output import AsJson, emit_arrow, emit_json, emit_rows, show_bytes, stdout

if TYPE_CHECKING:
    from graphdb import LoadReport

app = typer.Typer(no_args_is_help=True, help="Create, load, query and export a graph store.")

Store = Annotated[Path, typer.Argument(help="Path of the store, a DuckDB file.")]
AsOf = Annotated[dt.datetime | None, typer.Option(help="End of the window (UTC, not within it).")]
Since = Annotated[dt.datetime | None, typer.Option(help="Start of the window (UTC, within it).")]


@app.command()
def init(
    store: Store,
    schema: Annotated[
        Path | None, typer.Option(help="TOML file that declares node types and relations, as data/template.toml does.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Name of a dataset recipe, or path of one; loads its data too.")] = None,
    source: Annotated[Path | None, typer.Option(help="Folder of the recipe's raw files.")] = None,
    as_json: AsJson = False,
) -> None:
    """Creates a store, empty from a schema, or whole from a recipe."""
    from graphdb import GraphSchema, GraphStore, Recipe

    if (schema is None) == (recipe is None):
        msg = "give either --schema or --recipe"
        raise typer.BadParameter(msg)
    reports: list[LoadReport] = []
    if recipe is not None:
        with stderr.status("loading"):
            reports = Recipe.load(recipe).build(store, source)
    elif schema is not None:
        GraphStore.create(store, GraphSchema.from_toml(schema)).close()
    if as_json:
        emit_json({"store": str(store), "loads": [report.to_dict() for report in reports]})
        return
    if reports:
        emit_reports(reports)
    stdout.print(f"created {store}")


@app.command()
def synth(
    store: Store,
    folder: Annotated[Path, typer.Option(help="Folder for the world's files and its truth.")],
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Makes a synthetic world, whose truth is known, and loads it into a store."""
    from graphdb.world import World, WorldConfig

    with stderr.status("generating"):
        world = World.generate(WorldConfig(**parse_settings(settings)), folder)
        reports = world.build_store(store)
    if as_json:
        emit_json({"store": str(store), "world": str(folder), "loads": [report.to_dict() for report in reports]})
    else:
        emit_reports(reports)


@app.command()
def load(
    store: Store,
    source: Annotated[list[str], typer.Argument(help="Parquet or CSV files, or globs.")],
    nodes: Annotated[str | None, typer.Option(help="Node type to load.")] = None,
    relation: Annotated[str | None, typer.Option(help="Relation to load.")] = None,
    id: Annotated[str, typer.Option(help="Column of a node's external id.")] = "id",  # noqa: A002 - the option's name
    src: Annotated[str, typer.Option(help="Column of an edge's head.")] = "src",
    dst: Annotated[str, typer.Option(help="Column of an edge's tail.")] = "dst",
    time: Annotated[str, typer.Option(help="Column of an edge's time.")] = "time",
    weight: Annotated[str, typer.Option(help="Column of an edge's weight.")] = "weight",
    missing_nodes: Annotated[
        Literal["create", "hold", "reject"],
        typer.Option(help="What to do with an edge whose node is unknown: hold keeps it until the node comes."),
    ] = "create",
    as_json: AsJson = False,
) -> None:
    """Loads nodes or edges; the same rows a second time add nothing."""
    from graphdb import GraphStore

    if (nodes is None) == (relation is None):
        msg = "give either --nodes or --relation"
        raise typer.BadParameter(msg)
    with GraphStore.open(store) as graph, stderr.status("loading"):
        if nodes is not None:
            report = graph.load_nodes(nodes, source, id=id)
        else:
            report = graph.load_edges(
                str(relation), source, src=src, dst=dst, time=time, weight=weight, missing_nodes=missing_nodes
            )
    if as_json:
        emit_json(report.to_dict())
    else:
        emit_reports([report])


@app.command()
def stats(store: Store, as_json: AsJson = False) -> None:
    """Shows counts, time ranges and size."""
    from graphdb import GraphStore

    with GraphStore.open(store, read_only=True) as graph:
        document = graph.stats()
    if as_json:
        emit_json(document)
        return
    emit_rows([{"node type": name, "nodes": count} for name, count in document["nodes"].items()])
    emit_rows(
        {
            "relation": name,
            "ends": f"{row['src']} → {row['dst']}",
            "surface": row["surface"],
            "edges": row["edges"],
            "sources": row["distinct_src"],
            "targets": row["distinct_dst"],
            "first": (row["first"] or "")[:10],
            "last": (row["last"] or "")[:10],
            **({"not compacted": row["not_compacted"]} if row["not_compacted"] else {}),
        }
        for name, row in document["relations"].items()
    )
    stdout.print(f"{store}: {show_bytes(document['bytes'])}")


@app.command()
def query(store: Store, sql: Annotated[str, typer.Argument(help="One SELECT.")], as_json: AsJson = False) -> None:
    """Runs one SELECT over the views nodes_* and edges_* and the plain tables."""
    from graphdb import GraphStore

    with GraphStore.open(store, read_only=True) as graph:
        emit_arrow(graph.sql(sql), as_json=as_json)


@app.command()
def neighbors(
    store: Store,
    type: Annotated[str, typer.Argument(help="Node type.")],  # noqa: A002 - the argument's name
    id: Annotated[str, typer.Argument(help="External id.")],  # noqa: A002 - the argument's name
    relation: Annotated[str | None, typer.Option(help="Only this relation.")] = None,
    since: Since = None,
    as_of: AsOf = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Lists the neighbours of one node, latest first."""
    from graphdb import GraphStore

    with GraphStore.open(store, read_only=True) as graph:
        key: int | str = int(id) if graph.schema.node(type).id_type == "int64" else id
        rows = graph.neighbors(type, key, relation=relation, since=since, as_of=as_of, limit=limit)
        emit_arrow(rows, as_json=as_json)


@app.command()
def export(
    store: Store,
    output: Annotated[Path, typer.Argument(help="Folder to write Parquet files to.")],
    since: Since = None,
    as_of: AsOf = None,
    relation: Annotated[list[str] | None, typer.Option(help="Only these relations.")] = None,
    as_json: AsJson = False,
) -> None:
    """Writes a window as Parquet: `nodes_<type>` (idx, id) and `edges_<relation>` (src, dst, time, weight; idx, clustered)."""
    from graphdb import GraphStore

    output.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"folder": str(output), "files": {}}
    with GraphStore.open(store, read_only=True) as graph:
        view = graph.view(as_of=as_of, since=since, relations=relation)
        for name, count in view.num_nodes.items():
            table = pa.table({"idx": pa.array(range(count), pa.int32()), "id": view.node_ids(name)})
            document["files"][f"nodes_{name}.parquet"] = _write(table, output / f"nodes_{name}.parquet")
        for kept in view.relations:
            edges = view.edges(kept.name)
            columns = {"src": edges.src.numpy(), "dst": edges.dst.numpy()}
            if edges.time is not None:
                columns["time"] = edges.time.numpy().view("datetime64[us]")
            if edges.weight is not None:
                columns["weight"] = edges.weight.numpy()
            document["files"][f"edges_{kept.name}.parquet"] = _write(pa.table(columns), output / f"edges_{kept.name}.parquet")
        document["fingerprint"] = view.fingerprint
    if as_json:
        emit_json(document)
    else:
        emit_rows([{"file": name, "rows": rows} for name, rows in document["files"].items()])


@app.command()
def compact(store: Store, as_json: AsJson = False) -> None:
    """Merges recent loads into the clustered tables."""
    from graphdb import GraphStore

    with GraphStore.open(store) as graph, stderr.status("compacting"):
        merged = graph.compact()
    if as_json:
        emit_json(merged)
    else:
        emit_rows([{"relation": name, "edges merged": count} for name, count in merged.items()])


def emit_reports(reports: list[LoadReport]) -> None:
    """Prints load reports as one table."""
    emit_rows(
        {
            "target": report.target,
            "read": report.read,
            "loaded": report.loaded,
            "already there": report.already_there,
            "rejected": report.num_rejected,
            "created nodes": report.created_nodes,
            "seconds": round(report.seconds, 2),
            **({"reasons": report.rejected} if report.rejected else {}),
        }
        for report in reports
    )


def _write(table: pa.Table, path: Path) -> int:
    unfinished = path.with_name(f".{path.name}.unfinished")
    pq.write_table(table, unfinished, compression="zstd")
    unfinished.replace(path)
    return int(table.num_rows)
