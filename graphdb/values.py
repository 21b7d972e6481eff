"""What a value of each type means to a column that was declared: kept as it is, set aside with a reason, or refused.

A row's value arrives as it was given, or not at all. Each conversion here is exact; where a type can hold what the declared
one cannot, the rows that do so are set aside; where no value of a type can be meant, the column is refused as a whole.
docs/graphdb.md has the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Final, Literal

from multifacet.graphdb.schema import NodeType
from multifacet.graphdb.sql import GraphError, quote_text
from multifacet.graphdb.times import FIRST_US, LAST_US

TimeUnit = Literal["s", "ms", "us", "ns"]

_INTEGERS: Final = frozenset(
    ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT")
)
_WITHIN_BIGINT: Final = frozenset(("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"))
#: From here on a floating-point number can stand for an integer that is not its own.
_EXACT_BELOW: Final = {"FLOAT": 1 << 24, "DOUBLE": 1 << 53}
_TIMESTAMPS: Final = frozenset(
    ("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS")
)
_TEXTS: Final = frozenset(("VARCHAR", "UUID", "JSON"))
_NUMBER: Final = r"\s*[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?\s*"
_DATE_FIRST: Final = r"^\s*[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([T ]|\s*$)"
_UNITS_PER_S: Final = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
#: The largest finite float32: weights are float32 once they are in memory.
_MAX_FLOAT: Final = 3.4028235677973366e38
_RANGES: Final = {"INTEGER": (-(1 << 31), (1 << 31) - 1), "BIGINT": (-(1 << 63), (1 << 63) - 1)}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """One column of a source.

    Attributes:
        sql: SQL of its value.
        kind: DuckDB type of it, or JSON for a value of a JSON document.
        column: Its name, for messages.
        where: What is loaded, for messages.
        null_texts: Texts that stand for null.
        time_format: The `strptime` format of times given as text; ISO 8601 by default.
        time_unit: The unit of times given as numbers, since 1970; without one they are refused.
    """

    sql: str
    kind: str
    column: str
    where: str
    null_texts: Sequence[str] = ()
    time_format: str | None = None
    time_unit: TimeUnit | None = None

    def plain(self) -> Given:
        """The column as one of few types: enumerations, UUIDs and columns of nulls as text."""
        sql, kind, null_texts = self.sql, self.kind, self.null_texts
        if kind in {'"NULL"', "UUID"} or kind.startswith("ENUM"):
            sql, kind = f"CAST({sql} AS VARCHAR)", "VARCHAR"
        if kind == "VARCHAR" and null_texts:
            sql = f"CASE WHEN {sql} NOT IN ({', '.join(map(quote_text, null_texts))}) THEN {sql} END"
            null_texts = ()
        return dataclasses.replace(self, sql=sql, kind=kind, null_texts=null_texts)

    @property
    def is_null(self) -> str:
        """SQL that holds where nothing was given."""
        return f"({self.sql} IS NULL OR json_type({self.sql}) = 'NULL')" if self.kind == "JSON" else f"{self.sql} IS NULL"

    @property
    def text(self) -> str:
        """SQL of the text given, as `rejected_rows` keeps it."""
        return f"({self.sql}->>'$')" if self.kind == "JSON" else f"CAST({self.sql} AS VARCHAR)"


class _RefusedError(Exception):
    """No value of a type can be meant; the argument says what to do."""


#: Gives the SQL of a value of one type from a column of another.
Converter = Callable[[Given], str]


def identifier(given: Given, node: NodeType) -> str:
    """SQL of an external id, null where the value cannot be one.

    Raises:
        GraphError: No value of the column's type can be one.
    """
    ids = "int64" if node.id_type == "int64" else "text"
    convert = _to_bigint if node.id_type == "int64" else _to_id_text
    return _converted(given, convert, f"ids of {node.name!r} are {ids}")


def time(given: Given) -> str:
    """SQL of a TIMESTAMP (UTC), null where the value is none of the years 1 to 9999.

    Raises:
        GraphError: No value of the column's type can be one.
    """
    return _converted(given, _to_time, "times are a TIMESTAMP, a DATE, or text")


def weight(given: Given) -> str:
    """SQL of a DOUBLE, null where the value is no number that a float32 can hold.

    Raises:
        GraphError: No value of the column's type can be one.
    """
    value = _converted(given, _to_double, "weights are numbers")
    # Parquet's statistics leave NaN out, so that DuckDB takes a comparison alone for true: finiteness is asked for by name.
    return f"CASE WHEN isfinite({value}) AND abs({value}) < {_MAX_FLOAT!r} THEN {value} END"


def property_value(given: Given, kind: str) -> str:
    """SQL of a property of a declared type, null where the value cannot be one.

    Raises:
        GraphError: No value of the column's type can be one.
    """
    convert = {
        "BOOLEAN": _to_boolean,
        "INTEGER": _to_integer,
        "BIGINT": _to_bigint,
        "FLOAT": _to_float,
        "DOUBLE": _to_double,
        "VARCHAR": _to_text,
        "DATE": _to_date,
        "TIMESTAMP": _to_time,
    }[kind]
    return _converted(given, convert, f"the property is {kind}")


def _converted(given: Given, convert: Converter, expected: str) -> str:
    given = given.plain()
    try:
        return _from_json(given, convert) if given.kind == "JSON" else convert(given)
    except _RefusedError as refusal:
        msg = f"{given.where}: column {given.column!r} is {given.kind}, but {expected}: {refusal}"
        raise GraphError(msg) from None


def _from_json(given: Given, convert: Converter) -> str:
    """A JSON value by its own type; those that cannot be meant are null."""
    branches = []
    for json_types, kind, sql in (
        (("VARCHAR",), "VARCHAR", f"({given.sql}->>'$')"),
        (("BIGINT", "UBIGINT"), "HUGEINT", f"TRY_CAST({given.sql}->>'$' AS HUGEINT)"),
        (("DOUBLE",), "DOUBLE", f"TRY_CAST({given.sql}->>'$' AS DOUBLE)"),
        (("BOOLEAN",), "BOOLEAN", f"TRY_CAST({given.sql}->>'$' AS BOOLEAN)"),
    ):
        try:
            value = convert(dataclasses.replace(given, sql=sql, kind=kind).plain())
        except _RefusedError:
            continue
        branches.append(f"WHEN json_type({given.sql}) IN ({', '.join(map(quote_text, json_types))}) THEN {value}")
    return f"CASE {' '.join(branches)} END"


def _to_bigint(given: Given) -> str:
    return _to_whole(given, *_RANGES["BIGINT"])


def _to_integer(given: Given) -> str:
    return f"CAST({_to_whole(given, *_RANGES['INTEGER'])} AS INTEGER)"


def _to_whole(given: Given, low: int, high: int) -> str:
    """A whole number within a range as a BIGINT."""
    sql, kind = given.sql, given.kind
    is_narrower = (low, high) != _RANGES["BIGINT"]
    if kind in _INTEGERS:
        if kind in _WITHIN_BIGINT and not is_narrower:
            return sql if kind == "BIGINT" else f"CAST({sql} AS BIGINT)"
        value = f"TRY_CAST({sql} AS BIGINT)"
    elif kind in _EXACT_BELOW:
        is_exact = f"isfinite({sql}) AND abs({sql}) < {_EXACT_BELOW[kind]} AND {sql} = trunc({sql})"
        value = f"CASE WHEN {is_exact} THEN CAST({sql} AS BIGINT) END"
    elif kind.startswith("DECIMAL"):
        value = f"CASE WHEN {sql} = trunc({sql}) THEN TRY_CAST({sql} AS BIGINT) END"
    elif kind == "VARCHAR":
        # TRY_CAST alone would take '1.5' for 2, ' 7' for 7 and '1_0' for 10. A pattern costs more than writing the number
        # again.
        number = f"TRY_CAST({sql} AS BIGINT)"
        is_whole = f"CAST({number} AS VARCHAR) = {sql} OR regexp_full_match({sql}, '[+-]?[0-9]+')"
        value = f"CASE WHEN {is_whole} THEN {number} END"
    else:
        raise _RefusedError(_whole_hint(kind))
    return f"CASE WHEN {value} BETWEEN {low} AND {high} THEN {value} END" if is_narrower else value


def _whole_hint(kind: str) -> str:
    if kind == "BLOB":
        return "turn bytes into text by decode(column) in a Query"
    return "cast it to BIGINT in a Query, if that is what is meant"


def _to_id_text(given: Given) -> str:
    """An id as text: a number only where it is whole, as '7.0' or '1e5' would be other ids than '7' and '100000'."""
    if given.kind == "VARCHAR":
        return given.sql
    if given.kind in _INTEGERS:
        return f"CAST({given.sql} AS VARCHAR)"
    if given.kind in _EXACT_BELOW or given.kind.startswith("DECIMAL"):
        whole = _to_whole(given, *_RANGES["BIGINT"])
        if given.kind.startswith("DECIMAL") and given.kind.endswith(",0)"):
            return f"CAST({given.sql} AS VARCHAR)"
        return f"CAST({whole} AS VARCHAR)"
    if given.kind == "BLOB":
        raise _RefusedError("turn bytes into text by decode(column) in a Query")
    raise _RefusedError("write it as text in a Query, such as column::VARCHAR, in the form that its ids have everywhere")


def _to_text(given: Given) -> str:
    if given.kind in _EXACT_BELOW:
        whole = _to_whole(given, *_RANGES["BIGINT"])
        return f"coalesce(CAST({whole} AS VARCHAR), CAST({given.sql} AS VARCHAR))"
    if given.kind in _TEXTS | _INTEGERS | {"BOOLEAN", "DATE"} or given.kind.startswith("DECIMAL"):
        return f"CAST({given.sql} AS VARCHAR)"
    if given.kind in _TIMESTAMPS:
        return f"CAST({_to_time(given)} AS VARCHAR)"
    if given.kind == "BLOB":
        raise _RefusedError("turn bytes into text by decode(column) in a Query")
    raise _RefusedError("write it as text in a Query")


def _to_double(given: Given) -> str:
    if given.kind == "DOUBLE":
        return given.sql
    if given.kind in _INTEGERS or given.kind == "FLOAT" or given.kind.startswith("DECIMAL"):
        return f"CAST({given.sql} AS DOUBLE)"
    if given.kind == "VARCHAR":
        return f"CASE WHEN regexp_full_match({given.sql}, {quote_text(_NUMBER)}) THEN TRY_CAST({given.sql} AS DOUBLE) END"
    raise _RefusedError("give numbers")


def _to_float(given: Given) -> str:
    return f"TRY_CAST({_to_double(given)} AS FLOAT)"


def _to_boolean(given: Given) -> str:
    if given.kind == "BOOLEAN":
        return given.sql
    if given.kind in _INTEGERS or given.kind in _EXACT_BELOW:
        return f"CASE {given.sql} WHEN 0 THEN false WHEN 1 THEN true END"
    if given.kind == "VARCHAR":
        return f"TRY_CAST({given.sql} AS BOOLEAN)"
    raise _RefusedError("give true and false, or 0 and 1")


def _to_date(given: Given) -> str:
    if given.kind == "DATE":
        value = f"CAST({given.sql} AS TIMESTAMP)"
        within = f"{value} BETWEEN make_timestamp({FIRST_US}) AND make_timestamp({LAST_US})"
        return f"CASE WHEN {within} THEN {given.sql} END"
    value = _to_time(given)
    # A clock time would be lost.
    return f"CASE WHEN {value} = date_trunc('day', {value}) THEN CAST({value} AS DATE) END"


def _to_time(given: Given) -> str:
    sql, kind = given.sql, given.kind
    if kind in {"TIMESTAMP_NS", "TIMESTAMPTZ_NS"}:
        # Down to the microsecond: DuckDB's cast would round half of them up.
        return f"make_timestamp((epoch_ns({sql}) - ((epoch_ns({sql}) % 1000) + 1000) % 1000) // 1000)"
    if kind in _TIMESTAMPS:
        # The connection's zone is UTC: an instant becomes its UTC time.
        value = sql if kind == "TIMESTAMP" else f"TRY_CAST({sql} AS TIMESTAMP)"
    elif kind == "DATE":
        value = f"TRY_CAST({sql} AS TIMESTAMP)"
    elif given.time_unit is not None and (kind in _INTEGERS or kind in _EXACT_BELOW or kind.startswith("DECIMAL")):
        value = _from_number(sql, given.time_unit, is_float=kind in _EXACT_BELOW)
    elif kind == "VARCHAR":
        value = _from_text(given)
    elif kind in _INTEGERS or kind in _EXACT_BELOW or kind.startswith("DECIMAL"):
        raise _RefusedError('say what its numbers count from 1970 on: time_unit="s", "ms", "us" or "ns"')
    else:
        raise _RefusedError("give a TIMESTAMP in a Query")
    return f"CASE WHEN {value} BETWEEN make_timestamp({FIRST_US}) AND make_timestamp({LAST_US}) THEN {value} END"


def _from_number(sql: str, unit: TimeUnit, *, is_float: bool = False) -> str:
    """The time that lies so many units after 1970, down to the microsecond; a floating-point number is rounded to it."""
    number = f"TRY_CAST({sql} AS DECIMAL(38, 9))"
    if unit == "ns":
        # Whole numbers: DuckDB divides decimals as floating-point numbers.
        whole = f"CAST(floor({number}) AS HUGEINT)"
        micros = f"({whole} - (({whole} % 1000) + 1000) % 1000) // 1000"
    else:
        micros = f"{'round' if is_float else 'floor'}({number} * {1_000_000 // _UNITS_PER_S[unit]})"
    return f"make_timestamp(CASE WHEN {number} BETWEEN {_bounds(unit)} THEN CAST({micros} AS BIGINT) END)"


def _bounds(unit: TimeUnit) -> str:
    per_s = _UNITS_PER_S[unit]
    return " AND ".join(str(bound * per_s // 1_000_000) for bound in (FIRST_US, LAST_US))


def _from_text(given: Given) -> str:
    """Text with an offset or a zone is that instant, text without one is UTC."""
    if given.time_unit is not None:
        numeric = f"CASE WHEN regexp_full_match({given.sql}, {quote_text(_NUMBER)}) THEN {given.sql} END"
        return _from_number(numeric, given.time_unit)
    if given.time_format is not None:
        return f"CAST(CAST(try_strptime({given.sql}, {quote_text(given.time_format)}) AS TIMESTAMPTZ) AS TIMESTAMP)"
    # Only what begins with a date: DuckDB also takes 'epoch', 'now' and years of five digits.
    parsed = f"CAST(TRY_CAST({given.sql} AS TIMESTAMPTZ) AS TIMESTAMP)"
    return f"CASE WHEN regexp_matches({given.sql}, {quote_text(_DATE_FIRST)}) THEN {parsed} END"
