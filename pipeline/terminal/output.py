"""How commands answer: one JSON document on standard output, or a table for a reader."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
_MAX_TABLE_ROWS = 1_000
_BATCH_ROWS = 10_000

stdout = Console(width=_width(), markup=False)

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
    """Prints an Arrow table: as a JSON list of objects, one a line, or for a reader.

    A terminal shows the first rows of a long table and how many there are; a file or a pipe gets them all.

    Args:
        table: The rows.
        as_json: Whether to print JSON.
        drop_empty: Whether a reader is spared columns that hold nothing.
    """
    if as_json:
        _write_json(table)
        return
    if drop_empty:
        table = table.select([name for name in table.column_names if table[name].null_count < table.num_rows])
    if table.num_rows > _MAX_TABLE_ROWS and not sys.stdout.isatty():
        _write_lines(table)
        return
    shown = table.slice(0, _MAX_TABLE_ROWS)
    # An integer in a query's result may be an id, which no reader wants grouped.
    rows = [dict(zip(table.column_names, values, strict=True)) for values in _rows(shown)]
    emit_rows(rows, columns=table.column_names, grouped=False)
    if shown.num_rows < table.num_rows:
        rest = f"{table.num_rows - shown.num_rows:,} more of {table.num_rows:,} rows; --json, or a pipe or file, gets them all"
        stdout.print(rest, style="dim", highlight=False, soft_wrap=True)


def _write_json(table: pa.Table) -> None:
    """Writes rows as they are encoded: a row costs microseconds, and no more than a batch is held."""
    names = table.column_names
    before = "[\n"
    for batch in _batches(table):
        lines = (json.dumps(dict(zip(names, row, strict=True)), default=str) for row in _rows(batch, is_json=True))
        typer.echo(before + ",\n".join(lines), nl=False)
        before = ",\n"
    typer.echo("\n]" if table.num_rows else "[]")


def _write_lines(table: pa.Table) -> None:
    """Writes rows in columns as wide as the first rows need them; rich would lay out the whole table, in milliseconds a row."""
    widths: list[int] = []
    rights = [pa.types.is_integer(field.type) or pa.types.is_floating(field.type) for field in table.schema]
    for batch in _batches(table):
        cells = [[show(value, grouped=False).replace("\n", "\\n") for value in column] for column in _columns(batch)]
        if not widths:
            heads = [name.replace("_", " ") for name in table.column_names]
            widths = [max(len(head), *map(len, column)) for head, column in zip(heads, cells, strict=True)]
            typer.echo(_line(heads, widths, rights))
            typer.echo("  ".join("\u2500" * width for width in widths))
        typer.echo("\n".join(_line(row, widths, rights) for row in zip(*cells, strict=True)))


def _line(cells: Iterable[str], widths: Iterable[int], rights: Iterable[bool]) -> str:
    padded = [f"{cell:{'>' if is_right else '<'}{width}}" for cell, width, is_right in zip(cells, widths, rights, strict=True)]
    return "  ".join(padded).rstrip()


def _batches(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, _BATCH_ROWS):
        yield table.slice(start, _BATCH_ROWS)


def _rows(table: pa.Table, *, is_json: bool = False) -> Iterable[tuple[Any, ...]]:
    return zip(*_columns(table, is_json=is_json), strict=True)


def _columns(table: pa.Table, *, is_json: bool = False) -> list[list[Any]]:
    """The values of each column; times beyond the years that Python can hold as text."""
    columns = []
    for column in table.columns:
        try:
            values = column.to_pylist()
        except (ValueError, OverflowError):
            texts = column.to_numpy().astype(str)
            values = [None if text == "NaT" else text.replace("T", " ") for text in texts]
        is_plain = pa.types.is_integer(column.type) or pa.types.is_string(column.type)
        columns.append([_plain(value) for value in values] if is_json and not is_plain else values)
    return columns


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
