"""Making stores, and loading them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.commands.graph.options import Store
from pipeline.options import Settings, parse_settings
from pipeline.output import AsJson, emit_json, emit_rows, stdout
from pipeline.progress import progress_bars

if TYPE_CHECKING:
    from graphdb import LoadReport


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (init, load, synth):
        app.command()(command)


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
    if source is not None and recipe is None:
        msg = "--source is the folder of a recipe's files: give --recipe too, or load the files with `multifacet graph load`"
        raise typer.BadParameter(msg)
    reports: list[LoadReport] = []
    if recipe is not None:
        with progress_bars() as progress:
            reports = Recipe.load(recipe).build(store, source, progress=progress)
    elif schema is not None:
        GraphStore.create(store, GraphSchema.from_toml(schema)).close()
    if as_json:
        emit_json({"store": str(store), "loads": [report.to_dict() for report in reports]})
        return
    emit_reports(reports)
    stdout.print(f"created {store}", highlight=False, soft_wrap=True)


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
    memory_limit: Annotated[str | None, typer.Option(help="Memory that the load may take, such as 4GB.")] = None,
    as_json: AsJson = False,
) -> None:
    """Loads nodes or edges; the same rows a second time add nothing."""
    from graphdb import GraphStore

    if (nodes is None) == (relation is None):
        msg = "give either --nodes or --relation"
        raise typer.BadParameter(msg)
    with GraphStore.open(store, memory_limit=memory_limit) as graph, progress_bars() as progress:
        if nodes is not None:
            report = graph.load_nodes(nodes, source, id=id, progress=progress)
        else:
            report = graph.load_edges(
                str(relation),
                source,
                src=src,
                dst=dst,
                time=time,
                weight=weight,
                missing_nodes=missing_nodes,
                progress=progress,
            )
    if as_json:
        emit_json(report.to_dict())
        return
    emit_reports([report])
    if report.rejected:
        stdout.print(f"`multifacet graph rejected {store}` shows the rejected rows", highlight=False, soft_wrap=True)


def synth(
    store: Store,
    folder: Annotated[Path, typer.Option(help="Folder for the world's files and its truth.")],
    memory_limit: Annotated[str | None, typer.Option(help="Memory that the load may take, such as 4GB.")] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Makes a synthetic world, whose truth is known, and loads it into a store."""
    from graphdb.world import World, WorldConfig

    with progress_bars() as progress:
        world = World.generate(WorldConfig(**parse_settings(settings)), folder, progress=progress)
        reports = world.build_store(store, memory_limit=memory_limit, progress=progress)
    if as_json:
        emit_json({"store": str(store), "world": str(folder), "loads": [report.to_dict() for report in reports]})
    else:
        emit_reports(reports)


def emit_reports(reports: Iterable[LoadReport]) -> None:
    """Prints load reports as one table; columns that would be empty are left out."""
    reports = list(reports)
    if not reports:
        return
    has_held, has_created, has_rejected = (
        any(getattr(report, name) for report in reports) for name in ("held", "created_nodes", "rejected")
    )
    has_released = any(report.released for report in reports)
    emit_rows(
        {
            "target": report.target,
            "read": report.read,
            "loaded": report.loaded,
            "already there": report.already_there,
            "rejected": report.num_rejected,
            **({"held": report.held} if has_held else {}),
            **({"released": report.released} if has_released else {}),
            **({"created nodes": report.created_nodes} if has_created else {}),
            **({"reasons": report.rejected} if has_rejected else {}),
            "seconds": round(report.seconds, 2),
        }
        for report in reports
    )
