"""The rows of one load: where they stand, what is wrong with them, and the typed columns of those that are right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from multifacet.graphdb.fields import Field
from multifacet.graphdb.lines import count_lines, line_shifts, read_records
from multifacet.graphdb.reading import Reading
from multifacet.graphdb.rows import Part
from multifacet.graphdb.source import Source, open_source
from multifacet.graphdb.sql import GraphError, count, first_line, quote, quote_text, run
from multifacet.graphdb.values import Given

Array = NDArray[Any]

_RAW: Final = ("src_or_id", "dst", "time", "weight")
#: Names of our own stand beside those of a relation's properties, none of which begins so.
_COPY: Final = "_mf_batch"
_MALFORMED: Final = "_mf_malformed"
_NARROWED: Final = "_mf_narrowed"
_SHIFTS: Final = "_mf_shifts"
_MALFORMED_REASONS: Final = {
    "MISSING COLUMNS": "the line has too few columns",
    "TOO MANY COLUMNS": "the line has too many columns",
    "UNQUOTED VALUE": "the line has a quote that is not closed, or text after one",
    "LINE SIZE OVER MAXIMUM": "the line is too long",
    "INVALID ENCODING": "the line is not in the encoding of its file",
    "INVALID STATE": "the line is not CSV",
}


class Batch:
    """Rows of a source with typed fields.

    Rows are read where they are, as often as a step of the load needs them; sources that can be read only once, or only
    at the cost of parsing or computing, are copied, typed, into a temporary table first.

    Attributes:
        fields: The typed columns.
        files: The files that the rows come from; none where they come from memory or a query.
        read: Rows read, lines that are no rows of their file included.
        bad: Rows, other than such lines, with a reason to be set aside.
        num_right: The others.
        order: Columns of the rows' order in the source.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        parts: Sequence[Part],
        fields: Sequence[Field],
        reading: Reading,
        *,
        where: str,
    ) -> None:
        self._connection = connection
        self.fields = tuple(fields)
        self.files = [file for part in parts for file in part.files]
        self._num_malformed = 0
        self._has_shifts = False
        self._is_copied = not all(part.is_repeatable for part in parts)
        if self._is_copied:
            self.order: tuple[str, ...] = ("_mf_order0", "_mf_order1")
            self._copy(parts, [_typed(part, self.fields, reading, where) for part in parts])
            self._rows = self._copied_rows()
        else:
            num_orders = max(len(part.order) for part in parts)
            self.order = tuple(f"_mf_order{position}" for position in range(num_orders))
            queries = [
                f"SELECT {_typed(part, self.fields, reading, where)}, {_placed(part, num_orders)} FROM {part.sql}"
                for part in parts
            ]
            self._rows = f"({' UNION ALL '.join(queries)})"
        read, self.bad = map(int, run(connection, f"SELECT count(*), count(_mf_reason) FROM {self._rows}")[0])
        self.read = read + self._num_malformed
        self.num_right = read - self.bad

    def select(self, *extra: str, where: str | None = None) -> str:
        """A parenthesised query of the rows that are right: the typed fields, and the `extra` expressions.

        Expressions and the condition can speak of `_mf_file`, and of `_mf_line`, where the row stands in its file: its line
        in a text file, its number from 0 elsewhere.
        """
        columns = ", ".join([*(quote(field.name) for field in self.fields), *extra])
        conditions = [*(["_mf_reason IS NULL"] if self.bad else []), *([where] if where else [])]
        return f"(SELECT {columns} FROM {self._rows}{f' WHERE {_all(conditions)}' if conditions else ''})"

    def set_aside(self, load_id: int, target: str) -> None:
        """Writes what is wrong into the store's table of rejected rows."""
        if self.bad:
            self._reject(load_id, target, self._rows, "_mf_reason")
        if self._num_malformed:
            lines = f"SELECT ?, ?, file, line, reason, NULL, NULL, NULL, NULL FROM {_MALFORMED}"
            run(self._connection, f"INSERT INTO _rejected {lines}", [load_id, target])

    def set_aside_where(self, load_id: int, target: str, reason: str, where: str | None = None) -> int:
        """Writes right rows that `reason`, an expression over the typed fields, speaks against; returns their number."""
        conditions = ["_mf_reason IS NULL", *([where] if where else [])]
        rows = f"(SELECT *, {reason} AS _mf_against FROM {self._rows} WHERE {_all(conditions)})"
        return self._reject(load_id, target, rows, "_mf_against")

    def narrow(self, condition: str) -> None:
        """Leaves the right rows for which a condition holds; the wrong ones have been set aside."""
        rows = f"SELECT * FROM {self._rows} WHERE _mf_reason IS NULL AND ({condition})"
        run(self._connection, f"CREATE OR REPLACE TEMP TABLE {_NARROWED} AS {rows}")
        self._rows, self.bad = _NARROWED, 0
        self.num_right = count(self._connection, _NARROWED)

    def places(self) -> str:
        """A parenthesised query of where all rows stand, wrong ones and lines that are no rows included: file and line."""
        malformed = f" UNION ALL SELECT file, line FROM {_MALFORMED}" if self._num_malformed else ""
        return f"(SELECT _mf_file AS file, _mf_line AS line FROM {self._rows}{malformed})"

    def close(self) -> None:
        """Drops what was copied."""
        # A failed load has aborted its transaction, in which nothing can be dropped; its copies go with its cursor then.
        with contextlib.suppress(duckdb.TransactionException):
            run(
                self._connection,
                f"{'; '.join(f'DROP TABLE IF EXISTS {name}' for name in (_COPY, _MALFORMED, _NARROWED, _SHIFTS))}",
            )

    def _reject(self, load_id: int, target: str, rows: str, reason: str) -> int:
        texts = {
            field.raw: f"coalesce({quote(f'_mf_raw_{field.raw}')}, CAST({quote(field.name)} AS VARCHAR))"
            for field in self.fields
            if field.raw
        }
        raw = ", ".join(texts.get(name, "NULL") for name in _RAW)
        query = f"INSERT INTO _rejected SELECT ?, ?, _mf_file, _mf_line, {reason}, {raw} FROM {rows} WHERE {reason} IS NOT NULL"
        return int(run(self._connection, query, [load_id, target])[0][0])

    def _copy(self, parts: Sequence[Part], typed: Sequence[str]) -> None:
        # Texts are kept of wrong rows only.
        kept = ", ".join(
            f"CASE WHEN _mf_reason IS NOT NULL THEN {name} END AS {name}"
            for name in (quote(f"_mf_raw_{field.raw}") for field in self.fields if field.raw)
        )
        for number, (part, columns) in enumerate(zip(parts, typed, strict=True)):
            place = (
                f"{part.file} AS _mf_file, {part.first_line} AS _mf_first_line, {number} AS _mf_order0, row_number() "
                f"OVER () AS _mf_position"
            )
            query = f"SELECT *{f' REPLACE ({kept})' if kept else ''} FROM (SELECT {columns}, {place} FROM {part.sql})"
            into = f"INSERT INTO {_COPY}" if number else f"CREATE OR REPLACE TEMP TABLE {_COPY} AS"
            try:
                run(self._connection, f"{into} {query}")
            except duckdb.Error as error:
                msg = f"cannot read {', '.join(part.files[:3]) or 'the rows'}: {first_line(error)}"
                raise GraphError(msg) from error
        tables = run(
            self._connection, "SELECT count(*) FROM duckdb_tables() WHERE table_name IN ('reject_errors', 'reject_scans')"
        )
        if tables[0][0]:
            self._find_malformed()
        self._find_shifts(parts)

    def _copied_rows(self) -> str:
        row = "_mf_position - min(_mf_position) OVER (PARTITION BY _mf_order0, _mf_file) AS _mf_row"
        line = "_mf_row + _mf_first_line"
        if self._num_malformed:
            line += (
                f" + (SELECT count(*) FROM {_MALFORMED} AS bad "
                "WHERE bad.file = _mf_file AND bad.above <= _mf_row + _mf_first_line)"
            )
        if self._has_shifts:
            line += (
                f" + coalesce((SELECT max_by(shift, start) FROM {_SHIFTS} AS moved "
                "WHERE moved.file = _mf_file AND moved.start <= _mf_row), 0)"
            )
        return f"(SELECT *, _mf_position AS _mf_order1, {line} AS _mf_line FROM (SELECT *, {row} FROM {_COPY}))"

    def _find_shifts(self, parts: Sequence[Part]) -> None:
        """Finds the lines of rows below blank lines, and below values that hold line breaks."""
        counts = dict(run(self._connection, f"SELECT _mf_file, count(*) FROM {_COPY} WHERE _mf_first_line > 0 GROUP BY 1"))
        for part in parts:
            for file in part.files if part.quote is not None else ():
                malformed = []
                if self._num_malformed:
                    malformed = run(self._connection, f"SELECT line FROM {_MALFORMED} WHERE file = ? ORDER BY line", [file])
                num_good, num_before = counts.get(file, 0), part.first_line - 1
                if count_lines(file) == num_good + num_before + len(malformed):
                    continue
                numbers = np.array([line for (line,) in malformed], np.int64)
                records = read_records(file, part.quote or "")
                shifts = line_shifts(records, num_good=num_good, num_before=num_before, malformed=numbers)
                if shifts is not None:
                    self._shift(file, *shifts, numbers, records.line[numbers - 1])

    def _shift(self, file: str, starts: Array, shifts: Array, numbers: Array, lines: Array) -> None:
        connection = self._connection
        moved = pa.table({"file": [file] * len(starts), "start": starts, "shift": shifts})
        connection.register("_mf_moved", moved)
        into = f"INSERT INTO {_SHIFTS}" if self._has_shifts else f"CREATE OR REPLACE TEMP TABLE {_SHIFTS} AS"
        run(connection, f"{into} FROM _mf_moved")
        connection.unregister("_mf_moved")
        self._has_shifts = True
        for number, line in zip(numbers.tolist(), lines.tolist(), strict=True):
            # Its line is known now, and what lies behind it has been counted already.
            where = "file = ? AND line = ? AND above IS NOT NULL"
            run(connection, f"UPDATE {_MALFORMED} SET line = ?, above = NULL WHERE {where}", [line, file, number])

    def _find_malformed(self) -> None:
        """Lists the lines of text files that are no rows, which DuckDB keeps in two tables of its own."""
        reasons = " ".join(f"WHEN '{kind}' THEN {quote_text(reason)}" for kind, reason in _MALFORMED_REASONS.items())
        found = (
            f"SELECT file_path AS file, line::BIGINT AS line, any_value(CASE error_type::VARCHAR {reasons} ELSE 'the "
            f"line is not CSV' END) AS reason "
            "FROM reject_errors JOIN reject_scans USING (scan_id, file_id) GROUP BY ALL"
        )
        # A right row's line is counted from those that are right: `above` is the count from which on it lies behind a wrong
        # one.
        above = "line - row_number() OVER (PARTITION BY file ORDER BY line) + 1 AS above"
        run(self._connection, f"CREATE OR REPLACE TEMP TABLE {_MALFORMED} AS SELECT *, {above} FROM ({found})")
        run(self._connection, "DROP TABLE reject_errors; DROP TABLE reject_scans")
        self._num_malformed = count(self._connection, _MALFORMED)


