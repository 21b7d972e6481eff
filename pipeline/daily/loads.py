"""What a day brings into the store."""

from __future__ import annotations

import datetime as dt
import glob
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from multifacet.graphdb import GraphSchema, GraphStore, Query, Recipe
from multifacet.graphdb.lake import LakeTable, open_table
from multifacet.pipeline.daily.sql import quote_text
from multifacet.pipeline.runs.workspace import content_key

if TYPE_CHECKING:
    from multifacet.pipeline.daily.config import LoadSection, Pipeline
    from multifacet.pipeline.daily.history import History
    from multifacet.pipeline.runs.workspace import Say

__all__ = ["DONE", "NOTHING", "fingerprint", "is_done", "load"]

DONE: Final = "the same files were loaded before"
NOTHING: Final = "there is no [[load]], and the store is there"


def fingerprint(pipeline: Pipeline, day: dt.date) -> str:
    """Gives a hash of what a day loads, by the files' names, sizes and times, and of which store it goes to.

    Args:
        pipeline: The pipeline.
        day: The day.
    """
    path = pipeline.store.path
    files: dict[str, Any] = {}
    for section in pipeline.load:
        found = _find(section, day)
        if section.query is not None:
            files[f"{section.address} {uuid.uuid4()}"] = None  # nobody can tell whether a database has the same rows
        elif isinstance(found, LakeTable):
            # A piece is written once.
            files |= {piece.name or f"{found.address}, no rows": None for piece in found.pieces(None)}
        else:
            for name in found:
                status = Path(name).stat()
                files[name] = [status.st_size, status.st_mtime_ns]
    store = path.stat().st_ino if path.exists() else None
    sections = [section.model_dump(mode="json") for section in pipeline.load]
    return content_key({"sections": sections, "files": files, "store": store})


def is_done(pipeline: Pipeline, history: History, day: dt.date, key: str) -> bool:
    """Whether a day's files are in the store already, or it has none and the store is there."""
    if not pipeline.store.path.exists():
        return False
    if not pipeline.load:
        return True
    done = (step for run in history.runs() if run.day == day for step in run.steps if step.name == "load")
    return any(step.key == key for step in done)


def load(pipeline: Pipeline, day: dt.date, say: Say) -> dict[str, Any]:
    """Makes the store if there is none, and loads a day's files; rows that were loaded before add nothing.

    Args:
        pipeline: The pipeline.
        day: The day.
        say: Told of the progress.

    Raises:
        FileNotFoundError: A section's files are not there, and it does not say to skip them.
        GraphError: A load is refused.
    """
    store = pipeline.store
    made = not store.path.exists()
    if made and store.recipe is not None:
        Recipe.load(store.recipe).build(
            store.path, store.source, on_load=lambda report: say(f"{report.target}: {report.loaded:,} of {report.read:,} rows")
        )
    elif made and store.graph_schema is not None:
        GraphStore.create(store.path, GraphSchema.from_toml(store.graph_schema)).close()
    reports = []
    chosen = [(section, _find(section, day)) for section in pipeline.load]
    for section, found in chosen:
        if not found and section.missing == "stop":
            raise FileNotFoundError(
                f"{_filled(section.files or '', day)}: there is no such file for {section.target}; bring it, or "
                "set missing = 'skip' for days without one"
            )
    if any(found for _, found in chosen):
        with GraphStore.open(store.path) as graph:
            for section, found in chosen:
                if found:
                    reports.append(_load_one(graph, section, found, day))
                    say(f"{section.target}: {reports[-1]['loaded']:,} rows")
            graph.compact()
    return {"made": made, "loads": reports, "skipped": [section.target for section, found in chosen if not found]}


def _load_one(graph: GraphStore, section: LoadSection, found: list[str] | LakeTable, day: dt.date) -> dict[str, Any]:
    reading = dict(section.reading)
    source: Any = found
    batch: str | None = None
    if isinstance(found, LakeTable):
        # A database's rows have no place of their own; pieces of other tables are known by their names.
        batch = None if section.query is None else f"{found.address} {day}"
    elif section.where is not None:
        source = Query(f"SELECT * FROM {_rows_of(found)} WHERE {section.where}")
        batch = ", ".join(found)
    if section.table is not None:
        return {"target": section.target, "loaded": graph.load_table(section.table, source, **reading)}
    limits: dict[str, Any] = {"max_rejected": section.max_rejected}
    if section.nodes is not None:
        report = graph.load_nodes(section.nodes, source, id=section.id, time=section.time, **limits, **reading)
    else:
        report = graph.load_edges(
            str(section.relation),
            source,
            src=section.src,
            dst=section.dst,
            time=section.time or "time",
            weight=section.weight,
            missing_nodes=section.missing_nodes,
            batch=batch,
            **limits,
            **reading,
        )
    return {key: value for key, value in report.to_dict().items() if key != "seconds"}


def _rows_of(files: list[str]) -> str:
    """Gives files as SQL reads them: text files as text, which the store converts by its own rules, never by a sniffer's guess.

    Raises:
        ValueError: A file is neither Parquet nor delimited text, or there are both.
    """
    listed = f"[{', '.join(map(quote_text, files))}]"
    kinds = {Path(name.removesuffix(".gz")).suffix.lower() for name in files}
    if kinds == {".parquet"}:
        return f"read_parquet({listed})"
    if kinds in ({".csv"}, {".tsv"}):
        delimiter = "," if kinds == {".csv"} else "\t"
        return f"read_csv({listed}, all_varchar = true, header = true, delim = {quote_text(delimiter)})"
    raise ValueError(
        f"where chooses rows of Parquet, CSV or TSV files, all of one kind, and {', '.join(files[:3])} are {sorted(kinds)}: "
        "leave where out, or convert the files"
    )


def _find(section: LoadSection, day: dt.date) -> list[str] | LakeTable:
    """Gives the day's files, none if there are none, or the table that has its rows."""
    if section.address is None:
        return sorted(glob.glob(_filled(section.files or "", day), recursive=True))  # noqa: PTH207 - a pattern may be absolute
    address = _filled(section.address, day)
    table = open_table(
        address,
        where=[_filled(condition, day) for condition in section.conditions],
        query=None if section.query is None else _filled(section.query, day),
        options=section.options,
    )
    return [address] if table is None else table


def _filled(text: str, day: dt.date) -> str:
    return text.replace("{day}", day.isoformat()).replace("{next_day}", (day + dt.timedelta(days=1)).isoformat())
