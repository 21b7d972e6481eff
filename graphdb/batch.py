"""The rows of one load: where they stand, what is wrong with them, and the typed columns of those that are right."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import duckdb

from graphdb.schema import NodeType
from graphdb.source import Source, is_repeatable, scan
from graphdb.sql import GraphError, quote, quote_text, run

_INTEGERS = frozenset(
    "TINYINT SMALLINT INTEGER BIGINT HUGEINT UTINYINT USMALLINT UINTEGER UBIGINT UHUGEINT".split()  # noqa: SIM905 - one line
)
_TIMES = ("TIMESTAMP", "DATE", "VARCHAR")
_VIRTUAL = frozenset({"filename", "file_row_number", "file_index"})
_RAW = ("src_or_id", "dst", "time", "weight")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows that can be read again and again.

    Attributes:
        sql: FROM clause.
        types: Column -> DuckDB type.
        file: SQL of the file that a row stands in, or null.
        number: SQL of a row's number, from 0, in its file.
        order: SQL of what the rows' order in the source is.
    """

    sql: str
    types: Mapping[str, str]
    file: str
    number: str
    order: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One typed column of a batch.

    Attributes:
        name: Its name within the batch.
        column: Its name in the source.
        value: SQL of the typed value.
        reasons: `WHEN condition THEN 'reason'` clauses that set a row aside.
        raw: The column of `rejected_rows` that keeps the text given, if any.
    """

    name: str
    column: str
    value: str
    reasons: str = ""
    raw: str | None = None


class Batch:
    """Rows of a source with typed fields.

    Rows are read where they are, as often as a step of the load needs them; sources that can be read only once, or only
    at the cost of parsing or computing, are copied into a temporary table first.

    Attributes:
        rows: Where the rows are.
        fields: The typed columns.
        read: Rows read.
        bad: Rows with a reason to be set aside.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, rows: Rows, fields: Sequence[Field]) -> None:
        self._connection = connection
        self.rows = rows
        self.fields = tuple(fields)
        reasons = " ".join(field.reasons for field in fields if field.reasons)
        self._reason = f"CASE {reasons} END" if reasons else "NULL::VARCHAR"
        bad = f"count({self._reason})"
        self.read, self.bad = map(int, run(connection, f"SELECT count(*), {bad} FROM {rows.sql}")[0])

    def select(self, *extra: str) -> str:
        """A parenthesised query of the rows that are right: the typed fields, and the `extra` expressions."""
        columns = ", ".join([*(f"{field.value} AS {quote(field.name)}" for field in self.fields), *extra])
        where = f" WHERE {self._reason} IS NULL" if self.bad else ""
        return f"(SELECT {columns} FROM {self.rows.sql}{where})"

    def set_aside(self, load_id: int, target: str) -> None:
        """Writes the rows that are wrong into the store's table of rejected rows."""
        if self.bad:
            self._insert_rejected(load_id, target, self.numbered("*", f"{self._reason} AS _reason"), "_reason IS NOT NULL")

    def set_aside_where(self, load_id: int, target: str, reason: str) -> int:
        """Writes right rows that `reason`, an expression over the typed fields, speaks against; returns their number."""
        typed = [f"{field.value} AS {quote(f'_typed_{field.name}')}" for field in self.fields]
        # Rows are numbered before the wrong ones are left out, or the numbers would be those among the right ones.
        right = "WHERE _wrong IS NULL" if self.bad else ""
        numbered = self.numbered("*", *typed, f"{self._reason} AS _wrong") if self.bad else self.numbered("*", *typed)
        rows = f"(SELECT *, {reason} AS _reason FROM {numbered} {right})"
        return self._insert_rejected(load_id, target, rows, "_reason IS NOT NULL")

    def numbered(self, *expressions: str) -> str:
        """A parenthesised query of all rows, with `_file` and `_row`."""
        rows = self.rows
        return f"(SELECT {', '.join(expressions)}, {rows.file} AS _file, {rows.number} AS _row FROM {rows.sql})"

    def _insert_rejected(self, load_id: int, target: str, rows: str, where: str) -> int:
        columns = {field.raw: f"CAST({quote(field.column)} AS VARCHAR)" for field in self.fields if field.raw}
        raw = ", ".join(columns.get(name, "NULL") for name in _RAW)
        query = f"INSERT INTO _rejected SELECT ?, ?, _file, _row, _reason, {raw} FROM {rows} WHERE {where}"
        return int(run(self._connection, query, [load_id, target])[0][0])


