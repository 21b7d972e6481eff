"""Drawing the neighbours of many nodes along one relation."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np

from multifacet.graphdb.counter import draw_below, draw_unit, key_at
from multifacet.graphdb.threads import run_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.graphdb.sampling.adjacency import Adjacency

_MIN_EDGES_PER_THREAD: Final = 1 << 13
_NO_TIMES: Final = np.empty(0, np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Neighbors:
    """Edges drawn for a run of centre nodes, centre by centre.

    Attributes:
        edge: int64 [n], position in the adjacency.
        node: int32 [n], the edge's src idx.
        center: int64 [n], local number of the edge's dst.
    """

    edge: NDArray[np.int64]
    node: NDArray[np.int32]
    center: NDArray[np.int64]


def draw_neighbors(
    adjacency: Adjacency,
    centers: NDArray[np.int64],
    *,
    first_center: int,
    fanout: int,
    key: int,
    replace: bool = False,
    times: NDArray[np.int64] | None = None,
    latest: bool = False,
) -> Neighbors:
    """Draws up to `fanout` in-edges of each centre.

    Edges are drawn uniformly, or in proportion to their weights where the adjacency has weights. Without replacement the
    draw is successive: each next edge in proportion to its weight among those that are left. What is drawn depends on
    `key` and on the centre's position alone.

    Args:
        adjacency: The relation's in-edges.
        centers: int64 [m], dst idx; all in range.
        first_center: Local number of the first centre; the others follow.
        fanout: Edges to draw for each centre, or -1 for all of them.
        key: 64-bit key of this draw.
        replace: Whether an edge may be drawn more than once.
        times: int64 [m]; only edges strictly before are eligible. Untimed relations are eligible always.
        latest: Take the latest eligible edges rather than random ones.
    """
    if not len(centers):
        return Neighbors(edge=np.empty(0, np.int64), node=np.empty(0, np.int32), center=np.empty(0, np.int64))
    timed = times is not None and adjacency.time is not None
    edge_time = adjacency.time if timed and adjacency.time is not None else _NO_TIMES
    center_time = times if timed and times is not None else _NO_TIMES
    replace = replace and fanout >= 0
    starts, ends = np.empty(len(centers), np.int64), np.empty(len(centers), np.int64)
    offsets = np.zeros(len(centers) + 1, np.int64)
    latest_only = latest and timed and fanout >= 0

    def count(start: int, stop: int) -> None:
        _count(
            centers, adjacency.colptr, edge_time, center_time, fanout, replace, latest_only, starts, ends, offsets, start, stop
        )

    run_ranges(count, len(centers), min_size=_MIN_EDGES_PER_THREAD)
    np.cumsum(offsets, out=offsets)
    total = int(offsets[-1])
    edge = np.empty(total, np.int64)
    node = np.empty(total, np.int32)
    center = np.empty(total, np.int64)
    wide_key = np.uint64(key)
    cumulative, weight = adjacency.cumulative, adjacency.weight

    def draw(start: int, stop: int) -> None:
        if cumulative is None:
            _draw_uniform(starts, ends, offsets, wide_key, replace, edge, start, stop)
        else:
            _draw_weighted(starts, ends, offsets, wide_key, replace, cumulative, weight, edge, start, stop)
        _fill_centers(offsets, first_center, center, start, stop)
        _gather(offsets, adjacency.row, edge, node, start, stop)

    mean_edges = max(1, total // max(1, len(centers)))
    run_ranges(draw, len(centers), min_size=max(1, _MIN_EDGES_PER_THREAD // mean_edges))
    return Neighbors(edge=edge, node=node, center=center)


@numba.njit(nogil=True, cache=True)
def first_not_before(time: Any, first: int, end: int, bound: int) -> int:
    """The first position of `first:end` whose time is not before `bound`; times ascend."""
    while first < end:
        middle = (first + end) >> 1
        if time[middle] < bound:
            first = middle + 1
        else:
            end = middle
    return first


@numba.njit(nogil=True, cache=True)
def first_above(cumulative: Any, first: int, end: int, target: float) -> int:
    """The first position of `first:end` whose running sum exceeds `target`, or the last position."""
    end -= 1
    while first < end:
        middle = (first + end) >> 1
        if cumulative[middle] > target:
            end = middle
        else:
            first = middle + 1
    return first


@numba.njit(nogil=True, cache=True)
def _count(
    centers: Any,
    colptr: Any,
    edge_time: Any,
    center_time: Any,
    fanout: int,
    replace: bool,
    latest: bool,
    starts: Any,
    ends: Any,
    offsets: Any,
    start: int,
    stop: int,
) -> None:
    """The eligible edges of each centre, and how many of them to draw (at `offsets[i + 1]`)."""
    for position in range(start, stop):
        center = centers[position]
        first, end = colptr[center], colptr[center + 1]
        if len(center_time):
            end = first_not_before(edge_time, first, end, center_time[position])
        if latest:
            first = max(first, end - fanout)
        degree = end - first
        starts[position], ends[position] = first, end
        if fanout < 0:
            offsets[position + 1] = degree
        elif replace:
            offsets[position + 1] = fanout if degree else 0
        else:
            offsets[position + 1] = min(fanout, degree)


@numba.njit(nogil=True, cache=True)
def _insert(sorted_edges: Any, first: int, end: int, edge: int) -> bool:
    """Inserts `edge` into the ascending run `first:end`, unless it is there; the slot `end` is free.

    The larger ones move up while the place is looked for: one loop, whose end is the only branch that is hard to predict. They
    move back in the rare case that the edge is there.
    """
    hole = end
    while hole > first and sorted_edges[hole - 1] > edge:
        sorted_edges[hole] = sorted_edges[hole - 1]
        hole -= 1
    if hole > first and sorted_edges[hole - 1] == edge:
        for slot in range(hole, end):
            sorted_edges[slot] = sorted_edges[slot + 1]
        return False
    sorted_edges[hole] = edge
    return True


@numba.njit(nogil=True, cache=True)
def _draw_uniform(starts: Any, ends: Any, offsets: Any, key: Any, replace: bool, edges: Any, start: int, stop: int) -> None:
    for position in range(start, stop):
        out, out_end = offsets[position], offsets[position + 1]
        first = starts[position]
        degree = ends[position] - first
        count = out_end - out
        if count == 0:
            continue
        own_key, counter = key_at(key, position), 0
        if replace:
            for slot in range(out, out_end):
                drawn, counter = draw_below(own_key, counter, degree)
                edges[slot] = first + drawn
        elif count == degree:
            for offset in range(degree):
                edges[out + offset] = first + offset
        else:
            # Floyd's algorithm (Bentley and Floyd 1987): a repeated draw stands for the largest candidate so far.
            for offset in range(count):
                largest = degree - count + offset
                drawn, counter = draw_below(own_key, counter, largest + 1)
                if not _insert(edges, out, out + offset, first + drawn):
                    edges[out + offset] = first + largest


@numba.njit(nogil=True, cache=True)
def _draw_weighted(
    starts: Any,
    ends: Any,
    offsets: Any,
    key: Any,
    replace: bool,
    cumulative: Any,
    weight: Any,
    edges: Any,
    start: int,
    stop: int,
) -> None:
    largest_count = 0
    for position in range(start, stop):
        largest_count = max(largest_count, offsets[position + 1] - offsets[position])
    best_keys = np.empty(largest_count, np.float64)
    best_edges = np.empty(largest_count, np.int64)
    for position in range(start, stop):
        out, out_end = offsets[position], offsets[position + 1]
        first, end = starts[position], ends[position]
        count = out_end - out
        if count == 0:
            continue
        own_key, counter = key_at(key, position), 0
        # Eligible edges begin with the column's first, where the running sums begin too; only `latest`, which takes all
        # that it is left with, begins later.
        total = cumulative[end - 1]
        if replace:
            for slot in range(out, out_end):
                unit, counter = draw_unit(own_key, counter)
                edges[slot] = first_above(cumulative, first, end, unit * total)
        elif count == end - first:
            for offset in range(count):
                edges[out + offset] = first + offset
        else:
            _draw_successive(own_key, first, end, cumulative, weight, edges, out, count, best_keys, best_edges)


@numba.njit(nogil=True, cache=True)
def _draw_successive(
    key: Any,
    first: int,
    end: int,
    cumulative: Any,
    weight: Any,
    edges: Any,
    out: int,
    count: int,
    best_keys: Any,
    best_edges: Any,
) -> None:
    """Draws `count` of the edges `first:end`, each next one in proportion to its weight among those that are left."""
    num_drawn, counter = 0, 0
    # Rejecting the draws that repeat an edge leaves just that; it is given up where few edges have most of the weight.
    for _ in range(4 * count + 16):
        unit, counter = draw_unit(key, counter)
        if _insert(edges, out, out + num_drawn, first_above(cumulative, first, end, unit * cumulative[end - 1])):
            num_drawn += 1
            if num_drawn == count:
                return
    _draw_rest(key, counter, first, end, weight, edges, out, num_drawn, count, best_keys, best_edges)


@numba.njit(nogil=True, cache=True)
def _draw_rest(
    key: Any,
    counter: int,
    first: int,
    end: int,
    weight: Any,
    edges: Any,
    out: int,
    num_drawn: int,
    count: int,
    best_keys: Any,
    best_edges: Any,
) -> None:
    """Completes a successive draw in one pass over the edges that are left, by exponential keys.

    The smallest of Exp(1) / weight keys are a successive draw (Efraimidis and Spirakis 2006), and what is left is one
    whatever was drawn before.
    """
    wanted = count - num_drawn
    kept = 0
    drawn = out
    for edge in range(first, end):
        if drawn < out + num_drawn and edges[drawn] == edge:
            drawn += 1
            continue
        unit, counter = draw_unit(key, counter)
        rank = -np.log(unit) / weight[edge]
        if kept == wanted and rank >= best_keys[kept - 1]:
            continue
        slot = kept if kept < wanted else kept - 1
        while slot > 0 and best_keys[slot - 1] > rank:
            best_keys[slot] = best_keys[slot - 1]
            best_edges[slot] = best_edges[slot - 1]
            slot -= 1
        best_keys[slot] = rank
        best_edges[slot] = edge
        kept = min(kept + 1, wanted)
    for slot in range(wanted):
        _insert(edges, out, out + num_drawn + slot, best_edges[slot])


@numba.njit(nogil=True, cache=True)
def _fill_centers(offsets: Any, first_center: int, centers: Any, start: int, stop: int) -> None:
    for position in range(start, stop):
        for slot in range(offsets[position], offsets[position + 1]):
            centers[slot] = first_center + position


@numba.njit(nogil=True, cache=True)
def _gather(offsets: Any, row: Any, edges: Any, nodes: Any, start: int, stop: int) -> None:
    for slot in range(offsets[start], offsets[stop]):
        nodes[slot] = row[edges[slot]]
