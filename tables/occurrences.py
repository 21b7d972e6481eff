"""Gradients of the places where rows occur, summed by row and applied by Adagrad in one pass over them.

A batch names a row in many places: as an end of several edges, as a negative of several chunks. `Occurrences` orders the
places by row once; `update_rows` and `update_cells` then walk them row by row: sum, square, update, with no array of sums in
between. A row's places are summed in ascending order by one thread, so the result does not depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np

from multifacet.tables.counters import random_bits, random_stream
from multifacet.tables.halves import load, store_stochastically
from multifacet.tables.prefetch import prefetch
from multifacet.tables.threads import take_turn

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Occurrences", "sum_rows", "update_cells", "update_rows"]

_ROWS_A_TURN: Final = 128
_AHEAD: Final = 6  # rows that are on their way from memory while one is summed


@dataclass(frozen=True, kw_only=True, slots=True)
class Occurrences:
    """The places of each distinct row, as compressed sparse rows.

    Attributes:
        rows: distinct rows, int32 [U], in order of first occurrence.
        starts: int64 [U + 1], into `places`.
        places: positions, int32, ascending within a row.
    """

    rows: NDArray[np.int32]
    starts: NDArray[np.int64]
    places: NDArray[np.int32]

    @classmethod
    def of(cls, rows: NDArray[np.int32], slot_of_row: NDArray[np.int32]) -> Occurrences:
        """Order places by row.

        Args:
            rows: the row of each place, int32 [M]; a place of row -1 is left out.
            slot_of_row: scratch of -1, int32 [num_rows]; given back so.
        """
        distinct, starts, places = _order(rows, slot_of_row)
        return cls(rows=distinct, starts=starts, places=places)

    def __len__(self) -> int:
        return len(self.rows)


def update_rows(
    table: NDArray[Any],
    state: NDArray[np.float32],
    gradients: NDArray[np.float32],
    occurrences: Occurrences,
    turns: NDArray[np.int64],
    *,
    lr: float,
    eps: float = 1e-10,
    seed: int = 0,
) -> None:
    """Apply row-wise Adagrad (see `RowwiseAdagrad`) to the rows that occur, or to a thread's share of them.

    Args:
        table: [num_rows, D], changed in place: float32, or half precision as `tables.halves.bits` gives it, which is rounded
            stochastically.
        state: float32 [num_rows], the accumulated mean squares, changed in place.
        gradients: float32 [M, D], by place.
        occurrences: the places of each row.
        turns: int64 [1], 0 at first: threads that are given the same share the rows out among themselves.
        lr: learning rate.
        eps: added to the root of the state.
        seed: of the rounding, another one at each step; the same rows then round alike on any number of threads.

    Raises:
        ValueError: if a row's gradient is not finite, or its square overflows; that row is left as it was.
    """
    arrays = occurrences.rows, occurrences.starts, occurrences.places
    fault = _update_rows(table, state, gradients, *arrays, np.float32(lr), np.float32(eps), np.int64(seed), turns)
    if fault >= 0:
        raise ValueError(
            f"the gradient of row {fault} is not finite or its square overflows; the row was left as it was. Lower the "
            "learning rate or the initial scale."
        )


def update_cells(
    table: NDArray[np.float32],
    state: NDArray[np.float32],
    gradients: NDArray[np.float32],
    occurrences: Occurrences,
    turns: NDArray[np.int64],
    *,
    lr: NDArray[np.float32],
    eps: float = 1e-10,
) -> None:
    """Apply Adagrad with a state for each number, [num_rows, P], and a learning rate for each column, float32 [P].

    Otherwise as `update_rows`.
    """
    arrays = occurrences.rows, occurrences.starts, occurrences.places
    _update_cells(table, state, gradients, *arrays, lr, np.float32(eps), turns)


def sum_rows(gradients: NDArray[np.float32], occurrences: Occurrences) -> NDArray[np.float32]:
    """Sum the gradients [M, D] of each row's places, float32 [U, D]: what an optimiser of another kind takes."""
    sums = np.empty((len(occurrences), gradients.shape[1]), dtype=np.float32)
    _sum_rows(gradients, occurrences.starts, occurrences.places, sums)
    return sums