@contextlib.contextmanager
def open_rows(connection: duckdb.DuckDBPyConnection, source: Source, wanted: Sequence[str], *, where: str) -> Iterator[Rows]:
    """Yields the rows of a source in a form that can be read again and again.

    Raises:
        GraphError: A column of `wanted` is missing.
    """
    with scan(connection, source) as sql:
        types = {name: kind for name, kind, *_ in run(connection, f"DESCRIBE SELECT * FROM {sql}")}
        for column in wanted:
            if column not in types:
                msg = f"{where}: column {column!r} is missing, the source has {list(types)}; name it in the call or rename it"
                raise GraphError(msg)
        number = "row_number() OVER () - 1"
        if sql.startswith("read_parquet(") and not _VIRTUAL & {name.lower() for name in types}:
            yield Rows(sql=sql, types=types, file="filename", number="file_row_number", order=("file_index", "file_row_number"))
        elif is_repeatable(source):
            yield Rows(sql=sql, types=types, file="NULL::VARCHAR", number=number, order=(number,))
        else:
            columns = ", ".join(dict.fromkeys(map(quote, wanted)))
            file = "filename" if sql.startswith("read_csv(") and "filename" not in types else "NULL::VARCHAR"
            copied = f"SELECT {columns}, {number} AS _position, {file} AS _from FROM {sql}"
            run(connection, f"CREATE OR REPLACE TEMP TABLE _copied AS {copied}")
            try:
                number = "_position - min(_position) OVER (PARTITION BY _from)"
                yield Rows(sql="_copied", types=types, file="_from", number=number, order=("_position",))
            finally:
                run(connection, "DROP TABLE IF EXISTS _copied")


def id_field(name: str, column: str, kind: str, node: NodeType, *, raw: str, label: str) -> Field:
    """The field of an external id; `GraphError` where the column's type cannot hold one."""
    given = quote(column)
    null = f"WHEN {given} IS NULL THEN {quote_text(f'{label} is null')}"
    if node.id_type == "string":
        value = given if kind == "VARCHAR" else f"CAST({given} AS VARCHAR)"
        return Field(name=name, column=column, value=value, reasons=null, raw=raw)
    if kind == "BIGINT":
        return Field(name=name, column=column, value=given, reasons=null, raw=raw)
    if kind in _INTEGERS:
        value = f"TRY_CAST({given} AS BIGINT)"
    elif kind == "VARCHAR":
        # TRY_CAST alone would round '1.5' to 2.
        value = f"CASE WHEN regexp_full_match({given}, '[+-]?[0-9]+') THEN TRY_CAST({given} AS BIGINT) END"
    else:
        msg = (
            f"column {column!r} is {kind}, but ids of {node.name!r} are int64: cast it to BIGINT, or declare id_type = 'string'"
        )
        raise GraphError(msg)
    reasons = f"{null} WHEN {value} IS NULL THEN {quote_text(f'{label} is not an int64')}"
    return Field(name=name, column=column, value=value, reasons=reasons, raw=raw)


def time_field(column: str, kind: str, *, where: str) -> Field:
    """The field of an edge's time; `GraphError` where the column is not one of times."""
    if not kind.startswith(_TIMES):
        msg = (
            f"{where}: column {column!r} is {kind}, expected a TIMESTAMP, DATE or text; "
            "convert seconds with to_timestamp(column) in a Query"
        )
        raise GraphError(msg)
    given = quote(column)
    value = given if kind == "TIMESTAMP" else f"TRY_CAST({given} AS TIMESTAMP)"
    reasons = (
        f"WHEN {given} IS NULL THEN 'time is null' WHEN {value} IS NULL OR NOT isfinite({value}) THEN 'time is not a timestamp'"
    )
    return Field(name="time", column=column, value=value, reasons=reasons, raw="time")


def weight_field(column: str) -> Field:
    """The field of an edge's weight."""
    value = f"TRY_CAST({quote(column)} AS FLOAT)"
    reasons = f"WHEN {value} IS NULL OR NOT isfinite({value}) THEN 'weight is not a finite number'"
    return Field(name="weight", column=column, value=value, reasons=reasons, raw="weight")


def property_field(name: str, kind: str) -> Field:
    """The field of a property, which may be null."""
    value = f"TRY_CAST({quote(name)} AS {kind})"
    reasons = f"WHEN {quote(name)} IS NOT NULL AND {value} IS NULL THEN {quote_text(f'{name} is not a {kind}')}"
    return Field(name=name, column=name, value=value, reasons=reasons)
