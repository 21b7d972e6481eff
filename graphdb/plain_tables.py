"""Plain tables beside the graph: impressions, calendars, labels; and the raw tables of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import duckdb

from multifacet.graphdb import values
from multifacet.graphdb.reading import Reading
from multifacet.graphdb.rows import Part
from multifacet.graphdb.schema import PROPERTY_TYPES
from multifacet.graphdb.source import Source, open_source
from multifacet.graphdb.sql import GraphError, changed, quote, quote_text
from multifacet.graphdb.values import Given

_OWN_PREFIXES: Final = ("_", "nodes_", "edges_", "rejected_rows", "loads", "removals")


def load_table(
    connection: duckdb.DuckDBPyConnection, name: str, source: Source, types: Mapping[str, str], reading: Reading
) -> int:
    """Replaces a plain table by the rows of `source`; returns their number.

    Raises:
        GraphError: The name is one of the store's own, or a value is not of the type that its column was given.
    """
    if name.lower().startswith(_OWN_PREFIXES):
        msg = f"table {name!r}: names that start with {', '.join(_OWN_PREFIXES)} belong to the store; choose another"
        raise GraphError(msg)
    with open_source(connection, source, None, reading, sets_aside=False) as parts:
        rows = typed_rows(parts, types, reading, where=f"table {name!r}")
        return changed(connection, f"CREATE OR REPLACE TABLE {quote(name)} AS {rows}")


def typed_rows(parts: Sequence[Part], types: Mapping[str, str], reading: Reading, *, where: str) -> str:
    """Gives a query of all columns of a source's rows.

    Args:
        parts: The rows.
        types: Column -> DuckDB type; the others are as the source has them: text, if it is a text file.
        reading: How they are read.
        where: What they are, for messages.

    Raises:
        GraphError: A column is missing, or no value of its type can be meant. A value that cannot is an error of the query.
    """
    declared = {column.lower(): kind.strip().upper() for column, kind in types.items()}
    for column, kind in declared.items():
        if kind not in PROPERTY_TYPES:
            msg = f"{where}: column {column!r} has type {kind!r}, expected one of {', '.join(sorted(PROPERTY_TYPES))}"
            raise GraphError(msg)
    names = (
        list(dict.fromkeys(name for part in parts for name in part.types)) if reading.union_by_name else list(parts[0].types)
    )
    missing = sorted(set(declared) - {column.lower() for column in names})
    if missing:
        msg = f"{where}: there is no column {missing[0]!r} to give a type to, the source has {names}"
        raise GraphError(msg)
    selects = []
    for part in parts:
        columns = [_column(part, name, declared.get(name.lower()), reading, where) for name in names]
        selects.append(f"SELECT {', '.join(columns)} FROM {part.sql}")
    return " UNION ALL ".join(selects)


def _column(part: Part, name: str, kind: str | None, reading: Reading, where: str) -> str:
    own = part.column(name)
    if own is None:
        if reading.union_by_name:
            return f"NULL AS {quote(name)}"
        msg = f"{where}: column {name!r} is missing in {part.files[0]}, which has {list(part.types)}; union_by_name reads null"
        raise GraphError(msg)
    given = Given(
        sql=part.given(own),
        kind=part.types[own],
        column=name,
        where=where,
        null_texts=reading.null_texts,
        time_format=reading.time_format,
        time_unit=reading.time_unit,
    ).plain()
    return f"{_value(given, kind)} AS {quote(name)}"


def _value(given: Given, kind: str | None) -> str:
    if kind is None:
        return given.text if given.kind == "JSON" else given.sql
    value = values.property_value(given, kind)
    if value == given.sql:
        return value
    wrong = quote_text(f"a value of column {given.column!r} is not a {kind}: ")
    return f"CASE WHEN {given.is_null} THEN NULL WHEN ({value}) IS NULL THEN error({wrong} || {given.text}) ELSE {value} END"
