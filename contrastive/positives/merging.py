"""Edges of several relations as distinct pairs of query and item, in memory that is proportional to the edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["EdgeColumns", "merge_edges"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeColumns:
    """Edges from queries to items, in any order.

    Attributes:
        queries: int32 [E].
        items: int32 [E].
        weights: float [E], or one weight for all of them, [1].
        times: microseconds since the epoch, int64 [E], or one for all of them, [1].
        repetitions: how often each edge stands there, float64 [E], finite and not negative; None for once.
    """

    queries: NDArray[np.int32]
    items: NDArray[np.int32]
    weights: NDArray[Any]
    times: NDArray[np.int64]
    repetitions: NDArray[np.float64] | None = None


def merge_edges(
    parts: Sequence[EdgeColumns], *, num_queries: int, with_times: bool
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32], NDArray[np.int64] | None]:
    """Sum edges into distinct pairs, ordered by (query, item), by counting and not by sorting all of them.

    Edges go straight to their query's place, where they are put in order: 12 bytes an edge beside the columns given (20 with
    times, 4 more with repetitions), whatever the numbers of queries and items. An edge that stands there w times weighs as
    much as w edges, to the last bit where w is an integer. One that stands there zero times is none.

    Args:
        parts: the edges.
        num_queries: rows of the queries' table.
        with_times: whether to keep the pairs' first times.

    Returns:
        Where each query's pairs begin, int64 [num_queries + 1]; the items, int32 [P]; the sums of weights, float32 [P]; and
        the first times, int64 [P], or None.
    """
    ends = np.zeros(num_queries + 1, dtype=np.int64)
    parts = [_without_absent(part) for part in parts]
    for part in parts:
        _count(part.queries, ends)
    np.cumsum(ends, out=ends)
    num_edges = int(ends[-1])
    items = np.empty(num_edges, dtype=np.int32)
    repeated = any(part.repetitions is not None for part in parts)
    # A repeated edge's weight is a product, which single precision would round before it is summed.
    weights: NDArray[Any] = np.empty(num_edges, dtype=np.float64 if repeated else np.float32)
    times = np.empty(num_edges if with_times else 0, dtype=np.int64)
    begins = ends[:-1].copy()
    for part in parts:
        _place(part.queries, part.items, _edge_weights(part), part.times, begins, items, weights, times)
    indptr = _merge_rows(ends, items, weights, times)
    num_pairs = int(indptr[-1])
    # What the arrays have beyond the pairs is given back, and not kept alive by a view.
    for column in (items, weights, times):
        column.resize(num_pairs if len(column) else 0, refcheck=False)
    return indptr, items, weights.astype(np.float32, copy=False), times if with_times else None


def _without_absent(part: EdgeColumns) -> EdgeColumns:
    """Drop the edges that stand there zero times."""
    if part.repetitions is None or (part.repetitions > 0).all():
        return part
    kept = part.repetitions > 0
    weights, times = (column[kept] if len(column) > 1 else column for column in (part.weights, part.times))
    return EdgeColumns(
        queries=part.queries[kept], items=part.items[kept], weights=weights, times=times, repetitions=part.repetitions[kept]
    )


def _edge_weights(part: EdgeColumns) -> NDArray[Any]:
    if part.repetitions is None:
        return part.weights
    weights: NDArray[np.float64] = part.weights.astype(np.float32).astype(np.float64) * part.repetitions
    return weights


@numba.njit(nogil=True, cache=True)
def _count(queries: Any, counts: Any) -> None:
    """Count the edges of query q at place q + 1."""
    for query in queries:
        counts[query + 1] += 1


@numba.njit(nogil=True, cache=True)
def _place(
    queries: Any, items: Any, edge_weights: Any, edge_times: Any, begins: Any, placed: Any, weights: Any, times: Any
) -> None:
    weight_step, time_step = np.int64(len(edge_weights) > 1), np.int64(len(edge_times) > 1)
    for edge in range(len(queries)):
        place = begins[queries[edge]]
        begins[queries[edge]] = place + 1
        placed[place] = items[edge]
        weights[place] = edge_weights[edge * weight_step]
        if len(times):
            times[place] = edge_times[edge * time_step]


@numba.njit(nogil=True, cache=True)
def _merge_rows(ends: Any, items: Any, weights: Any, times: Any) -> Any:
    """Put each query's edges in order of item, and merge those of one item, to the front of the same arrays."""
    indptr = np.zeros(len(ends), dtype=np.int64)
    count = 0
    for query in range(len(ends) - 1):
        begin, end = ends[query], ends[query + 1]
        ascends = True
        for place in range(begin + 1, end):
            if items[place] < items[place - 1]:
                ascends = False
                break
        if not ascends:
            order = begin + np.argsort(items[begin:end], kind="mergesort")
            items[begin:end] = items[order]
            weights[begin:end] = weights[order]
            if len(times):
                times[begin:end] = times[order]
        first, total = count, 0.0
        for place in range(begin, end):
            if count > first and items[count - 1] == items[place]:
                # In double precision: an item may have come of thousands of edges.
                total += weights[place]
                if len(times):
                    times[count - 1] = min(times[count - 1], times[place])
            else:
                total = np.float64(weights[place])
                items[count] = items[place]
                if len(times):
                    times[count] = times[place]
                count += 1
            weights[count - 1] = total
        indptr[query + 1] = count
    return indptr
