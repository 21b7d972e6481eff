"""Plain tables beside the graph: impressions, calendars, labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import duckdb

from graphdb import values
from graphdb.reading import Reading
from graphdb.schema import PROPERTY_TYPES
from graphdb.source import Source, open_source
from graphdb.sql import GraphError, changed, quote, quote_text
from graphdb.values import Given

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
    where = f"table {name!r}"
    declared = {column.lower(): kind.upper() for column, kind in types.items()}
    for column, kind in declared.items():
        if kind not in PROPERTY_TYPES:
            msg = f"{where}: column {column!r} has type {kind!r}, expected one of {', '.join(sorted(PROPERTY_TYPES))}"
            raise GraphError(msg)
    with open_source(connection, source, None, reading) as parts:
        names = list(parts[0].types)
        missing = sorted(set(declared) - {column.lower() for column in names})
        if missing:
            msg = f"{where}: there is no column {missing[0]!r} to give a type to, the source has {names}"
            raise GraphError(msg)
        selects = []
        for part in parts:
            columns = []
            for column in names:
                own = part.column(column)
                if own is None:
                    msg = f"{where}: column {column!r} is missing in {part.files[0]}, which has {list(part.types)}"
                    raise GraphError(msg)
                given = Given(
                    sql=part.given(own),
                    kind=part.types[own],
                    column=column,
                    where=where,
                    null_texts=reading.null_texts,
                    time_format=reading.time_format,
                    time_unit=reading.time_unit,
                ).plain()
                columns.append(f"{_value(given, declared.get(column.lower()))} AS {quote(column)}")
            selects.append(f"SELECT {', '.join(columns)} FROM {part.sql}")
        return changed(connection, f"CREATE OR REPLACE TABLE {quote(name)} AS {' UNION ALL '.join(selects)}")


def _value(given: Given, kind: str | None) -> str:
    if kind is None:
        return given.text if given.kind == "JSON" else given.sql
    value = values.property_value(given, kind)
    if value == given.sql:
        return value
    wrong = quote_text(f"{given.where}: a value of column {given.column!r} is not a {kind}: ")
    return f"CASE WHEN {given.is_null} THEN NULL WHEN ({value}) IS NULL THEN error({wrong} || {given.text}) ELSE {value} END"
