"""Alias tables: draws from any discrete distribution in constant time (Walker 1977, Vose 1991)."""

from __future__ import annotations

from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

_SCALE: Final = float(1 << 32)
_MAX_THRESHOLD: Final = float((1 << 32) - 1)


@numba.njit(nogil=True, cache=True)
def alias_table(mass: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Build the table that a draw reads: a uniform place stays itself with its threshold's chance, or turns into its alias.

    Args:
        mass: What each place shall weigh, times the number of places: float64 [n], of mean 1, not negative.

    Returns:
        Thresholds, float64 [n], and aliases, int32 [n]. A place without mass is never drawn.
    """
    size = len(mass)
    threshold = np.ones(size, dtype=np.float64)
    alias = np.arange(size).astype(np.int32)
    remaining = mass.copy()
    small, large = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.int32)
    num_small, num_large = 0, 0
    for place in range(size):
        if remaining[place] < 1.0:
            small[num_small] = place
            num_small += 1
        else:
            large[num_large] = place
            num_large += 1
    while num_small > 0 and num_large > 0:
        num_small -= 1
        poor, rich = small[num_small], large[num_large - 1]
        threshold[poor] = remaining[poor]
        alias[poor] = rich
        remaining[rich] -= 1.0 - remaining[poor]
        if remaining[rich] < 1.0:
            num_large -= 1
            small[num_small] = rich
            num_small += 1
    # What is left of `small` differs from one only by rounding, unless it has no mass: those must never stay.
    heaviest = np.argmax(mass)
    for position in range(num_small):
        if mass[small[position]] == 0.0:
            threshold[small[position]] = 0.0
            alias[small[position]] = heaviest
    return threshold, alias


def build_alias(weights: NDArray[np.float64], ids: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Build a table from which `kernels.counter_rng.alias_at` draws ids in proportion to their weights.

    Args:
        weights: Positive weights, float64 [n].
        ids: What is drawn, int64 [n].

    Returns:
        uint32 [n, 3]: a place's threshold of 2^32, the id below the threshold and the id above it.

    Raises:
        ValueError: There is nothing to draw, or a weight is not positive.
    """
    if len(weights) == 0 or len(weights) != len(ids):
        msg = f"{len(weights)} weights for {len(ids)} ids; expected as many of both, and at least one"
        raise ValueError(msg)
    if not (np.isfinite(weights).all() and weights.min() > 0):
        msg = f"weights lie between {weights.min()} and {weights.max()}; expected positive, finite ones"
        raise ValueError(msg)
    threshold, alias = alias_table(np.asarray(weights * (len(weights) / weights.sum()), dtype=np.float64))
    columns = (np.minimum(threshold * _SCALE, _MAX_THRESHOLD), ids, np.asarray(ids)[alias])
    return np.stack([column.astype(np.uint32) for column in columns], axis=1)
