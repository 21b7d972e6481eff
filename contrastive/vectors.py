"""Vectors as they are compared, made of table rows, and the way of a gradient back into the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.tables.pairs import PairIndex

__all__ = ["History", "gather", "normalize_", "normalize_gradient_"]


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The part of a query's vector that is the mean of the rows of its items (SimpleX; Mao et al., CIKM 2021).

        (1 - share) * own row + share * mean of the items' rows

    With a share of 1 a query has no row of its own to learn: it is what it has come to (FISM; Kabbur et al., KDD 2013).

    Attributes:
        share: 0 to 1.
        items: the items of each query.
    """

    share: float
    items: PairIndex

    def blend_(self, vectors: NDArray[np.float32], queries: NDArray[np.int32], table: NDArray[np.float32]) -> None:
        """Turn the queries' own rows into their vectors.

        Args:
            vectors: own rows, float32 [G, D]; changed in place.
            queries: which queries, int32 [G].
            table: the items' table, float32 [num_items, D].
        """
        if self.share:
            _blend(vectors, queries, self.items.indptr, self.items.indices, table, np.float32(self.share))

    def spread(
        self, gradients: NDArray[np.float32], queries: NDArray[np.int32], slot_of_row: NDArray[np.int32], num_slots: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Carry the gradients of the queries' vectors over to the rows of their items.

        Args:
            gradients: float32 [G, D].
            queries: which queries, int32 [G].
            slot_of_row: place of each item's row, int32 [num_items]; -1 for those that have none yet and get one here. The
                caller clears those again.
            num_slots: places that are taken.

        Returns:
            The rows that got the places from `num_slots` on, int32 [n], and the gradients of all places,
            float32 [num_slots + n, D].
        """
        rows = _extend(queries, self.items.indptr, self.items.indices, slot_of_row, num_slots)
        sums = np.zeros((num_slots + len(rows), gradients.shape[1]), dtype=np.float32)
        _spread(gradients, queries, self.items.indptr, self.items.indices, slot_of_row, np.float32(self.share), sums)
        return rows, sums


def gather(table: NDArray[np.float32], rows: NDArray[np.int32]) -> NDArray[np.float32]:
    """Copy rows, float32 [n, D]; their numbers are not checked."""
    block = np.empty((len(rows), table.shape[1]), dtype=np.float32)
    _gather(table, rows, block)
    return block


def normalize_(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length 1 in place, and give the lengths, float32 [n]; rows of zeros stay, with length 0."""
    lengths = np.empty(len(vectors), dtype=np.float32)
    _normalize(vectors, lengths)
    return lengths


def normalize_gradient_(
    gradients: NDArray[np.float32], units: NDArray[np.float32], lengths: NDArray[np.float32], factor: float
) -> None:
    """Turn gradients of `normalize_`'s result into those of what it was given, times a factor, in place.

    Args:
        gradients: float32 [n, D].
        units: rows of length 1, float32 [n, D].
        lengths: float32 [n]; a row of length 0 gets a gradient of 0.
        factor: what all is multiplied by.
    """
    _normalize_gradient(gradients, units, lengths, np.float32(factor))


@numba.njit(nogil=True, cache=True)
def _gather(table: Any, rows: Any, block: Any) -> None:
    for position in range(len(rows)):
        source = table[rows[position]]
        target = block[position]
        for column in range(len(target)):
            target[column] = source[column]


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _blend(vectors: Any, queries: Any, indptr: Any, indices: Any, table: Any, share: Any) -> None:
    dim = vectors.shape[1]
    total = np.empty(dim, dtype=np.float32)
    for number in range(len(queries)):
        begin, end = indptr[queries[number]], indptr[queries[number] + 1]
        total[:] = np.float32(0.0)
        for position in range(begin, end):
            row = table[indices[position]]
            for column in range(dim):
                total[column] += row[column]
        weight = share / np.float32(max(end - begin, 1))
        vector = vectors[number]
        for column in range(dim):
            vector[column] = (np.float32(1.0) - share) * vector[column] + weight * total[column]


@numba.njit(nogil=True, cache=True)
def _extend(queries: Any, indptr: Any, indices: Any, slot_of_row: Any, num_slots: int) -> Any:
    room = 0
    for query in queries:
        room += indptr[query + 1] - indptr[query]
    rows = np.empty(room, dtype=np.int32)
    count = 0
    for query in queries:
        for position in range(indptr[query], indptr[query + 1]):
            row = indices[position]
            if slot_of_row[row] < 0:
                slot_of_row[row] = num_slots + count
                rows[count] = row
                count += 1
    return rows[:count].copy()


@numba.njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _spread(gradients: Any, queries: Any, indptr: Any, indices: Any, slot_of_row: Any, share: Any, sums: Any) -> None:
    dim = gradients.shape[1]
    for number in range(len(queries)):
        begin, end = indptr[queries[number]], indptr[queries[number] + 1]
        weight = share / np.float32(max(end - begin, 1))
        gradient = gradients[number]
        for position in range(begin, end):
            total = sums[slot_of_row[indices[position]]]
            for column in range(dim):
                total[column] += weight * gradient[column]


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _normalize(vectors: Any, lengths: Any) -> None:
    for number in range(len(vectors)):
        vector = vectors[number]
        squares = np.float32(0.0)
        for column in range(len(vector)):
            squares += vector[column] * vector[column]
        length = np.sqrt(squares)
        lengths[number] = length
        inverse = np.float32(1.0) / length if length > 0 else np.float32(0.0)
        for column in range(len(vector)):
            vector[column] *= inverse


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _normalize_gradient(gradients: Any, units: Any, lengths: Any, factor: Any) -> None:
    for number in range(len(gradients)):
        gradient, unit = gradients[number], units[number]
        along = np.float32(0.0)
        for column in range(len(gradient)):
            along += gradient[column] * unit[column]
        scale = factor / lengths[number] if lengths[number] > 0 else np.float32(0.0)
        for column in range(len(gradient)):
            gradient[column] = scale * (gradient[column] - along * unit[column])
