"""Writes a commented pipeline for a file of events."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb
from jinja2 import Environment, StrictUndefined

from multifacet.artifacts import write_file
from multifacet.pipeline.daily.sql import quote, quote_text

__all__ = ["Answers", "guess", "write_pipeline"]

_TEMPLATES: Final = Path(__file__).resolve().parents[1] / "templates"
#: What columns are called, by what they are; the first that fits is taken.
_NAMES: Final = {
    "user": r"user(_?id)?|customer(_?id)?|household(_?id)?|member(_?id)?|uid|visitor(_?id)?|src",
    "pin": r"pin(_?id)?|item(_?id)?|product(_?id)?|sku|ad(_?id)?|article(_?id)?|movie(_?id)?|dst",
    "time": r"time(stamp)?|ts|shown_at|event_time|created_at|date(time)?|at",
    "label": r"click(ed)?|label|is_click|target|y",
}
_NUMBERS: Final = ("FLOAT", "DOUBLE", "DECIMAL")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What a pipeline is written for.

    Attributes:
        events: The file of events; in the pipeline its day, if its name holds one, becomes `{day}`.
        user: Column of the user's id.
        pin: Column of the item's id.
        time: Column of the time.
        label: Column of 0 and 1.
        dense: Numeric columns that are features.
        id_types: "user" and "pin" -> "int64" or "string".
    """

    events: Path
    user: str
    pin: str
    time: str
    label: str
    dense: tuple[str, ...] = ()
    id_types: dict[str, str] = field(default_factory=dict)


def guess(events: Path) -> dict[str, Any]:
    """Says what the columns of a file of events are, by their names and types.

    Args:
        events: A Parquet or CSV file.

    Returns:
        "columns": their names; "user", "pin", "time" and "label", where one fits; "dense", the columns of fractions that are
        none of these; and "id_types".

    Raises:
        ValueError: The file cannot be read.
    """
    reader = "read_parquet" if ".parquet" in events.name else "read_csv"
    try:
        with duckdb.connect() as memory:
            described = memory.sql(f"DESCRIBE FROM {reader}({quote_text(str(events))})").fetchall()
            whole = _whole_columns(memory, events, [row[0] for row in described if "INT" in row[1]], reader)
    except duckdb.Error as error:
        raise ValueError(f"{events} cannot be read as Parquet or CSV: {str(error).splitlines()[0]}") from error
    types = {row[0]: row[1] for row in described}
    found: dict[str, Any] = {"columns": list(types)}
    for role, pattern in _NAMES.items():
        fits = [name for name in types if re.fullmatch(pattern, name, re.IGNORECASE)]
        if fits:
            found[role] = fits[0]
    roles = {found.get(role) for role in _NAMES}
    found["dense"] = [name for name, kind in types.items() if name not in roles and kind.startswith(_NUMBERS)]
    found["id_types"] = {role: "int64" if found.get(role) in whole else "string" for role in ("user", "pin")}
    return found


def _whole_columns(memory: duckdb.DuckDBPyConnection, events: Path, names: list[str], reader: str) -> set[str]:
    """The columns of whole numbers; in a text file, those whose every text is the number as one writes it, and not 007."""
    if reader == "read_parquet" or not names:
        return set(names)
    same = ", ".join(f"bool_and(TRY_CAST({quote(name)} AS BIGINT)::VARCHAR = {quote(name)})" for name in names)
    told = memory.sql(f"SELECT {same} FROM read_csv({quote_text(str(events))}, all_varchar = true)").fetchall()[0]
    return {name for name, is_whole in zip(names, told, strict=True) if is_whole}


def write_pipeline(path: Path, answers: Answers) -> Path:
    """Writes a pipeline and the schema of its store beside it.

    Args:
        path: The pipeline's file.
        answers: What it is for.

    Returns:
        The schema's file.

    Raises:
        FileExistsError: One of the two is there.
    """
    schema = path.with_name(f"{path.stem}.schema.toml")
    for file in (path, schema):
        if file.exists():
            raise FileExistsError(f"{file} exists: remove it, or name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - TOML, no HTML
    environment.filters["toml"] = _toml
    fields = {
        "answers": answers,
        "name": path.stem,
        "schema": schema.name,
        "events": re.sub(r"\d{4}-\d{2}-\d{2}", "{day}", str(answers.events.resolve())),
    }
    for file, template in ((schema, "pipeline.schema.toml.j2"), (path, "pipeline.toml.j2")):
        text = environment.from_string((_TEMPLATES / template).read_text(encoding="utf-8")).render(fields)
        write_file(file, text, durable=False)
    return schema


def _toml(value: str) -> str:
    """Gives a text as TOML writes it."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
