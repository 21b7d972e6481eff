"""Positions sorted by the row that each has: a counting sort in parts that fit the cache, by all threads.

A plain counting sort touches memory at random twice for each position. Here positions are first dealt out to parts of the rows'
range, each thread its own stretch of positions in order, and each part is then sorted where its counters are in the cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np

from multifacet.tables.threads import num_ranges, run_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["sort_by_row"]

_PART_ROWS_BITS: Final = 15  # counters of a part: 128 KiB
_MIN_POSITIONS_PER_THREAD: Final = 1 << 16


def sort_by_row(rows: NDArray[np.int32], *, first: int, num_rows: int) -> tuple[NDArray[Any], NDArray[np.int32], int]:
    """Sort positions by row.

    Args:
        rows: The rows of each position, int32 [n, rows a position]; negative ones are none. A row that a position has twice
            counts once.
        first: First row of the range that is sorted.
        num_rows: Rows of the range.

    Returns:
        Where each row's positions start, int32 or int64 [num_rows + 1]; the positions, ascending within a row, int32; and how
        often -1 stands in `rows`.
    """
    bits = _PART_ROWS_BITS
    num_parts = max(1, (num_rows + (1 << bits) - 1) >> bits)
    threads = num_ranges(len(rows), _MIN_POSITIONS_PER_THREAD)
    bounds = np.array([len(rows) * part // threads for part in range(threads + 1)], np.int64)
    counts = np.zeros((threads, num_parts), np.int64)
    unused = np.zeros(threads, np.int64)

    def count(start: int, stop: int) -> None:
        for thread in range(start, stop):
            unused[thread] = _count(rows, bounds[thread], bounds[thread + 1], first, num_rows, bits, counts[thread])

    run_ranges(count, threads, min_size=1)
    # Part after part, and within a part thread after thread: positions stay in order.
    places = np.cumsum(counts.T.reshape(-1)).reshape(num_parts, threads)
    total = int(places[-1, -1])
    begins = np.concatenate([np.zeros(1, np.int64), places[:, -1]])
    cursors = np.ascontiguousarray((places - counts.T).T)
    dealt_rows, dealt = np.empty(total, np.int32), np.empty(total, np.int32)

    def deal(start: int, stop: int) -> None:
        for thread in range(start, stop):
            _deal(rows, bounds[thread], bounds[thread + 1], first, num_rows, bits, cursors[thread], dealt_rows, dealt)

    run_ranges(deal, threads, min_size=1)
    starts = np.empty(num_rows + 1, np.int32 if rows.size < np.iinfo(np.int32).max else np.int64)
    positions = np.empty(total, np.int32)

    def sort(start: int, stop: int) -> None:
        _sort_parts(dealt_rows, dealt, begins, bits, num_rows, starts, positions, start, stop)

    run_ranges(sort, num_parts, min_size=1)
    starts[num_rows] = total
    return starts, positions, int(unused.sum())


@numba.njit(nogil=True, cache=True)
def _counts_here(rows: Any, position: int, column: int, first: int, num_rows: int) -> bool:
    row = rows[position, column]
    if not first <= row < first + num_rows:
        return False
    for earlier in range(column):  # noqa: SIM110  (numba has no generators)
        if rows[position, earlier] == row:
            return False
    return True


@numba.njit(nogil=True, cache=True)
def _count(rows: Any, start: int, stop: int, first: int, num_rows: int, bits: int, counts: Any) -> int:
    unused = 0
    for position in range(start, stop):
        for column in range(rows.shape[1]):
            unused += rows[position, column] == -1
            if _counts_here(rows, position, column, first, num_rows):
                counts[(rows[position, column] - first) >> bits] += 1
    return unused


@numba.njit(nogil=True, cache=True)
def _deal(
    rows: Any, start: int, stop: int, first: int, num_rows: int, bits: int, cursors: Any, dealt_rows: Any, dealt: Any
) -> None:
    for position in range(start, stop):
        for column in range(rows.shape[1]):
            if _counts_here(rows, position, column, first, num_rows):
                row = rows[position, column] - first
                place = cursors[row >> bits]
                cursors[row >> bits] = place + 1
                dealt_rows[place] = row
                dealt[place] = position


@numba.njit(nogil=True, cache=True)
def _sort_parts(
    dealt_rows: Any, dealt: Any, begins: Any, bits: int, num_rows: int, starts: Any, positions: Any, start: int, stop: int
) -> None:
    for part in range(start, stop):
        low = part << bits
        high = min(low + (1 << bits), num_rows)
        counts = np.zeros(high - low + 1, np.int32)
        begin, end = begins[part], begins[part + 1]
        for place in range(begin, end):
            counts[dealt_rows[place] - low + 1] += 1
        for row in range(high - low):
            starts[low + row] = begin + counts[row]
            counts[row + 1] += counts[row]
        for place in range(begin, end):
            row = dealt_rows[place] - low
            positions[begin + counts[row]] = dealt[place]
            counts[row] += 1