@numba.njit(nogil=True, cache=True)
def _order(rows: Any, slot_of_row: Any) -> tuple[Any, Any, Any]:
    distinct = np.empty(len(rows), dtype=np.int32)
    counts = np.zeros(len(rows) + 1, dtype=np.int64)
    num_distinct = 0
    for place in range(len(rows)):
        row = rows[place]
        if row < 0:
            continue
        slot = slot_of_row[row]
        if slot < 0:
            slot = num_distinct
            slot_of_row[row] = slot
            distinct[slot] = row
            num_distinct += 1
        counts[slot] += 1
    starts = np.empty(num_distinct + 1, dtype=np.int64)
    starts[0] = 0
    for slot in range(num_distinct):
        starts[slot + 1] = starts[slot] + counts[slot]
        counts[slot] = starts[slot]
    places = np.empty(starts[num_distinct], dtype=np.int32)
    for place in range(len(rows)):
        row = rows[place]
        if row >= 0:
            slot = slot_of_row[row]
            places[counts[slot]] = place
            counts[slot] += 1
    for slot in range(num_distinct):
        slot_of_row[distinct[slot]] = -1
    return distinct[:num_distinct].copy(), starts, places


@numba.njit(nogil=True, cache=True)
def _add_places(gradients: Any, places: Any, begin: int, end: int, total: Any) -> None:
    """Sum the gradients of one row's places, in their order."""
    for column in range(len(total)):
        total[column] = np.float32(0.0)
    for place in range(begin, end):
        gradient = gradients[places[place]]
        for column in range(len(total)):
            total[column] += gradient[column]


@numba.njit(nogil=True, cache=True)
def _sum_rows(gradients: Any, starts: Any, places: Any, sums: Any) -> None:
    for position in range(len(sums)):
        _add_places(gradients, places, starts[position], starts[position + 1], sums[position])


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _update_rows(
    table: Any, state: Any, gradients: Any, rows: Any, starts: Any, places: Any, lr: Any, eps: Any, seed: Any, turns: Any
) -> int:
    num_rows, dim = len(rows), table.shape[1]
    total = np.empty(dim, dtype=np.float32)
    fault = -1
    while True:
        begin = take_turn(turns) * _ROWS_A_TURN
        if begin >= num_rows:
            return fault
        for position in range(begin, min(begin + _ROWS_A_TURN, num_rows)):
            if position + _AHEAD < num_rows:
                ahead = np.int64(rows[position + _AHEAD]) * dim, np.int64(places[starts[position + _AHEAD]]) * dim
                for line in range(0, table.itemsize * dim, 64):
                    prefetch(table, table.itemsize * ahead[0] + line)
                for line in range(0, 4 * dim, 64):
                    prefetch(gradients, 4 * ahead[1] + line)
            _add_places(gradients, places, starts[position], starts[position + 1], total)
            squares = np.float32(0.0)
            for column in range(dim):
                squares += total[column] * total[column]
            row = rows[position]
            if not np.isfinite(squares):
                fault = row
                continue
            state[row] += squares / np.float32(dim)
            root = np.sqrt(state[row]) + eps
            rate = lr / root if root > 0 else np.float32(0.0)
            vector, stream = table[row], random_stream(seed, row)
            for column in range(dim):
                value = load(vector, column) - rate * total[column]
                store_stochastically(vector, column, value, random_bits(stream, column))


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _update_cells(
    table: Any, state: Any, gradients: Any, rows: Any, starts: Any, places: Any, lr: Any, eps: Any, turns: Any
) -> None:
    total = np.empty(table.shape[1], dtype=np.float32)
    while True:
        position = take_turn(turns)
        if position >= len(rows):
            return
        _add_places(gradients, places, starts[position], starts[position + 1], total)
        values, squares = table[rows[position]], state[rows[position]]
        for column in range(len(total)):
            square = squares[column] + total[column] * total[column]
            squares[column] = square
            values[column] -= lr[column] * total[column] / (np.sqrt(square) + eps)
