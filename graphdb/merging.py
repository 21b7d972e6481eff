"""Kernels over edges ordered by (dst, time, src): checking the order, merging two runs, pointing at columns."""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np
from numpy.typing import NDArray

from multifacet.graphdb.threads import run_ranges

Array = NDArray[Any]

_BLOCK: Final = 4096
_MIN_RANGE: Final = 1 << 16


def is_clustered(dst: Array, time: Array | None) -> bool:
    """Whether edges are ordered by (dst, time).

    Args:
        dst: int32 [E].
        time: int64 [E], or None.
    """
    return bool(_is_ordered(dst) if time is None else _is_ordered_by_two(dst, time))


def is_ordered_by_key(dst: Array, time: Array, src: Array) -> bool:
    """Whether edges are ordered by (dst, time, src): int32, int64 and int32 [E]."""
    return bool(_is_ordered_by_key(dst, time, src))


def order_of(dst: Array, time: Array | None, src: Array) -> Array:
    """The stable order by (dst, time, src): int64 [E]."""
    return np.lexsort((src, dst) if time is None else (src, time, dst))


def order_by_column(dst: Array, num_dst: int) -> Array:
    """The stable order by dst alone, by counting: int64 [E]."""
    order = np.empty(len(dst), np.int64)
    _place_by_column(dst, np.zeros(num_dst + 1, np.int64), order)
    return order


def merged_positions(base: tuple[Array, Array, Array], delta: tuple[Array, Array, Array]) -> Array:
    """Where the edges of a short run stand when it is merged into a long one.

    Args:
        base: dst int32 [E], time int64 [E], src int32 [E], ordered by all three.
        delta: The same of the short run, [D].

    Returns:
        int64 [D], ascending, positions within the merged run of E + D.
    """
    positions = np.empty(len(delta[0]), np.int64)
    _merge(*base, *delta, positions)
    return positions


def merge(base: Array, delta: Array, positions: Array) -> Array:
    """One column of the merged run, from the columns of both and the positions of the short one."""
    merged = np.empty(len(base) + len(delta), base.dtype)
    _place(base, delta, positions, merged)
    return merged


def translated(idx: Array, row_of: Array) -> Array:
    """`row_of[idx]` on several threads: int32, in the shape of `idx`, all in range."""
    rows = np.empty(len(idx), row_of.dtype)
    run_ranges(lambda start, stop: _translate(idx, row_of, rows, start, stop), len(idx), min_size=_MIN_RANGE)
    return rows


def column_pointers(dst: Array, num_dst: int) -> Array:
    """Where each column of sorted `dst` begins: int64 [num_dst + 1]."""
    pointers = np.zeros(num_dst + 1, np.int64)
    _count(dst, pointers)
    return pointers


@numba.njit(nogil=True, cache=True)
def _translate(idx: Array, row_of: Array, rows: Array, start: int, stop: int) -> None:
    for place in range(start, stop):
        rows[place] = row_of[idx[place]]


@numba.njit(nogil=True, cache=True)
def _place_by_column(dst: Array, starts: Array, order: Array) -> None:
    for edge in range(len(dst)):
        starts[dst[edge] + 1] += 1
    for column in range(1, len(starts)):
        starts[column] += starts[column - 1]
    for edge in range(len(dst)):
        order[starts[dst[edge]]] = edge
        starts[dst[edge]] += 1


@numba.njit(nogil=True, cache=True)
def _is_ordered(dst: Array) -> bool:
    # A block without a branch in it, which the processor does many edges at a time.
    for start in range(1, len(dst), _BLOCK):
        is_ordered = True
        for edge in range(start, min(start + _BLOCK, len(dst))):
            is_ordered &= dst[edge] >= dst[edge - 1]
        if not is_ordered:
            return False
    return True


@numba.njit(nogil=True, cache=True)
def _is_ordered_by_two(dst: Array, time: Array) -> bool:
    for start in range(1, len(dst), _BLOCK):
        is_ordered = True
        for edge in range(start, min(start + _BLOCK, len(dst))):
            is_ordered &= (dst[edge] > dst[edge - 1]) | ((dst[edge] == dst[edge - 1]) & (time[edge] >= time[edge - 1]))
        if not is_ordered:
            return False
    return True


@numba.njit(nogil=True, cache=True)
def _is_ordered_by_key(dst: Array, time: Array, src: Array) -> bool:
    for edge in range(1, len(dst)):
        if _before(dst[edge], time[edge], src[edge], dst[edge - 1], time[edge - 1], src[edge - 1]):
            return False
    return True


@numba.njit(nogil=True, cache=True)
def _merge(dst: Array, time: Array, src: Array, new_dst: Array, new_time: Array, new_src: Array, positions: Array) -> None:
    edge = 0
    for new in range(len(new_dst)):
        # Gallop: the runs that a short delta skips are long.
        step = 1
        low = edge
        high = edge
        while high < len(dst) and not _before(new_dst[new], new_time[new], new_src[new], dst[high], time[high], src[high]):
            low = high + 1
            high += step
            step *= 2
        high = min(high, len(dst))
        while low < high:
            middle = (low + high) // 2
            if _before(new_dst[new], new_time[new], new_src[new], dst[middle], time[middle], src[middle]):
                high = middle
            else:
                low = middle + 1
        edge = low
        positions[new] = edge + new


@numba.njit(nogil=True, cache=True, inline="always")
def _before(dst: int, time: int, src: int, other_dst: int, other_time: int, other_src: int) -> bool:
    if dst != other_dst:
        return dst < other_dst
    if time != other_time:
        return time < other_time
    return src < other_src


@numba.njit(nogil=True, cache=True)
def _place(base: Array, delta: Array, positions: Array, merged: Array) -> None:
    start = 0
    for new in range(len(delta)):
        end = positions[new] - new
        merged[start + new : end + new] = base[start:end]
        merged[positions[new]] = delta[new]
        start = end
    merged[start + len(delta) :] = base[start:]


@numba.njit(nogil=True, cache=True)
def _count(dst: Array, pointers: Array) -> None:
    column = 0
    for edge in range(len(dst)):
        while column < dst[edge]:
            column += 1
            pointers[column] = edge
    while column < len(pointers) - 1:
        column += 1
        pointers[column] = len(dst)