@contextlib.contextmanager
def open_batch(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    fields: Sequence[Field],
    reading: Reading,
    *,
    optional: Sequence[Field] = (),
    where: str,
) -> Iterator[Batch]:
    """Yields the rows of a source.

    Args:
        connection: Within a transaction.
        source: The source.
        fields: The columns that it must have.
        reading: How it is read.
        optional: Columns that are left out where it has none of them.
        where: What is loaded, for messages.

    Raises:
        GraphError: A column is missing, or of a type that cannot be meant, or the source cannot be read.
    """
    wanted = [field.column for field in (*fields, *optional)]
    with open_source(connection, source, wanted, reading) as parts:
        present = [*fields, *(field for field in optional if any(part.column(field.column) is not None for part in parts))]
        for part in parts:
            _refuse_missing(part, present, parts, reading, where)
        batch = Batch(connection, parts, present, reading, where=where)
        try:
            yield batch
        finally:
            batch.close()


def _refuse_missing(part: Part, fields: Sequence[Field], parts: Sequence[Part], reading: Reading, where: str) -> None:
    for field in fields:
        if part.column(field.column) is not None:
            continue
        others = next((other for other in parts if other.column(field.column) is not None), None)
        if others is not None and reading.union_by_name:
            continue
        what = f"{part.files[0]} has" if part.files else "the source has"
        way = "name it in the call or rename it"
        if others is not None:
            way = "union_by_name=True reads null there"
            if part.first_line:
                way += f", and columns={tuple(others.types)!r} reads a file without a line of names, by a call of its own"
        msg = f"{where}: column {field.column!r} is missing, {what} {list(part.types)}{part.hint}; {way}"
        raise GraphError(msg)


