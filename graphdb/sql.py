"""The few ways in which this package talks to DuckDB: quoting, running, counting, reading."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

_NAME = re.compile(r"[^\x00]{1,200}")
_KIND = re.compile(r"^(\w+ )*Error: ")


class GraphError(ValueError):
    """A graph operation was given something that it cannot accept; the message says what and how to mend it."""


def quote(name: str) -> str:
    """Quotes `name` as a SQL identifier, whatever characters it holds.

    Example:
        >>> quote('a"b')
        '"a""b"'
    """
    if not _NAME.fullmatch(name):
        msg = f"a name must have 1 to 200 characters and no NUL, got {name!r}"
        raise GraphError(msg)
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """Quotes `text` as a SQL string literal.

    Example:
        >>> quote_text("it's")
        "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


def run(
    connection: duckdb.DuckDBPyConnection, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None
) -> list[tuple[Any, ...]]:
    """Runs statements and returns the last one's rows, so that the connection is free for the next."""
    return connection.execute(query, params).fetchall()


def changed(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """Runs an INSERT, UPDATE, DELETE or CREATE TABLE AS and returns the number of its rows."""
    return int(run(connection, query)[0][0])


def count(connection: duckdb.DuckDBPyConnection, rows: str) -> int:
    """The number of rows of a table or of a parenthesised query."""
    return int(run(connection, f"SELECT count(*) FROM {rows}")[0][0])


def select(
    connection: duckdb.DuckDBPyConnection, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None
) -> pa.Table:
    """Runs one SELECT that a user wrote, on a connection in a read-only transaction.

    Raises:
        GraphError: More than one statement, or one that is not a SELECT, or one that fails.
    """
    try:
        statements = connection.extract_statements(query)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
            msg = f"expected one SELECT, got {kinds}; load_nodes, load_edges and load_table change the store"
            raise GraphError(msg)
        return connection.sql(query, params=params).to_arrow_table()
    except duckdb.Error as error:
        msg = f"the query failed: {error}"
        raise GraphError(msg) from error


def first_line(error: BaseException) -> str:
    """What an error of DuckDB says, without its kind, the query and the stack that it prints."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return _KIND.sub("", text)


def unregister(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Takes back the name of rows in memory.

    After an error, which has aborted the transaction, nothing can be taken back: the name goes with its cursor.
    """
    with contextlib.suppress(duckdb.TransactionException):
        connection.unregister(name)


def begin_reading(connection: duckdb.DuckDBPyConnection) -> None:
    """Begins a transaction that cannot write: a SELECT alone could, by an INSERT in its WITH clause."""
    run(connection, "BEGIN TRANSACTION READ ONLY")
