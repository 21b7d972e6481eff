"""The neighbours of one node, quickly."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa

from multifacet.graphdb.layout import node_table
from multifacet.graphdb.reach import Step, ends, union_of
from multifacet.graphdb.sql import count, quote_text, run

SCHEMA = pa.schema(
    [
        ("relation", pa.string()), ("direction", pa.string()), ("type", pa.string()), ("id", pa.string()),
        ("time", pa.timestamp("us")), ("weight", pa.float32()),
    ]
)  # fmt: skip
_MAX_CACHED_NODES = 5_000_000
#: `epoch_us(time)`, which is an integer beyond the years that Python can hold but null for DuckDB's infinities, with those.
_ENDLESS = "coalesce(epoch_us(time), if(time > TIMESTAMP '1970-01-01', 9223372036854775807, -9223372036854775807))"
#: A query over one relation costs about as much as finding out whether it is needed.
FEW_STEPS = 8


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
    steps: Sequence[Step],
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
    edges = []
    for position in _holding(cursor, idx, steps):
        edges += _edges(cursor, idx, position, steps[position], since, as_of, limit)
    edges.sort(key=lambda edge: edge[:4])
    latest = edges[:limit]
    positions = [edge[2] for edge in latest]
    types = {position: ends(*steps[position][:2])[2] for position in set(positions)}
    times = pa.array([None if is_untimed else -backwards for is_untimed, backwards, *_ in latest], pa.int64())
    return pa.table(
        [
            pa.array([steps[position][0].name for position in positions], pa.string()),
            pa.array([steps[position][1] for position in positions], pa.string()),
            pa.array([types[position] for position in positions], pa.string()),
            pa.array(_ids_of(cursor, cache, [(types[edge[2]], edge[3]) for edge in latest]), pa.string()),
            times.cast(pa.timestamp("us")),
            pa.array([edge[4] for edge in latest], pa.float32()),
        ],
        schema=SCHEMA,
    )


def _edges(
    cursor: duckdb.DuckDBPyConnection,
    idx: int,
    position: int,
    step: Step,
    since: dt.datetime | None,
    as_of: dt.datetime | None,
    limit: int,
) -> list[tuple[bool, int, int, int, float | None]]:
    """The latest edges of a step, as they are sorted: untimed, time backwards, position of the step, far end; and weight."""
    relation, direction, rows = step
    own, other, _ = ends(relation, direction)
    weight = "weight" if relation.weighted else "NULL"
    bounds = "".join(
        f" AND time {operator} TIMESTAMP {quote_text(str(bound))}"
        for bound, operator in ((since, ">="), (as_of, "<"))
        if bound is not None and relation.timed
    )
    order = f"time DESC, {other}" if relation.timed else other
    found = f"FROM {rows} WHERE {own} = {idx}{bounds} ORDER BY {order} LIMIT {int(limit)}"
    if not relation.timed:
        return [(True, 0, position, far, weight) for far, weight in run(cursor, f"SELECT {other}, {weight} {found}")]
    edges = run(cursor, f"SELECT {other}, epoch_us(time), {weight} {found}")
    if any(time is None for _, time, _ in edges):
        edges = run(cursor, f"SELECT {other}, {_ENDLESS}, {weight} {found}")
    return [(False, -time, position, far, weight) for far, time, weight in edges]


def _ids_of(cursor: duckdb.DuckDBPyConnection, cache: IdCache, nodes: Sequence[tuple[str, int]]) -> list[str]:
    places: dict[str, list[int]] = {}
    for place, (kind, _) in enumerate(nodes):
        places.setdefault(kind, []).append(place)
    ids = [""] * len(nodes)
    for kind, own in places.items():
        for place, name in zip(own, cache.take(cursor, kind, [nodes[place][1] for place in own]), strict=True):
            ids[place] = name
    return ids


def _holding(cursor: duckdb.DuckDBPyConnection, idx: int, steps: Sequence[Step]) -> Sequence[int]:
    """The positions of those steps that lead from the node: where there are many, one query finds the few to ask."""
    if len(steps) <= FEW_STEPS:
        return range(len(steps))
    found = run(cursor, f"SELECT DISTINCT step FROM {union_of(steps)} WHERE near = {idx} ORDER BY step")
    return [step for (step,) in found]


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