def _typed(part: Part, fields: Sequence[Field], reading: Reading, where: str) -> str:
    """The columns of a part's rows: typed, as text, and the reason why a row is wrong."""
    columns, reasons = [], []
    for field in fields:
        column = part.column(field.column)
        given = Given(
            sql="NULL" if column is None else part.given(column),
            kind='"NULL"' if column is None else part.types[column],
            column=field.column,
            where=where,
            null_texts=reading.null_texts,
            time_format=reading.time_format,
            time_unit=reading.time_unit,
        ).plain()
        value = field.convert(given)
        columns.append(f"{value} AS {quote(field.name)}")
        if field.missing is not None:
            reasons.append(f"WHEN {given.is_null} THEN {quote_text(field.missing)}")
        if value != given.sql:
            condition = f"({value}) IS NULL" if field.missing is not None else f"({value}) IS NULL AND NOT ({given.is_null})"
            reasons.append(f"WHEN {condition} THEN {quote_text(field.wrong)}")
        if field.raw is not None:
            columns.append(f"{given.text} AS {quote(f'_mf_raw_{field.raw}')}")
    reason = f"CASE {' '.join(reasons)} END" if reasons else "NULL::VARCHAR"
    return ", ".join([*columns, f"{reason} AS _mf_reason"])


def _placed(part: Part, num_orders: int) -> str:
    """The columns of where a part's rows stand."""
    order = [*part.order, *["0"] * (num_orders - len(part.order))]
    places = [f"{expression} AS _mf_order{position}" for position, expression in enumerate(order)]
    return ", ".join([f"{part.file} AS _mf_file", f"{part.number} AS _mf_line", *places])


def _all(conditions: Sequence[str]) -> str:
    return " AND ".join(f"({condition})" for condition in conditions)
