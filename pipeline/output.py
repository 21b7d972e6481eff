"""How commands answer: one JSON document on standard output, or a table for a reader."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def _width() -> int | None:
    """None, for the terminal's own; a file or a pipe has no edge at which a table would have to fold."""
    return None if "COLUMNS" in os.environ or sys.stdout.isatty() else _FILE_WIDTH


_FILE_WIDTH = 240

stdout = Console(width=_width())

#: The flag that every command takes.
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output; logs go to stderr.")]


def emit_json(document: Any) -> None:
    """Prints one JSON document; NaN and infinities, which JSON lacks, become null."""
    typer.echo(json.dumps(_plain(document), indent=2, default=str, allow_nan=False))


def emit_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    title: str | None = None,
    columns: Sequence[str] | None = None,
    grouped: bool = True,
    empty: str = "no rows",
) -> None:
    """Prints rows as a table, numbers to the right.

    Args:
        rows: The rows.
        title: A line above the table.
        columns: Names of the columns; those of the rows by default.
        grouped: Whether integers get a comma after each three digits.
        empty: What to print where there are no rows.
    """
    rows = list(rows)
    if not rows:
        stdout.print(empty, style="dim", highlight=False)
        return
    names = list(columns) if columns is not None else list(dict.fromkeys(name for row in rows for name in row))
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in names:
        numeric = any(isinstance(row.get(name), int | float) for row in rows)
        table.add_column(Text(name.replace("_", " ")), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # Text, as a value in square brackets would be taken for a style.
        table.add_row(*(Text(show(row.get(name), grouped=grouped)) for name in names))
    stdout.print(table)
    stdout.print()


def emit_arrow(table: pa.Table, *, as_json: bool, drop_empty: bool = False) -> None:
    """Prints an Arrow table: as a list of objects, or for a reader, without the columns that hold nothing if so asked."""
    rows = table.to_pylist()
    if as_json:
        emit_json(rows)
        return
    if drop_empty:
        table = table.select([name for name in table.column_names if table[name].null_count < table.num_rows])
    # An integer in a query's result may be an id, which no reader wants grouped.
    emit_rows(rows, columns=table.column_names, grouped=False)


def show(value: Any, *, grouped: bool = True) -> str:
    """A value as a reader likes it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if grouped else str(value)
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
    if isinstance(value, dt.datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {show(item)}" for key, item in value.items())
    return str(value)


def show_bytes(count: float) -> str:
    """A number of bytes in the unit that fits.

    Example:
        >>> show_bytes(1536)
        '1.5 KiB'
    """
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
