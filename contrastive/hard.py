"""Hard negatives: items that the model itself ranks among a query's best, though they are not known positives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from multifacet.tables.topk import top_k

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from multifacet.tables.pairs import PairIndex

__all__ = ["HardNegatives", "find_best_unknown"]

# Scores held at once: 16 MiB of float32.
_BLOCK_ELEMENTS: Final = 1 << 22


class HardNegatives:
    """The best unknown items of each query, by the tables as they were, to draw negatives from.

    Args:
        best: items of each query, best first, int32 [num_queries, depth]; a row without any stays undrawn.
        num_draws: negatives drawn for a query, with replacement.
        num_items: rows of the items' table.
    """

    def __init__(self, best: NDArray[np.int32], num_draws: int, num_items: int) -> None:
        self.best = best
        self.num_draws = num_draws
        self.num_items = num_items

    def draw(self, queries: NDArray[np.int32], generator: np.random.Generator) -> NDArray[np.int32]:
        """Draw for each query, int32 [n * num_draws]."""
        places = generator.integers(0, self.best.shape[1], (len(queries), self.num_draws))
        return self.best[queries[:, None], places].ravel()

    def item_chance(self, query_chance: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the chance that the draws for one query hold each item, float64 [num_items].

        Args:
            query_chance: chance of each query, float64 [num_queries].
        """
        depth = self.best.shape[1]
        held = -np.expm1(self.num_draws * np.log1p(-1.0 / max(depth, 1 + 1e-12)))
        chance = np.zeros(self.num_items)
        for column in range(depth):
            chance += np.bincount(self.best[:, column], weights=query_chance * held, minlength=self.num_items)
        return chance


def find_best_unknown(queries: Tensor, items: Tensor, known: PairIndex, *, depth: int) -> NDArray[np.int32]:
    """Rank all items for each query that has known ones, without those.

    Args:
        queries: float32 [Q, D]; compared by dot product.
        items: float32 [N, D].
        known: the known positives of each query.
        depth: best items kept of each query; no more than each query has unknown ones.

    Returns:
        int32 [Q, depth], best first; zeros for a query without known items.
    """
    counts = np.diff(known.indptr)
    depth = max(1, min(depth, len(items) - int(counts.max(initial=0))))
    best = np.zeros((len(queries), depth), dtype=np.int32)
    asked = np.flatnonzero(counts)
    block_rows = max(1, _BLOCK_ELEMENTS // len(items))
    for begin in range(0, len(asked), block_rows):
        block = asked[begin : begin + block_rows]
        scores = (queries[torch.from_numpy(block)] @ items.t()).numpy()
        lengths = counts[block]
        places = np.arange(lengths.sum()) + np.repeat(known.indptr[block] - np.cumsum(lengths) + lengths, lengths)
        scores[np.repeat(np.arange(len(block)), lengths), known.indices[places]] = -np.inf
        best[block] = top_k(scores, depth)
    return best
