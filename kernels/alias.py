"""Alias tables: draws from any discrete distribution in constant time (Walker 1977, Vose 1991)."""

from __future__ import annotations

from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

_SCALE: Final = float(1 << 32)
_MAX_THRESHOLD: Final = float((1 << 32) - 1)


def build_alias(weights: NDArray[np.float64], ids: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Builds a table from which `kernels.counter_rng.alias_at` draws ids in proportion to their weights.

    Args:
        weights: Positive weights, float64 [n].
        ids: What is drawn, int64 [n].

    Returns:
        uint32 [n, 3]: a row's threshold of 2^32, the id below the threshold and the id above it.

    Raises:
        ValueError: There is nothing to draw, or a weight is not positive.
    """
    if len(weights) == 0 or len(weights) != len(ids):
        msg = f"{len(weights)} weights for {len(ids)} ids; expected as many of both, and at least one"
        raise ValueError(msg)
    if not (np.isfinite(weights).all() and weights.min() > 0):
        msg = f"weights lie between {weights.min()} and {weights.max()}; expected positive, finite ones"
        raise ValueError(msg)
    entries = np.empty((len(weights), 3), dtype=np.uint32)
    _build(weights * (len(weights) / weights.sum()), ids, entries)
    return entries


@numba.njit(nogil=True, cache=True)
def _build(mass: NDArray[np.float64], ids: NDArray[np.int64], entries: NDArray[np.uint32]) -> None:
    # Rows that have less than the mean mass wait at the front of the stack, rows that have more at its back.
    size = len(mass)
    stack = np.empty(size, dtype=np.int64)
    num_small, first_large = 0, size
    for row in range(size):
        if mass[row] < 1:
            stack[num_small] = row
            num_small += 1
        else:
            first_large -= 1
            stack[first_large] = row
    while num_small > 0 and first_large < size:
        num_small -= 1
        small, large = stack[num_small], stack[first_large]
        _write(entries, small, mass[small], ids[small], ids[large])
        mass[large] -= 1 - mass[small]
        if mass[large] < 1:
            first_large += 1
            stack[num_small] = large
            num_small += 1
    # What is left has the mean mass, but for rounding.
    for position in range(size):
        if position < num_small or position >= first_large:
            row = stack[position]
            _write(entries, row, 1.0, ids[row], ids[row])


@numba.njit(nogil=True, cache=True)
def _write(entries: NDArray[np.uint32], row: int, share: float, below: int, above: int) -> None:
    entries[row, 0] = np.uint32(min(share * _SCALE, _MAX_THRESHOLD))
    entries[row, 1] = np.uint32(below)
    entries[row, 2] = np.uint32(above)
