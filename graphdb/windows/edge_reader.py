"""Reading a window's edges in their order: clustered rows as they stand, others merged in or sorted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa

from multifacet.graphdb.merging import (
    Array,
    is_clustered,
    is_ordered_by_key,
    merge,
    merged_positions,
    order_by_column,
    order_of,
)
from multifacet.graphdb.schema import Relation
from multifacet.graphdb.sql import quote
from multifacet.graphdb.storage.layout import key_columns
from multifacet.graphdb.windows.members import Members
from multifacet.graphdb.windows.window import Window

logger = logging.getLogger(__name__)

_DTYPES: Final = {"src": np.int32, "dst": np.int32, "time": np.int64, "weight": np.float32}


class EdgeReader:
    """Reads the edges of a window's relations.

    Args:
        cursor: Within the view's transaction.
        windows: Relation name -> the rows that the window sees.
        members: Node type -> the nodes that belong to the window, which number the edges' ends.
    """

    def __init__(
        self, cursor: duckdb.DuckDBPyConnection, windows: Mapping[str, Window], members: Mapping[str, Members]
    ) -> None:
        self._cursor = cursor
        self._windows = windows
        self._members = members

    def read(
        self, relation: Relation, names: Sequence[str], properties: Sequence[str] = ()
    ) -> tuple[dict[str, Array], pa.Table]:
        """Read columns of a relation's edges as arrays, and properties of the same edges as they are stored, in one order.

        The order is by dst, and by time and src where the names include them.

        Args:
            relation: The relation.
            names: Of src, dst, time and weight.
            properties: Names of its properties.
        """
        window = self._windows[relation.name]
        # Only a merge, or rows in any order, need the whole key.
        is_whole = window.delta is not None or not window.keeps_order
        wanted = list(dict.fromkeys([*key_columns(relation), *names])) if is_whole else names
        base, base_properties = self._fetch(relation, window.base, wanted, properties)
        base_order = None
        if not window.keeps_order and (relation.duplicates == "all" or not is_ordered_by_key(*_keys(base))):
            dst, time, src = _keys(base)
            # Edges of one key, which "all" keeps, have no other order than their weights'.
            base_order = np.lexsort((*([base["weight"]] if "weight" in base else []), src, time, dst))
            base = {name: column[base_order] for name, column in base.items()}
        is_ordered = is_clustered(base["dst"], base.get("time"))
        if not is_ordered:
            # Days come one after the other, each in order: then a stable sort by dst is all that it takes.
            base_order = order_by_column(base["dst"], self._members[relation.dst].num_rows)
            base = {name: column[base_order] for name, column in base.items()}
            is_ordered = is_clustered(base["dst"], base.get("time"))
        if not is_ordered:
            logger.warning(
                "%s is not clustered; its edges are sorted, which takes a while: GraphStore.compact() mends it", relation.name
            )
            order = order_of(base["dst"], base.get("time"), base["src"])
            base_order = order if base_order is None else base_order[order]
            base = {name: column[order] for name, column in base.items()}
        if window.delta is None:
            base = {name: base[name] for name in names}
            return base, base_properties if base_order is None else base_properties.take(pa.array(base_order))
        delta, delta_properties = self._fetch(relation, window.delta, wanted, properties)
        num_base = len(base["dst"])
        order = order_of(delta["dst"], delta.get("time"), delta["src"])
        delta = {name: column[order] for name, column in delta.items()}
        positions = merged_positions(_keys(base), _keys(delta))
        columns = {name: merge(base[name], delta[name], positions) for name in names}
        if not properties:
            return columns, base_properties
        merged_order = merge(np.arange(num_base) if base_order is None else base_order, num_base + order, positions)
        return columns, pa.concat_tables([base_properties, delta_properties]).take(pa.array(merged_order))

    def stream(
        self, relation: Relation, names: Sequence[str], batch_rows: int, expressions: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, Array]]:
        """Read columns of a relation's edges in parts and in any order: memory for one part, however many edges there are.

        The cursor is busy until the last part has been read.

        Args:
            relation: The relation.
            names: Of src, dst, time and weight.
            batch_rows: Edges a part, at most.
            expressions: Further columns: a name and the SQL of a UBIGINT that is computed of each edge.
        """
        further = dict(expressions or {})
        selected = [*map(_selected, names), *(f"{sql} AS {quote(name)}" for name, sql in further.items())]
        query = f"SELECT {', '.join(selected)} FROM {self._windows[relation.name].rows}"
        for batch in self._cursor.sql(query).to_arrow_reader(batch_rows):
            table = pa.Table.from_batches([batch])
            columns = {name: numbers(table, name, _DTYPES[name]) for name in names}
            columns |= {name: numbers(table, name, np.uint64) for name in further}
            yield self._to_rows(relation, columns)

    def _fetch(
        self, relation: Relation, rows: str, names: Sequence[str], properties: Sequence[str]
    ) -> tuple[dict[str, Array], pa.Table]:
        selected = ", ".join([*map(_selected, names), *map(quote, properties)])
        table = self._cursor.sql(f"SELECT {selected} FROM {rows}").to_arrow_table()
        columns = {name: numbers(table, name, _DTYPES[name]) for name in names}
        return self._to_rows(relation, columns), table.select(list(properties))

    def _to_rows(self, relation: Relation, columns: dict[str, Array]) -> dict[str, Array]:
        # Rows ascend with idx: edges stay in their order.
        for end, name in (("src", relation.src), ("dst", relation.dst)):
            if end in columns:
                columns[end] = self._members[name].rows(columns[end])
        return columns


def _selected(name: str) -> str:
    return "CAST(weight AS FLOAT) AS weight" if name == "weight" else name


def numbers(table: pa.Table, name: str, dtype: Any) -> Array:
    """Give one writable, contiguous copy of a column without nulls."""
    column = np.empty(table.num_rows, dtype)
    start = 0
    for chunk in table[name].chunks:
        values = chunk.cast(pa.int64()) if pa.types.is_timestamp(chunk.type) else chunk
        column[start : start + len(chunk)] = values.to_numpy(zero_copy_only=True)
        start += len(chunk)
    return column


def _keys(columns: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """Give dst, time (zeros where there is none) and src."""
    dst = columns["dst"]
    return dst, columns["time"] if "time" in columns else np.zeros(len(dst), np.int64), columns["src"]
