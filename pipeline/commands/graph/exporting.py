"""Writing a window of a store to files."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from multifacet.pipeline.commands.graph.options import MinDegree, Relations, Store, SurfaceOption, open_window
from multifacet.pipeline.console import stderr
from multifacet.pipeline.options import AsOf, Since
from multifacet.pipeline.output import AsJson, emit_json, emit_rows, stdout

if TYPE_CHECKING:
    from multifacet.graphdb import GraphView

Layout = Literal["edges", "csc", "safetensors"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(export)


def export(
    store: Store,
    output: Annotated[Path, typer.Argument(help="Folder to write to.")],
    layout: Annotated[
        Layout,
        typer.Option(
            help="edges: a row for each edge (src, dst, time, weight, properties), clustered by dst and time. csc: compressed "
            "columns, indptr_* and indices_*. Both in Parquet, with nodes_* (idx, id, properties). safetensors: the columns "
            "and what properties are numbers, in graph.safetensors."
        ),
    ] = "edges",
    since: Since = None,
    as_of: AsOf = None,
    relation: Relations = None,
    surface: SurfaceOption = None,
    min_degree: MinDegree = None,
    as_json: AsJson = False,
) -> None:
    """Writes a window of the graph to files, ids as dense idx, with its fingerprint."""
    from multifacet.graphdb import GraphStore

    with GraphStore.open(store, read_only=True) as graph, stderr.status("exporting"):
        view = open_window(graph, since=since, as_of=as_of, relations=relation, surface=surface, min_degree=min_degree)
        files = {
            path.name: pq.read_metadata(path).num_rows for path in _write(view, output, layout) if path.suffix == ".parquet"
        }
        if layout == "safetensors":
            files["graph.safetensors"] = sum(view.num_edges.values())
        document: dict[str, Any] = {"folder": str(output), "files": files, "fingerprint": view.fingerprint}
    if as_json:
        emit_json(document)
        return
    emit_rows([{"file": name, "rows": rows} for name, rows in files.items()])
    stdout.print(f"window {document['fingerprint']}", highlight=False, soft_wrap=True)


def _write(view: GraphView, folder: Path, layout: Layout) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "csc":
        return view.write_parquet(folder)
    if layout == "safetensors":
        view.write_safetensors(folder / "graph.safetensors")
        return []
    return [_write_table(table, folder, name) for name, table in _tables(view)]


def _tables(view: GraphView) -> Iterator[tuple[str, pa.Table]]:
    from multifacet.graphdb.files import edge_table, node_table

    for name in view.num_nodes:
        yield f"nodes_{name}", node_table(view, name)
    for kept in view.relations:
        yield f"edges_{kept.name}", edge_table(view, kept.name)


def _write_table(table: pa.Table, folder: Path, name: str) -> Path:
    # A relation's name may hold what a file's must not, such as a slash.
    path = folder / f"{urllib.parse.quote(name, safe=' ')}.parquet"
    unfinished = path.with_name(f".{path.name}.unfinished")
    pq.write_table(table, unfinished, compression="zstd")
    unfinished.replace(path)
    return path
