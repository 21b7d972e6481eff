"""Where rows come from: files, Arrow tables, data frames, a query, or a relation of another connection."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from multifacet.graphdb.lake.table import LakeTable, Piece
from multifacet.graphdb.loading.reading import Reading, find_files, open_files
from multifacet.graphdb.loading.rows import Part
from multifacet.graphdb.sql import GraphError, first_line, quote, quote_text, run, unregister

_sequence = itertools.count()


@dataclasses.dataclass(frozen=True)
class Query:
    """A SQL query whose rows are loaded, for sources that need a join or a rename.

    The store's connection runs it, whose zone is UTC.

    Example:
        >>> Query("SELECT household_id AS src, product_id AS dst FROM 'log.parquet'").sql[:6]
        'SELECT'
    """

    sql: str


#: Files (a path, a folder, a glob or several of them), a query, a table that lies elsewhere (`graphdb.lake`), a relation of
#: a DuckDB connection (with other databases attached, if you like), or anything that DuckDB reads in place (Arrow, pandas,
#: polars).
Source = str | Path | Sequence[str | Path] | Query | Any


def describe(source: Source) -> str:
    """Gives a short name of the source for reports and messages."""
    if isinstance(source, Query):
        return " ".join(source.sql.split())[:200]
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, LakeTable):
        return source.address
    if isinstance(source, list | tuple):
        return ", ".join(str(item) for item in source)[:200]
    return type(source).__name__


@contextlib.contextmanager
def open_source(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    wanted: Sequence[str] | None,
    reading: Reading,
    *,
    sets_aside: bool = True,
) -> Iterator[list[Part]]:
    """Yields the rows of a source, as parts that each have columns and types of their own.

    Args:
        connection: The store's, within a transaction.
        source: The source.
        wanted: The columns that are looked for; all by default.
        reading: How it is read.
        sets_aside: Whether lines of text files that are no rows are left to DuckDB's tables of them, or are an error.

    Raises:
        GraphError: The source cannot be read.
    """
    if isinstance(source, list | tuple) and all(isinstance(item, str | Path) for item in source):
        yield open_files(connection, find_files(source, reading), wanted, reading, sets_aside=sets_aside)
        return
    if isinstance(source, str | Path):
        yield open_files(connection, find_files([source], reading), wanted, reading, sets_aside=sets_aside)
        return
    useless = [*reading.for_text_files, *(["format"] if reading.format else [])]
    if useless:
        msg = f"{', '.join(useless)}: only files are read so, and rows are given as a {type(source).__name__}"
        raise GraphError(msg)
    if isinstance(source, Query):
        rows = f"(\n{_select_of(connection, source.sql)}\n)"
        yield [_part(connection, rows, describe(source), is_repeatable=False)]
        return
    if isinstance(source, LakeTable):
        with contextlib.ExitStack() as stack:
            pieces = source.pieces(wanted)
            yield [stack.enter_context(_open_piece(connection, piece, source)) for piece in pieces]
        return
    rows_in_memory, is_repeatable = _in_memory(source, wanted)
    name = f"_mf_source_{next(_sequence)}"
    try:
        connection.register(name, rows_in_memory)
    except duckdb.Error as error:
        msg = f"cannot read rows from a {type(source).__name__}; give a path, a Query, an Arrow table or a data frame"
        raise GraphError(msg) from error
    try:
        yield [_part(connection, quote(name), f"a {type(source).__name__}", is_repeatable=is_repeatable)]
    finally:
        unregister(connection, name)


@contextlib.contextmanager
def _open_piece(connection: duckdb.DuckDBPyConnection, piece: Piece, table: LakeTable) -> Iterator[Part]:
    """Yields a piece of a table as a part whose rows stand in a file of that name."""
    name = f"_mf_source_{next(_sequence)}"
    connection.register(name, piece.reader())
    try:
        part = _part(connection, quote(name), table.address, is_repeatable=False)
        if piece.name is not None:
            part = dataclasses.replace(part, file=quote_text(piece.name), files=[piece.name])
        yield part
    finally:
        unregister(connection, name)


def _part(connection: duckdb.DuckDBPyConnection, rows: str, name: str, *, is_repeatable: bool) -> Part:
    try:
        types = {column: kind for column, kind, *_ in run(connection, f"DESCRIBE SELECT * FROM {rows}")}
    except duckdb.Error as error:
        msg = f"cannot read {name}: {first_line(error)}"
        raise GraphError(msg) from error
    number = "row_number() OVER () - 1" if is_repeatable else None
    return Part(
        sql=rows, types=types, number=number, order=("0",) if number is None else (number,), is_repeatable=is_repeatable
    )


def _select_of(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """The one SELECT that a text holds, without what ends it."""
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        msg = f"cannot read the query: {first_line(error)}"
        raise GraphError(msg) from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        msg = f"a Query is one SELECT, got {', '.join(statement.type.name for statement in statements) or 'nothing'}"
        raise GraphError(msg)
    sql = str(statements[0].query)
    # A semicolon ends it, even where a comment follows.
    ends = [start for start, kind in duckdb.tokenize(sql) if kind is duckdb.token_type.operator and sql[start] == ";"]
    return sql[: ends[-1]] if ends else sql


def _in_memory(source: Any, wanted: Sequence[str] | None) -> tuple[Any, bool]:
    """Rows as DuckDB reads them without looking at a sample, and whether they can be read again."""
    if isinstance(source, duckdb.DuckDBPyRelation):
        # A relation belongs to a connection of its own, which may have other databases attached.
        return source.to_arrow_reader(), False
    if isinstance(source, pa.RecordBatch):
        source = pa.Table.from_batches([source])
    if isinstance(source, pa.Table):
        return source.select(_positions(source.column_names, wanted)), True
    module = type(source).__module__.partition(".")[0]
    if module == "pandas" and hasattr(source, "columns"):
        return _from_pandas(source, wanted), True
    if module == "polars" and hasattr(source, "collect"):
        source = source.collect()
    if module == "polars" and hasattr(source, "to_arrow"):
        table = source.to_arrow()
        return table.select(_positions(table.column_names, wanted)), True
    return source, False


def _positions(names: Sequence[str], wanted: Sequence[str] | None) -> list[int]:
    """Positions of the columns that are looked for: others may be of types that DuckDB does not know.

    Raises:
        GraphError: A name could mean several columns.
    """
    if wanted is None:
        return list(range(len(names)))
    found = []
    for name in wanted:
        same = [position for position, column in enumerate(names) if column == name]
        same = same or [position for position, column in enumerate(names) if column.lower() == name.lower()]
        if len(same) > 1:
            msg = f"column {name!r} could be any of {[names[position] for position in same]}; rename one"
            raise GraphError(msg)
        found += [position for position in same if position not in found]
    # Where none is there, the error names those that are.
    return found or list(range(len(names)))


def _from_pandas(frame: Any, wanted: Sequence[str] | None) -> pa.Table:
    """A frame's columns, each of the one type that all of its values have: DuckDB would go by a sample of objects."""
    names = [str(name) for name in frame.columns]
    columns = {}
    for position in _positions(names, wanted):
        try:
            columns[names[position]] = pa.Array.from_pandas(frame.iloc[:, position])
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            kinds = sorted({type(value).__name__ for value in frame.iloc[:, position]})
            msg = (
                f"column {names[position]!r} of the DataFrame mixes {', '.join(kinds)}: make all of its values one type, "
                f"such as text"
            )
            raise GraphError(msg) from error
    return pa.table(columns)
