"""Which vectors of a source belong to each row of a table, or of a shard of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class RowPlacement:
    """The positions of a source's vectors behind each row of a range.

    ::

        row        first   first + 1   first + 2
        starts     [0,     2,          2,          3]
        positions  [4, 9,                   0]           row first has two ids (a collision), the next has none

    Attributes:
        first: First row of the range.
        num_rows: Rows of the range.
        starts: Where each row's positions start, int64 or int32 [num_rows + 1]; empty if rows are positions.
        positions: Positions in the source, ascending within a row, int32; empty if rows are positions.
        num_positions: Vectors in the source.
        num_unused: Ids of the source that the id map gives no row of their own (in any range).
    """

    first: int
    num_rows: int
    starts: NDArray[Any]
    positions: NDArray[np.int32]
    num_positions: int
    num_unused: int

    @classmethod
    def in_order(cls, num_positions: int, *, first: int, num_rows: int) -> Self:
        """Places position i in row i."""
        empty = np.zeros(0, np.int32)
        return cls(first=first, num_rows=num_rows, starts=empty, positions=empty, num_positions=num_positions, num_unused=0)

    @classmethod
    def by_rows(cls, rows: NDArray[np.int32], *, first: int, num_rows: int) -> Self:
        """Places positions in the rows that they are given.

        Args:
            rows: The rows of each position [n, rows a position], counted in the whole table: -1 for one that the table has no
                row for, less for one that does not count at all. A row that a position has twice counts once.
            first: First row of the range.
            num_rows: Rows of the range.
        """
        starts = np.zeros(num_rows + 1, np.int32 if rows.size < np.iinfo(np.int32).max else np.int64)
        num_unused = int(_count(rows, first, num_rows, starts))
        positions = np.empty(int(starts[-1]), np.int32)
        _place(rows, first, num_rows, starts, positions)
        return cls(
            first=first,
            num_rows=num_rows,
            starts=starts,
            positions=positions,
            num_positions=len(rows),
            num_unused=num_unused,
        )

    def empty_rows(self) -> NDArray[np.int64]:
        """Gives the rows, counted from `first`, that no vector belongs to."""
        if len(self.starts):
            return np.flatnonzero(self.starts[1:] == self.starts[:-1])
        return np.arange(max(0, min(self.num_positions - self.first, self.num_rows)), self.num_rows)


@numba.njit(nogil=True, cache=True)
def _is_repeat(rows: Any, position: int, column: int) -> bool:
    for earlier in range(column):  # noqa: SIM110  (numba has no generators)
        if rows[position, earlier] == rows[position, column]:
            return True
    return False


@numba.njit(nogil=True, cache=True)
def _count(rows: Any, first: int, num_rows: int, starts: Any) -> int:
    """Fills `starts` of a range; gives the number of positions without a row."""
    num_unused = 0
    for position in range(len(rows)):
        for column in range(rows.shape[1]):
            row = rows[position, column]
            if row == -1:
                num_unused += 1
            elif first <= row < first + num_rows and not _is_repeat(rows, position, column):
                starts[row - first + 1] += 1
    for row in range(num_rows):
        starts[row + 1] += starts[row]
    return num_unused


@numba.njit(nogil=True, cache=True)
def _place(rows: Any, first: int, num_rows: int, starts: Any, positions: Any) -> None:
    # Each row's start serves as its cursor, and ends where the next row starts: moved back afterwards.
    for position in range(len(rows)):
        for column in range(rows.shape[1]):
            row = rows[position, column]
            if first <= row < first + num_rows and not _is_repeat(rows, position, column):
                positions[starts[row - first]] = position
                starts[row - first] += 1
    for row in range(num_rows, 0, -1):
        starts[row] = starts[row - 1]
    starts[0] = 0
