"""Full ranking of held-out items: recall@k and ndcg@k."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from tables.pairs import PairIndex

__all__ = ["evaluate"]

# Scores held at once: 64 MiB of float32.
_BLOCK_ELEMENTS = 1 << 24


def evaluate(
    queries: Tensor, items: Tensor, *, relevant: PairIndex, seen: PairIndex | None = None, k: int = 20
) -> dict[str, float]:
    """Rank ALL items for each query that has relevant ones, without those that it has seen.

    recall@k is the share of a query's relevant items among its first k; ndcg@k their discounted gain over the best one
    possible, 1/log2(rank + 1) each. Both are means over queries.

    Args:
        queries: float32 [Q, D]; compared by dot product, so normalise both for the cosine.
        items: float32 [N, D].
        relevant: relevant items of each query.
        seen: items to leave out of each query's ranking, unless they are relevant to it.
        k: length of the list.

    Returns:
        `recall@k`, `ndcg@k`; empty if no query has relevant items.

    Raises:
        ValueError: if the tables and indices don't fit, or a score is not a number.
    """
    for name, pairs in (("relevant", relevant), ("seen", seen)):
        if pairs is not None and (pairs.num_left, pairs.num_right) != (len(queries), len(items)):
            raise ValueError(
                f"`{name}` is of {pairs.num_left} queries and {pairs.num_right} items, the tables have {len(queries)} "
                f"and {len(items)} rows"
            )
    asked = np.flatnonzero(np.diff(relevant.indptr)).astype(np.int32)
    if not len(asked):
        return {}
    k = min(k, len(items))
    discounts = 1.0 / np.log2(np.arange(k) + 2.0)
    recalls, ndcgs = [], []
    block_rows = max(1, _BLOCK_ELEMENTS // len(items))
    for begin in range(0, len(asked), block_rows):
        block = asked[begin : begin + block_rows]
        scores = queries[torch.from_numpy(block)] @ items.t()
        if bool(scores.isnan().any()):
            raise ValueError(f"a score of the queries {block[0]}..{block[-1]} is not a number")
        if seen is not None:
            _mask_seen(scores.numpy(), block, seen.indptr, seen.indices, relevant.indptr, relevant.indices)
        best = scores.topk(k, dim=1).indices.numpy()
        gained = relevant.contains(np.repeat(block, k), best.ravel()).reshape(best.shape)
        counts = relevant.indptr[block + 1] - relevant.indptr[block]
        recalls.append(gained.sum(1) / counts)
        ideal = np.cumsum(discounts)[np.minimum(counts, k) - 1]
        ndcgs.append((gained * discounts).sum(1) / ideal)
    return {
        f"recall@{k}": float(np.concatenate(recalls).mean()),
        f"ndcg@{k}": float(np.concatenate(ndcgs).mean()),
    }


@numba.njit(cache=True)
def _mask_seen(
    scores: NDArray[np.float32],
    queries: NDArray[np.int32],
    seen_indptr: NDArray[np.int64],
    seen_indices: NDArray[np.int32],
    relevant_indptr: NDArray[np.int64],
    relevant_indices: NDArray[np.int32],
) -> None:
    for row in range(len(queries)):
        query = queries[row]
        relevant = relevant_indices[relevant_indptr[query] : relevant_indptr[query + 1]]
        for position in range(seen_indptr[query], seen_indptr[query + 1]):
            item = seen_indices[position]
            place = np.searchsorted(relevant, item)
            if place == len(relevant) or relevant[place] != item:
                scores[row, item] = -np.inf
