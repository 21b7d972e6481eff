"""Where rows come from: Parquet and CSV files, Arrow tables, data frames, or a query."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb

from graphdb.sql import GraphError, quote, quote_text

_READERS = {".parquet": "read_parquet", ".pq": "read_parquet", ".csv": "read_csv", ".tsv": "read_csv"}
_COMPRESSIONS = frozenset({".gz", ".zst"})
_sequence = itertools.count()


@dataclasses.dataclass(frozen=True)
class Query:
    """A SQL query whose rows are loaded, for sources that need a join or a rename.

    Example:
        >>> Query("SELECT household_id AS src, product_id AS dst FROM 'log.parquet'").sql[:6]
        'SELECT'
    """

    sql: str


#: Files (a path, a glob or several of them), a query, or a relation of a DuckDB connection (with other databases
#: attached, if you like), or anything that DuckDB reads in place (Arrow, pandas, polars).
Source = str | Path | Sequence[str | Path] | Query | Any


def describe(source: Source) -> str:
    """A short name of the source for reports and messages."""
    if isinstance(source, Query):
        return " ".join(source.sql.split())[:200]
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, list | tuple):
        return ", ".join(str(item) for item in source)[:200]
    return type(source).__name__


def is_repeatable(source: Source) -> bool:
    """Whether rows in memory can be read twice: tables and frames can; streams, lazy frames and DuckDB's relations cannot."""
    if isinstance(source, duckdb.DuckDBPyRelation) or hasattr(source, "collect"):
        return False
    return hasattr(source, "num_rows") or hasattr(source, "columns")


@contextlib.contextmanager
def scan(connection: duckdb.DuckDBPyConnection, source: Source) -> Iterator[str]:
    """Yields a SQL fragment that reads `source` in a FROM clause.

    Raises:
        GraphError: A file is missing, or its kind is not known.
    """
    if isinstance(source, Query):
        yield f"({source.sql.rstrip().rstrip(';')})"
        return
    if isinstance(source, str | Path):
        yield _scan_files([source])
        return
    if isinstance(source, list | tuple):
        yield _scan_files(source)
        return
    name = f"_source_{next(_sequence)}"
    try:
        # A relation belongs to a connection of its own, which may have other databases attached.
        connection.register(name, source.to_arrow_reader() if isinstance(source, duckdb.DuckDBPyRelation) else source)
    except duckdb.Error as error:
        msg = f"cannot read rows from a {type(source).__name__}; give a path, a Query, an Arrow table or a data frame"
        raise GraphError(msg) from error
    try:
        yield quote(name)
    finally:
        connection.unregister(name)


def _scan_files(patterns: Sequence[str | Path]) -> str:
    files: list[str] = []
    for pattern in map(str, patterns):
        # A name that exists is a file, even where it holds *, ? or [.
        matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))  # noqa: PTH207 - patterns may be absolute
        if not matches:
            msg = f"no file matches {pattern!r}"
            raise GraphError(msg)
        files += matches
    kinds = {_reader(file) for file in files}
    if len(kinds) != 1:
        msg = f"the files are of different kinds ({', '.join(sorted(kinds))}); load each kind with a call of its own"
        raise GraphError(msg)
    # DuckDB expands globs in a file's name by itself: escape what is meant literally.
    names = ", ".join(quote_text(glob.escape(file)) for file in files)
    return f"{kinds.pop()}([{names}])"


def _reader(file: str) -> str:
    suffixes = [suffix.lower() for suffix in Path(file).suffixes]
    while suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    reader = _READERS.get(suffixes[-1] if suffixes else "")
    if reader is None:
        msg = f"cannot tell what {file!r} is: expected a name ending in {', '.join(_READERS)} (optionally .gz or .zst)"
        raise GraphError(msg)
    return reader
