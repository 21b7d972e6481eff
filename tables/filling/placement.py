"""Which vectors of a source belong to each row of a table, or of a shard of it."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from multifacet.tables.filling.row_order import sort_by_row

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
        starts: Where each row's positions start, int64 or int32 [num_rows + 1]; empty if each row has one position at most.
        positions: Positions in the source, ascending within a row, int32; without `starts` each row's own [num_rows], -1 where
            it has none; empty if rows are positions.
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
        starts, positions, num_unused = sort_by_row(rows, first=first, num_rows=num_rows)
        return cls(
            first=first,
            num_rows=num_rows,
            starts=starts,
            positions=positions,
            num_positions=len(rows),
            num_unused=num_unused,
        )

    @classmethod
    def one_each(cls, positions: NDArray[np.int32], *, first: int, num_positions: int, num_unused: int) -> Self:
        """Places at most one position in each row.

        Args:
            positions: Each row's position, int32 [num_rows]; -1 where it has none.
            first: First row of the range.
            num_positions: Vectors in the source.
            num_unused: Ids of the source without a row.
        """
        return cls(
            first=first,
            num_rows=len(positions),
            starts=np.zeros(0, np.int32),
            positions=positions,
            num_positions=num_positions,
            num_unused=num_unused,
        )

    @cached_property
    def empty_rows(self) -> NDArray[np.int64]:
        """The rows, counted from `first`, that no vector belongs to."""
        if len(self.starts):
            return np.flatnonzero(self.starts[1:] == self.starts[:-1])
        if len(self.positions):
            return np.flatnonzero(self.positions < 0)
        return np.arange(max(0, min(self.num_positions - self.first, self.num_rows)), self.num_rows)

    def filled_rows(self, number: int) -> NDArray[np.int64]:
        """Gives some rows, counted from `first`, that a vector belongs to.

        Args:
            number: How many; fewer where there are fewer.

        Returns:
            int64 [at most `number`], ascending, each once, spread over the range.
        """
        num_filled = self.num_rows - len(self.empty_rows)
        number = min(number, num_filled)
        places = [place * num_filled // number for place in range(number)]
        # Before the k-th filled row lie k filled ones, and the empty ones that have at most k filled ones before them.
        empty = self.empty_rows
        shifts = [bisect_right(range(len(empty)), place, key=lambda index: int(empty[index]) - index) for place in places]
        return np.array(places, np.int64) + np.array(shifts, np.int64)
