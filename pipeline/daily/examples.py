"""The labelled examples of some days: drawn from a store's periods, or rows of one's own chosen by time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import duckdb
import pyarrow as pa

from multifacet import ranking
from multifacet.pipeline.daily.sql import quote, quote_text
from multifacet.ranking.examples import load_periods

if TYPE_CHECKING:
    from multifacet.graphdb import GraphStore
    from multifacet.pipeline.daily.config import ExamplesSection, RankerSection
    from multifacet.ranking import Examples

__all__ = ["fingerprint_rows", "read_part"]

_TABLES: Final = ("placements", "responses", "visits", "purchases")

Span = tuple[dt.datetime, dt.datetime]


def read_part(store: GraphStore, section: RankerSection, span: Span, number: int, *, known_before: dt.datetime) -> Examples:
    """Reads or draws the examples of some days.

    Args:
        store: The store.
        section: What they are.
        span: Start and end of their time.
        number: Tells this part's draws from the others'.
        known_before: Conversions that are known only later are left out.

    Raises:
        ValueError: There are none, or they cannot be read.
    """
    if section.examples is None:
        periods = _periods(store, span)
        if not periods:
            raise ValueError(
                f"the store's table periods has none that begins and ends within {span[0]} and {span[1]}: load the days that "
                "are missing, or change train_days, validate_days and evaluate_days"
            )
        return ranking.build_examples(
            store,
            periods,
            weighting=section.weighting,
            negatives=section.negatives,
            seed=section.seed * 3 + number,
            labels_known_before=known_before,
            features=section.features,
        )
    rows = _rows(store, section.examples, span)
    if not rows.num_rows:
        raise ValueError(
            f"[ranker.examples] gives no rows between {span[0]} and {span[1]}: load the days that are missing, or change "
            "train_days, validate_days and evaluate_days"
        )
    return ranking.read_examples(rows, section.examples.columns)


def fingerprint_rows(store: GraphStore, section: RankerSection, spans: Mapping[str, Span]) -> dict[str, Any]:
    """Tells whether the rows behind some parts' examples are others than they were.

    Args:
        store: The store.
        section: What the examples are.
        spans: Part -> start and end of its time.

    Returns:
        By part, a number of rows and a hash that does not depend on their order, JSON-able.
    """
    found: dict[str, Any] = {}
    if section.examples is not None:
        for name, span in spans.items():
            rows = _rows(store, section.examples, span)
            with duckdb.connect() as memory:
                memory.register("examples", rows)
                found[name] = _hashed(memory.sql(f"SELECT {_HASH} FROM examples").fetchall()[0])
        return found
    for name, span in spans.items():
        periods = _periods(store, span)
        listed = ", ".join(str(period) for period in periods) or "NULL"
        counts = [
            store.sql(f"SELECT {_HASH} FROM {table} AS examples WHERE period IN ({listed})").to_pylist()[0].values()
            for table in _TABLES
        ]
        found[name] = {"periods": periods, "tables": [_hashed(list(count)) for count in counts]}
    return found


_HASH: Final = "count(*), coalesce(bit_xor(hash(examples)), 0), coalesce(sum((hash(examples) % 4294967291)::HUGEINT), 0)"


def _hashed(values: Any) -> list[str]:
    return [str(int(value)) for value in values]


def _periods(store: GraphStore, span: Span) -> list[int]:
    """Gives the periods that begin within a span and end by its end."""
    return [
        row["period"]
        for row in load_periods(store).to_pylist()
        if row["start_time"] >= span[0] and row["start_time"] < span[1] and row["end_time"] <= span[1]
    ]


def _rows(store: GraphStore, section: ExamplesSection, span: Span) -> pa.Table:
    """Reads the rows of one's own whose time lies within a span."""
    time = quote(str(section.columns.time))
    chosen = f"WHERE {time}::TIMESTAMP >= TIMESTAMP '{span[0]}' AND {time}::TIMESTAMP < TIMESTAMP '{span[1]}'"
    if section.query is not None:
        return store.sql(f"SELECT * FROM ({section.query.rstrip().rstrip(';')}) AS given {chosen} ORDER BY ALL")
    files = str(section.files)
    reader = "read_parquet" if ".parquet" in files else "read_csv"
    with duckdb.connect() as memory:
        memory.execute("SET GLOBAL TimeZone = 'UTC'")
        return memory.sql(f"SELECT * FROM {reader}({quote_text(files)}) {chosen} ORDER BY ALL").to_arrow_table()
