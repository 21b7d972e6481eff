"""Samplers over the rows of one table: uniform, and weighted by a power of the degree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from multifacet.kernels.alias import alias_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["AliasSampler", "UniformSampler", "degree_weights"]


class UniformSampler:
    """Draws rows 0 to `num_rows` - 1 with equal probability, with replacement.

    Rows are drawn as integers, so that every row of a table of up to 2**31 rows can be reached (a scaled
    float32 reaches only 2**24 of them).

    Args:
        num_rows: rows of the table.
    """

    def __init__(self, num_rows: int) -> None:
        if num_rows < 1:
            raise ValueError(f"a uniform sampler needs at least one row to draw from, got num_rows={num_rows}")
        self.num_rows = num_rows

    def draw(self, size: int, generator: np.random.Generator) -> NDArray[np.int32]:
        """Draw `size` rows, int32 [size]."""
        return generator.integers(0, self.num_rows, size=size, dtype=np.int32)

    def probability(self, rows: NDArray[np.int32]) -> NDArray[np.float64]:
        """Give the chance that one draw yields each of `rows`, float64 [n]."""
        return np.full(len(rows), 1.0 / self.num_rows)

    def __repr__(self) -> str:
        return f"UniformSampler(num_rows={self.num_rows})"


class AliasSampler:
    """Draws rows in proportion to a weight, in constant time a draw (Walker's alias method, Vose's build).

    Args:
        weights: non-negative weights, [num_rows]; at least one above zero. Rows of weight zero are never drawn.

    Raises:
        ValueError: if a weight is negative or not finite, or all are zero.
    """

    def __init__(self, weights: NDArray[Any]) -> None:
        weights = np.ascontiguousarray(weights, dtype=np.float64)
        if weights.ndim != 1 or len(weights) == 0:
            raise ValueError(f"sampling weights have one dimension and at least one row, got shape {weights.shape}")
        bad = ~np.isfinite(weights) | (weights < 0)
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(f"sampling weights must be finite and not negative; row {row} has {weights[row]}")
        total = float(weights.sum())
        if total <= 0.0:
            raise ValueError(f"all {len(weights)} sampling weights are zero: there is nothing to draw")
        self._probabilities = weights / total
        self._threshold, self._alias = alias_table(self._probabilities * len(self._probabilities))

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return len(self._alias)

    @property
    def tables(self) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """The chance that a row drawn uniformly stays itself, and the row that it turns into otherwise, [num_rows] each."""
        return self._threshold, self._alias

    def draw(self, size: int, generator: np.random.Generator) -> NDArray[np.int32]:
        """Draw `size` rows with replacement, int32 [size]."""
        rows = generator.integers(0, self.num_rows, size=size, dtype=np.int32)
        stays = generator.random(size) < self._threshold[rows]
        return np.where(stays, rows, self._alias[rows])

    def probability(self, rows: NDArray[np.int32]) -> NDArray[np.float64]:
        """Give the chance that one draw yields each of `rows`, float64 [n]."""
        return self._probabilities[rows]

    def __repr__(self) -> str:
        return f"AliasSampler(num_rows={self.num_rows})"


def degree_weights(degrees: NDArray[Any], power: float) -> NDArray[np.float64]:
    """Raise degrees to a power, leaving rows without an edge at zero for every power.

    Args:
        degrees: edges of each row, [num_rows].
        power: 1 draws like the edges do, 0.75 is word2vec's, 0 draws uniformly among the rows that have an edge.

    Returns:
        Weights for `AliasSampler`, float64 [num_rows].
    """
    degrees = np.asarray(degrees, dtype=np.float64)
    return np.where(degrees > 0, np.power(np.maximum(degrees, 1e-12), power), 0.0)
