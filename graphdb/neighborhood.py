"""The neighbours of one node, quickly."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa

from graphdb.layout import node_table
from graphdb.schema import Relation
from graphdb.sql import count, quote_text, run

SCHEMA = pa.schema(
    [
        ("relation", pa.string()), ("direction", pa.string()), ("type", pa.string()), ("id", pa.string()),
        ("time", pa.timestamp("us")), ("weight", pa.float32()),
    ]
)  # fmt: skip
_MAX_CACHED_NODES = 5_000_000


class IdCache:
    """External ids by idx, as text; a node type's are read once and kept: a join costs more than finding the neighbours."""

    def __init__(self) -> None:
        self._ids: dict[str, pa.Array] = {}

    def clear(self) -> None:
        """Forgets all; to be called when the store has changed."""
        self._ids.clear()

    def take(self, cursor: duckdb.DuckDBPyConnection, node: str, idx: Sequence[int]) -> list[str]:
        """The ids of some idx."""
        if node not in self._ids:
            if count(cursor, node_table(node)) > _MAX_CACHED_NODES:
                wanted = ", ".join(map(str, idx)) or "-1"
                found = dict(run(cursor, f"SELECT idx, CAST(id AS VARCHAR) FROM {node_table(node)} WHERE idx IN ({wanted})"))
                return [found[one] for one in idx]
            self._ids[node] = _ids(cursor, node)
        return [str(one) for one in self._ids[node].take(pa.array(idx, pa.int64())).to_pylist()]


def neighbors(
    cursor: duckdb.DuckDBPyConnection,
    cache: IdCache,
    idx: int,
    steps: Sequence[tuple[Relation, str, str]],
    since: dt.datetime | None,
    as_of: dt.datetime | None,
    limit: int,
) -> pa.Table:
    """The neighbours of a node over some relations, latest first.

    Args:
        cursor: Where to ask.
        cache: External ids.
        idx: The node.
        steps: Relation, direction, and FROM clause of its edges.
        since: Earliest time, within.
        as_of: Latest time, not within.
        limit: The most neighbours to return.
    """
    found = []
    for position, (relation, direction, rows) in enumerate(steps):
        own, other, kind = ("src", "dst", relation.dst) if direction == "out" else ("dst", "src", relation.src)
        columns = [other, "time" if relation.timed else "NULL", "weight" if relation.weighted else "NULL"]
        bounds = "".join(
            f" AND time {operator} TIMESTAMP {quote_text(str(bound))}"
            for bound, operator in ((since, ">="), (as_of, "<"))
            if bound is not None and relation.timed
        )
        order = f"time DESC, {other}" if relation.timed else other
        query = f"SELECT {', '.join(columns)} FROM {rows} WHERE {own} = {idx}{bounds} ORDER BY {order} LIMIT {int(limit)}"
        edges = run(cursor, query)
        ids = cache.take(cursor, kind, [edge[0] for edge in edges])
        found += [
            (
                time is None,
                -(time - _EPOCH) if time else _NONE,
                position,
                far,
                relation.name,
                direction,
                kind,
                name,
                time,
                weight,
            )
            for (far, time, weight), name in zip(edges, ids, strict=True)
        ]
    found.sort(key=lambda row: row[:4])
    latest = [row[4:] for row in found[:limit]]
    arrays = [pa.array([row[position] for row in latest], field.type) for position, field in enumerate(SCHEMA)]
    return pa.table(arrays, schema=SCHEMA)


_EPOCH = dt.datetime(1970, 1, 1)
_NONE = dt.timedelta(0)


def _ids(cursor: duckdb.DuckDBPyConnection, node: str) -> pa.Array:
    nodes = cursor.sql(f"SELECT idx, id FROM {node_table(node)} ORDER BY idx").to_arrow_table().combine_chunks()
    idx = nodes["idx"].to_numpy()
    ids = nodes["id"].combine_chunks()
    if isinstance(ids, pa.ChunkedArray):
        ids = pa.concat_arrays(ids.chunks) if ids.num_chunks else pa.array([], ids.type)
    if len(idx) == 0 or idx[-1] == len(idx) - 1:
        return ids
    positions = np.full(idx[-1] + 1, -1)
    positions[idx] = np.arange(len(idx))
    return ids.take(pa.array(positions, mask=positions < 0))
