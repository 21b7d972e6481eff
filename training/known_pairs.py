"""The distinct (left, right) pairs of a set of edges, looked up by the left side."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PairIndex", "check_rows"]

_MAX_ROWS: Final = 1 << 31  # rows are int32


class PairIndex:
    """Compressed sparse rows of distinct pairs: the right rows known for each left row, ascending.

    Used for the accidental hits of sampled negatives, for the filter of filtered ranks, and for the items that a user
    has seen.

    Args:
        left: left rows, int [E]; repeats are fine.
        right: right rows, int [E].
        num_left: rows of the left table.
        num_right: rows of the right table.

    Raises:
        ValueError: if the columns' lengths differ, a table has more rows than int32 names, or a row lies outside its table.

    Example:
        >>> pairs = PairIndex(np.array([0, 2, 0, 0]), np.array([3, 1, 1, 3]), num_left=3, num_right=4)
        >>> pairs.indptr.tolist(), pairs.indices.tolist()
        ([0, 2, 2, 3], [1, 3, 1])
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]

    def __init__(self, left: NDArray[Any], right: NDArray[Any], *, num_left: int, num_right: int) -> None:
        check_rows(left, right, num_left=num_left, num_right=num_right)
        keys = np.sort(left.astype(np.int64) * num_right + right)
        keys = keys[np.concatenate([np.ones(min(1, len(keys)), dtype=np.bool_), keys[1:] != keys[:-1]])]
        self.num_left = num_left
        self.num_right = num_right
        self.indices = (keys % num_right).astype(np.int32)
        counts = np.bincount(keys // num_right, minlength=num_left)
        self.indptr = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])

    @classmethod
    def from_sorted(cls, indptr: NDArray[np.int64], indices: NDArray[np.int32], *, num_right: int) -> PairIndex:
        """Take distinct pairs that are in order already, without a copy.

        Args:
            indptr: where each left row's pairs begin, int64 [num_left + 1].
            indices: right rows, ascending within a left row, int32 [indptr[-1]].
            num_right: rows of the right table.

        Raises:
            ValueError: if the pointers do not end where the pairs do.
        """
        if indptr[-1] != len(indices):
            raise ValueError(f"indptr ends at {indptr[-1]}, but there are {len(indices)} pairs")
        pairs = cls.__new__(cls)
        pairs.indptr, pairs.indices = indptr, indices
        pairs.num_left, pairs.num_right = len(indptr) - 1, num_right
        return pairs

    @property
    def num_pairs(self) -> int:
        """Distinct pairs."""
        return len(self.indices)

    def row(self, left: int) -> NDArray[np.int32]:
        """Give the right rows known for one left row, ascending."""
        return self.indices[self.indptr[left] : self.indptr[left + 1]]

    def left(self) -> NDArray[np.int32]:
        """Give the left row of each pair, int32 [num_pairs], beside `indices`."""
        return np.repeat(np.arange(self.num_left, dtype=np.int32), np.diff(self.indptr))

    @cached_property
    def transposed(self) -> PairIndex:
        """The same pairs, looked up by the right side; sorted at the first use."""
        return PairIndex(self.indices, self.left(), num_left=self.num_right, num_right=self.num_left)

    def contains(self, left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.bool_]:
        """Say for each pair whether it is known, bool [n]."""
        keys = self.left().astype(np.int64) * self.num_right + self.indices
        wanted = left.astype(np.int64) * self.num_right + right
        positions = np.searchsorted(keys, wanted)
        inside = positions < len(keys)
        found = np.zeros(len(wanted), dtype=np.bool_)
        found[inside] = keys[positions[inside]] == wanted[inside]
        return found

    def __repr__(self) -> str:
        return f"PairIndex(left={self.num_left}, right={self.num_right}, pairs={self.num_pairs})"


def check_rows(left: NDArray[Any], right: NDArray[Any], *, num_left: int, num_right: int) -> None:
    """Check the columns of pairs.

    Raises:
        ValueError: if the columns' lengths differ or a row lies outside its table.
    """
    if left.shape != right.shape or left.ndim != 1:
        raise ValueError(f"pairs need two columns of one length, got shapes {left.shape} and {right.shape}")
    for name, num_rows in (("left", num_left), ("right", num_right)):
        if num_rows > _MAX_ROWS:
            raise ValueError(f"the {name} table has {num_rows} rows, and pairs name at most {_MAX_ROWS}")
    for name, rows, num_rows in (("left", left, num_left), ("right", right, num_right)):
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= num_rows):
            raise ValueError(f"{name} rows lie in 0..{num_rows - 1}, got {rows.min()}..{rows.max()}")
