"""Making stores, and loading them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from multifacet.pipeline.commands.graph.options import Store
from multifacet.pipeline.options import Settings, parse_settings
from multifacet.pipeline.terminal.console import stderr
from multifacet.pipeline.terminal.output import AsJson, emit_json, emit_rows, stdout
from multifacet.pipeline.terminal.progress import progress_bars

if TYPE_CHECKING:
    from multifacet.graphdb import LoadReport


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
    from multifacet.graphdb import GraphSchema, GraphStore, Recipe

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
    source: Annotated[
        list[str],
        typer.Argument(
            help="Parquet, CSV or JSON lines files, folders, or globs; or one address: iceberg:CATALOG/NAMESPACE.TABLE, "
            "delta:PATH, s3://BUCKET/FOLDER, sqlite:///FILE, postgresql://..."
        ),
    ],
    nodes: Annotated[str | None, typer.Option(help="Node type to load.")] = None,
    relation: Annotated[str | None, typer.Option(help="Relation to load.")] = None,
    id: Annotated[str, typer.Option(help="Column of a node's external id.")] = "id",  # noqa: A002 - the option's name
    src: Annotated[str, typer.Option(help="Column of an edge's head.")] = "src",
    dst: Annotated[str, typer.Option(help="Column of an edge's tail.")] = "dst",
    time: Annotated[
        str | None,
        typer.Option(
            help="Column of an edge's time [default: time], or of the time from which on a node exists [default: none]."
        ),
    ] = None,
    weight: Annotated[str, typer.Option(help="Column of an edge's weight.")] = "weight",
    missing_nodes: Annotated[
        Literal["create", "hold", "reject"],
        typer.Option(help="What to do with an edge whose node is unknown: hold keeps it until the node comes."),
    ] = "create",
    batch: Annotated[
        str | None, typer.Option(help="Name of the batch, by which it is known again, in place of its files' paths.")
    ] = None,
    nulls: Annotated[
        Literal["keep", "write"], typer.Option(help="Whether a null leaves a node's property as it was, or takes it away.")
    ] = "keep",
    max_rejected: Annotated[
        int | None, typer.Option(min=0, help="Rows that may be set aside; with more of them nothing is loaded.")
    ] = None,
    format: Annotated[  # noqa: A002 - the option's name
        Literal["parquet", "csv", "jsonl"] | None, typer.Option(help="Kind of the files, where their names do not tell.")
    ] = None,
    delimiter: Annotated[str | None, typer.Option(help="What stands between the columns of a CSV file.")] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="NAME,NAME,...", help="Names of the columns of CSV files without a line of them.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Encoding of CSV files: utf-8, utf-16 or latin-1.")] = None,
    null_text: Annotated[
        list[str] | None, typer.Option(help="Text that stands for null, such as NA; give it again for others.")
    ] = None,
    time_format: Annotated[
        str | None, typer.Option(help="strptime format of times given as text; ISO 8601 by default.")
    ] = None,
    time_unit: Annotated[
        Literal["s", "ms", "us", "ns"] | None, typer.Option(help="Unit of times given as numbers since 1970.")
    ] = None,
    union_by_name: Annotated[bool, typer.Option("--union-by-name", help="Read null where a file lacks a column.")] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Of an address, or a folder of Parquet files: rows to load, such as 'day >= 2026-11-01'; files that hold none "
            "are not opened. Give it again for others, all of which must hold.",
        ),
    ] = None,
    version: Annotated[int | None, typer.Option(help="Snapshot of an Iceberg table, or version of a Delta table.")] = None,
    query: Annotated[str | None, typer.Option(help="What a database is asked: one SELECT.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Property of an address's catalogue or storage; may be given several times."),
    ] = None,
    memory_limit: Annotated[str | None, typer.Option(help="Memory that the load may take, such as 4GB.")] = None,
    as_json: AsJson = False,
) -> None:
    """Loads nodes or edges; the same files a second time add nothing. Ends with 1 where no row could be loaded."""
    from multifacet.graphdb import GraphStore

    if (nodes is None) == (relation is None):
        msg = "give either --nodes or --relation"
        raise typer.BadParameter(msg)
    given = {
        "format": format,
        "delimiter": None if delimiter is None else delimiter.replace("\\t", "\t"),
        "columns": None if columns is None else tuple(columns.split(",")),
        "encoding": encoding,
        "null_texts": None if null_text is None else tuple(null_text),
        "time_format": time_format,
        "time_unit": time_unit,
        "union_by_name": union_by_name or None,
    }
    reading = {name: value for name, value in given.items() if value is not None}
    rows = _find_rows(source, where=where or [], version=version, query=query, options=_parse_options(option))
    with GraphStore.open(store, memory_limit=memory_limit) as graph, progress_bars() as progress:
        if nodes is not None:
            report = graph.load_nodes(
                nodes, rows, id=id, time=time, nulls=nulls, max_rejected=max_rejected, progress=progress, **reading
            )
        else:
            report = graph.load_edges(
                str(relation),
                rows,
                src=src,
                dst=dst,
                time=time or "time",
                weight=weight,
                missing_nodes=missing_nodes,
                batch=batch,
                max_rejected=max_rejected,
                progress=progress,
                **reading,
            )
    if as_json:
        emit_json(report.to_dict())
    else:
        emit_reports([report])
        if report.rejected:
            stdout.print(f"`multifacet graph rejected {store}` shows the rejected rows", highlight=False, soft_wrap=True)
    if report.num_rejected and report.num_rejected == report.read:
        stderr.print("[red]error:[/red] every row was rejected, so nothing was loaded", highlight=False)
        raise typer.Exit(1)


def _find_rows(
    addresses: list[str], *, where: list[str], version: int | None, query: str | None, options: dict[str, str]
) -> Any:
    """Tells files from a table that lies elsewhere."""
    from multifacet.graphdb.lake import open_table

    tables = [open_table(each, where=where, version=version, query=query, options=options) for each in addresses]
    if all(table is None for table in tables):
        return addresses
    if len(addresses) > 1:
        msg = f"{' '.join(addresses)}: load an address, or a folder with --where, by a call of its own"
        raise typer.BadParameter(msg)
    return tables[0]


def _parse_options(given: list[str] | None) -> dict[str, str]:
    options = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not key or not equals:
            msg = f"--option takes KEY=VALUE; got {text!r}"
            raise typer.BadParameter(msg)
        options[key] = value
    return options


def synth(
    store: Store,
    folder: Annotated[Path, typer.Option(help="Folder for the world's files and its truth.")],
    memory_limit: Annotated[str | None, typer.Option(help="Memory that the load may take, such as 4GB.")] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Makes a synthetic world, whose truth is known, and loads it into a store."""
    from multifacet.graphdb.world import World, WorldConfig

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
    has_absent = any(report.absent for report in reports)
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
            **({"not in the source": ", ".join(report.absent)} if has_absent else {}),
            "seconds": round(report.seconds, 2),
        }
        for report in reports
    )
