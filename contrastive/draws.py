"""Draws of positives in proportion to their weights, one at a time or several of one query together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.contrastive.positives import Positives

__all__ = ["PositiveDraws"]


class PositiveDraws:
    """Draws positives with replacement, each as likely as its weight says.

    A draw takes a query, in proportion to the weights of all its positives, then `per_query` of its positives in proportion
    to their weights. However many are drawn together, every positive has the same chance as if they were drawn one at a time.

    Args:
        positives: ordered by query. If all weigh the same, nothing but the queries' bounds is kept.
        per_query: positives drawn together.

    Attributes:
        indptr: where each query's positives begin, int64 [num_queries + 1].
    """

    def __init__(self, positives: Positives, per_query: int) -> None:
        self.per_query = per_query
        counts = np.bincount(positives.queries, minlength=positives.num_queries)
        self.indptr: NDArray[np.int64] = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])
        self._positives = positives
        self._sums: NDArray[np.float64] | None = None
        if len(positives) and positives.weights.min() != positives.weights.max():
            self._sums = np.concatenate([np.zeros(1), np.cumsum(positives.weights, dtype=np.float64)])

    def draw(self, num_draws: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Draw positions of positives, int64 [num_draws * per_query], in the order of their queries."""
        first = self._draw_within(np.zeros(num_draws, dtype=np.int64), np.full(num_draws, len(self._positives)), generator)
        if self.per_query == 1:
            return np.sort(first)
        queries = np.repeat(self._positives.queries[first], self.per_query)
        return np.sort(self._draw_within(self.indptr[queries], self.indptr[queries + 1], generator))

    def query_chance(self) -> NDArray[np.float64]:
        """Give the chance that one draw is of each query, float64 [num_queries]."""
        positives = self._positives
        sums = np.bincount(positives.queries, weights=positives.weights, minlength=positives.num_queries)
        return sums / max(float(sums.sum()), 1e-300)

    def item_chance(self) -> NDArray[np.float64]:
        """Give the chance that one draw holds each item, float64 [num_items]."""
        positives = self._positives
        chance: NDArray[np.float64] = _item_chance(
            self.indptr, positives.items, positives.weights, self.per_query, positives.num_items
        )
        return chance

    def _draw_within(
        self, begins: NDArray[np.int64], ends: NDArray[np.int64], generator: np.random.Generator
    ) -> NDArray[np.int64]:
        """Draw one position in proportion to weight from each of some ranges that are not empty."""
        if self._sums is None:
            return generator.integers(begins, ends)
        low, high = self._sums[begins], self._sums[ends]
        drawn = np.searchsorted(self._sums, low + generator.random(len(begins)) * (high - low), side="right") - 1
        # A weight below the sums' rounding could push a draw over its range's end.
        return np.clip(drawn, begins, ends - 1)


@numba.njit(nogil=True, cache=True)
def _item_chance(indptr: Any, items: Any, weights: Any, per_query: int, num_items: int) -> Any:
    chance = np.zeros(num_items, dtype=np.float64)
    total = 0.0
    for query in range(len(indptr) - 1):
        own = 0.0
        for place in range(indptr[query], indptr[query + 1]):
            own += weights[place]
        total += own
        for place in range(indptr[query], indptr[query + 1]):
            # Just below 1 for a query's only item.
            missed = np.log1p(-weights[place] / (own * (1.0 + 1e-12)))
            chance[items[place]] += weights[place] if per_query == 1 else -own * np.expm1(per_query * missed)
    return chance / max(total, 1e-300)
