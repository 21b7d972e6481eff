"""Copies a source's vectors into a table's rows: cast, scaled, combined where they collide, and measured on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numba
import numpy as np
import torch

from multifacet.tables.halves import bits, load, store
from multifacet.tables.prefetch import prefetch
from multifacet.tables.threads import run_ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from multifacet.tables.placement import RowPlacement

Collisions = Literal["mean", "weighted", "first"]
_MIN_VALUES_PER_THREAD: Final = 1 << 17
_NONE: Final = -1
_LINE_BYTES: Final = 64
_AHEAD: Final = 16  # vectors


@dataclass(frozen=True, kw_only=True)
class RowSums:
    """What a copy met; sums of shards and of processes add up.

    Attributes:
        num_filled: Rows that got at least one vector.
        num_vectors: Vectors that went into them.
        num_collided: Rows that got more than one.
        num_collided_vectors: Vectors that went into those.
        squares_before: Sum of squares of the vectors used.
        squares_after: Sum of squares of the rows written.
        columns: Sum of the rows written, float64 [D].
    """

    num_filled: int
    num_vectors: int
    num_collided: int
    num_collided_vectors: int
    squares_before: float
    squares_after: float
    columns: NDArray[np.float64]

    @classmethod
    def zero(cls, dim: int) -> Self:
        """Gives the sums of no rows."""
        return cls.of((0, 0, 0, 0, 0.0, 0.0), np.zeros(dim))

    @classmethod
    def of(cls, sums: Sequence[float], columns: NDArray[np.float64]) -> Self:
        """Takes the fields in their order, `columns` apart."""
        return cls(
            num_filled=int(sums[0]),
            num_vectors=int(sums[1]),
            num_collided=int(sums[2]),
            num_collided_vectors=int(sums[3]),
            squares_before=float(sums[4]),
            squares_after=float(sums[5]),
            columns=columns,
        )

    def __add__(self, other: RowSums) -> Self:
        names = (part.name for part in fields(self))
        return type(self)(**{name: getattr(self, name) + getattr(other, name) for name in names})


def copy_rows(
    vectors: Tensor,
    target: Tensor | None,
    placement: RowPlacement,
    *,
    collisions: Collisions = "mean",
    weights: Tensor | None = None,
    scale: float = 1.0,
    column: int = 0,
    num_columns: int | None = None,
    rows: tuple[int, int] | None = None,
) -> RowSums:
    """Writes each row's vectors, combined and scaled, to a target; rows without a vector are left as they are.

    Args:
        vectors: float32 or float16 [n, D] on the CPU, as mapped from a file; read once, in the order of the rows.
        target: float32, float16 or bfloat16 [rows, num_columns] on the CPU; None: measure only.
        placement: Which vectors belong to which row.
        collisions: How a row's vectors are combined: their mean, their mean by `weights`, or the first one's in the
            source's order.
        weights: float32 [n], not negative; of "weighted" only. A row whose weights are all 0 gets the plain mean.
        scale: Factor of every value.
        column: First column of the vectors that is copied.
        num_columns: Columns copied; None: all from `column`.
        rows: Half-open range of the placement's rows; the target's row 0 is its first. None: all.

    Returns:
        Sums over the rows of the range.

    Raises:
        ValueError: Shapes or types do not match, or a value is beyond the target's format; its row is named.
    """
    num_columns = vectors.shape[1] - column if num_columns is None else num_columns
    first, last = rows or (0, placement.num_rows)
    if target is not None and (target.shape != (last - first, num_columns) or not target.is_contiguous()):
        raise ValueError(f"the target is {list(target.shape)}; expected contiguous [{last - first}, {num_columns}].")
    if vectors.dtype not in {torch.float32, torch.float16} or not vectors.is_contiguous():
        raise ValueError(f"the vectors are {vectors.dtype}; expected contiguous float32 or float16.")
    if len(vectors) != placement.num_positions:
        raise ValueError(f"there are {len(vectors)} vectors; they were placed as {placement.num_positions}.")
    if (collisions == "weighted") != (weights is not None):
        raise ValueError(f"collisions is {collisions!r} and weights are {'missing' if weights is None else 'given'}.")
    if weights is not None and (weights.shape != (len(vectors),) or not bool((weights >= 0).all())):
        raise ValueError(f"weights are {list(weights.shape)}; expected [{len(vectors)}], none negative or NaN.")
    source = bits(vectors).reshape(-1)
    destination = np.zeros(0, np.float32) if target is None else bits(target).reshape(-1)
    limit = math.inf if target is None else torch.finfo(target.dtype).max
    by_weight = np.zeros(0, np.float32) if weights is None else weights.detach().float().contiguous().numpy()
    parts: list[tuple[int, Any, NDArray[np.float64]]] = []

    def copy(start: int, stop: int) -> None:
        columns = np.zeros(num_columns, np.float64)
        sums = _copy(
            source,
            destination,
            (len(vectors), vectors.shape[1], column, placement.first, first),
            placement.starts,
            placement.positions,
            by_weight,
            collisions == "first",
            np.float32(scale),
            float(limit) ** 2,
            columns,
            first + start,
            first + stop,
        )
        parts.append((start, sums, columns))

    run_ranges(copy, last - first, min_size=max(1, _MIN_VALUES_PER_THREAD // max(1, num_columns)))
    # In the rows' order, so that sums do not depend on which thread ended first.
    parts.sort(key=lambda part: part[0])
    faults = [sums[6] for _, sums, _ in parts if sums[6] != _NONE]
    if faults and target is not None:
        raise ValueError(
            f"row {placement.first + min(faults)} gets a value beyond {target.dtype}'s {limit:g}; keep the table in a wider "
            "type, or scale the vectors down (norm)."
        )
    return sum((RowSums.of(sums, columns) for _, sums, columns in parts), RowSums.zero(num_columns))


_FAST: Final = {"reassoc", "contract", "nsz"}  # lets sums be vectorised; NaN and Inf keep their meaning


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _copy(  # noqa: C901, PLR0912  (one pass over memory)
    source: Any,
    target: Any,
    shape: Any,
    starts: Any,
    positions: Any,
    weights: Any,
    first_only: bool,
    scale: Any,
    limit: float,
    columns: Any,
    start: int,
    stop: int,
) -> Any:
    """Copies the rows start to stop; gives counts, sums of squares and the first row that does not fit, or -1.

    Source and target are flat: with unsigned indices into flat arrays the loops over a row's elements are vectorised,
    with rows cut out of matrices they are not.
    """
    num_source, source_width, column, first, target_first = shape
    width = np.uintp(len(columns))
    buffer = np.empty(width, np.float32)
    partial = np.zeros(width, np.float32)
    num_filled = num_vectors = num_collided = num_collided_vectors = 0
    squares_before = squares_after = 0.0
    fault = _NONE
    one_each = len(starts) == 0 and len(positions) > 0
    asked = starts[start] if len(starts) > 0 and start < stop else start
    for row in range(start, stop):
        if len(starts) > 0:
            begin, end = starts[row], starts[row + 1]
        elif one_each:
            begin, end = row, row + 1 if positions[row] >= 0 else row
        else:
            begin, end = first + row, min(first + row + 1, num_source)
        if begin >= end:
            continue
        # A row may have several vectors, so that more than one has come into reach.
        while asked < min(begin + _AHEAD, len(positions)):
            if positions[asked] >= 0:
                _ask_for(source, (positions[asked] * source_width + column) * source.itemsize, len(columns) * source.itemsize)
            asked += 1
        num_filled += 1
        if end - begin > 1:
            num_collided += 1
            num_collided_vectors += end - begin
        if first_only:
            end = begin + 1
        num_vectors += end - begin
        if end - begin == 1:
            position = positions[begin] if len(positions) > 0 else begin
            squares_before += _read(source, np.uintp(position * source_width + column), scale, buffer)
        else:
            squares_before += _mix(source, source_width, column, positions[begin:end], weights, scale, buffer)
        target_start = np.uintp((row - target_first) * len(columns))
        after = np.float32(0)
        for element in range(width):
            value = buffer[np.uintp(element)]
            after += value * value
            partial[np.uintp(element)] += value
        if len(target) > 0:
            for element in range(width):
                store(target, target_start + np.uintp(element), buffer[np.uintp(element)])
            if not after <= limit and fault == _NONE and _exceeds(target, target_start, width):
                fault = row
        squares_after += float(after)
        if num_filled % 256 == 0:
            _flush(partial, columns)
    _flush(partial, columns)
    return num_filled, num_vectors, num_collided, num_collided_vectors, squares_before, squares_after, fault


@numba.njit(nogil=True, cache=True)
def _ask_for(source: Any, start_byte: Any, num_bytes: Any) -> None:
    """Begins to load a vector that will be read soon: by id, vectors are read in no order that a processor could guess."""
    for line in range(0, num_bytes, _LINE_BYTES):
        prefetch(source, np.intp(start_byte + line))
    prefetch(source, np.intp(start_byte + num_bytes - 1))


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _read(source: Any, start: Any, scale: Any, buffer: Any) -> Any:
    """Reads a vector, scaled; gives its sum of squares before that."""
    squares = np.float32(0)
    for element in range(len(buffer)):
        value = load(source, start + np.uintp(element))
        squares += value * value
        buffer[np.uintp(element)] = value * scale
    return squares


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _mix(source: Any, source_width: int, column: int, positions: Any, weights: Any, scale: Any, buffer: Any) -> Any:
    """Reads the mean of some vectors, scaled; gives their sum of squares before that."""
    total = np.float32(0)
    if len(weights) > 0:
        for position in positions:
            total += weights[position]
    weighted = total > 0
    if not weighted:
        total = np.float32(len(positions))
    buffer[:] = 0
    squares = np.float32(0)
    for position in positions:
        factor = (weights[position] if weighted else np.float32(1)) / total * scale
        start = np.uintp(position * source_width + column)
        for element in range(len(buffer)):
            value = load(source, start + np.uintp(element))
            squares += value * value
            buffer[np.uintp(element)] += value * factor
    return squares


@numba.njit(nogil=True, cache=True)
def _flush(partial: Any, columns: Any) -> None:
    for element in range(len(columns)):
        columns[element] += partial[element]
        partial[element] = 0


@numba.njit(nogil=True, cache=True)
def _exceeds(target: Any, start: Any, width: Any) -> bool:
    """Says whether a row, as it was written, holds Inf or NaN: its length alone does not tell."""
    for element in range(width):  # noqa: SIM110  (numba has no generators)
        if not abs(np.float64(load(target, start + np.uintp(element)))) < np.inf:
            return True
    return False
