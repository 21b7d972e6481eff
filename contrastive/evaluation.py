"""Full ranking of held-out items: recall, NDCG, hit rate, reciprocal rank, coverage, and recall by popularity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np
import torch
from torch import Tensor

from multifacet.inputs import expect_type, kind, takes, whole
from multifacet.kernels.topk import top_k
from multifacet.training import PairIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["STRATA", "evaluate", "popularity_strata"]

#: Thirds of the interactions, those of the most popular items first.
STRATA: Final = ("head", "torso", "tail")

# Scores held at once: 16 MiB of float32, whatever the number of queries.
_BLOCK_ELEMENTS = 1 << 22


@takes(seen=kind(PairIndex), k=whole(), popularity=kind(np.ndarray))
def evaluate(
    queries: Tensor,
    items: Tensor,
    *,
    relevant: PairIndex,
    seen: PairIndex | None = None,
    k: int = 20,
    popularity: NDArray[Any] | None = None,
) -> dict[str, float]:
    """Rank ALL items for each query that has relevant ones, without those that it has seen.

    With the rank of an item counted from 1 among the items that its query has not seen:

    - `recall@k`: share of the query's relevant items of rank k or better;
    - `ndcg@k`: sum of 1 / log2(rank + 1) over those, divided by the largest sum that its relevant items could have in k
      places;
    - `hr@k`: 1 if there is any of those, else 0;
    - `mrr`: 1 / rank of the best relevant item, however far down it is; items of an equal score count half;
    - `recall@k/head`, `/torso`, `/tail`: recall over the relevant items of one stratum of popularity, for the queries that
      have some;
    - `coverage@k`: share of all items that are among the first k of any query.

    All but coverage are means over queries. This is the protocol of the published figures on Gowalla (He et al., SIGIR
    2020): a mean over users with test items, NDCG's ideal cut at k.

    Args:
        queries: float32 [Q, D]; compared by dot product, so normalise both for the cosine.
        items: float32 [N, D].
        relevant: relevant items of each query.
        seen: items to leave out of each query's ranking, unless they are relevant to it.
        k: length of the list.
        popularity: how often each item is interacted with, [N], for the strata; None for the number of queries that have
            seen it.

    Returns:
        The metrics; empty if no query has relevant items, and without strata if nothing tells of popularity.

    Raises:
        ValueError: if the tables, indices and popularity don't fit, or a score is not a number.
    """
    _check_sizes(queries, items, relevant, seen, popularity)
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1")
    asked = np.flatnonzero(np.diff(relevant.indptr)).astype(np.int32)
    if not len(asked):
        return {}
    if popularity is None and seen is not None:
        popularity = np.bincount(seen.indices, minlength=len(items))
    stratum_of_item = np.zeros(len(items), dtype=np.int8) if popularity is None else popularity_strata(popularity)
    k = min(k, len(items))
    listed = np.zeros(len(items), dtype=np.bool_)
    totals = np.zeros((len(asked), len(STRATA)), dtype=np.int64)
    found = np.zeros_like(totals)
    gains, reciprocal_ranks = np.zeros(len(asked)), np.zeros(len(asked))
    block_rows = min(len(asked), max(1, _BLOCK_ELEMENTS // len(items)))
    buffer = torch.empty((block_rows, len(items)))
    for begin in range(0, len(asked), block_rows):
        part = slice(begin, begin + block_rows)
        block = asked[part]
        scores = buffer[: len(block)]
        torch.mm(queries[torch.from_numpy(block)], items.t(), out=scores)
        array = scores.numpy()
        if bool(scores.sum(1).isnan().any()) and bool(scores.isnan().any()):
            raise ValueError(f"a score of the queries {block[0]}..{block[-1]} is not a number")
        if seen is not None:
            _mask_seen(array, block, seen.indptr, seen.indices, relevant.indptr, relevant.indices)
        best = top_k(array, k)
        _judge(
            *(array, best, block, relevant.indptr, relevant.indices, stratum_of_item),
            *(gains[part], reciprocal_ranks[part], totals[part], found[part], listed),
        )
    counts = totals.sum(1)
    ideal = np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))[np.minimum(counts, k) - 1]
    num_found = found.sum(1)
    metrics = {
        f"recall@{k}": float((num_found / counts).mean()),
        f"ndcg@{k}": float((gains / ideal).mean()),
        f"hr@{k}": float((num_found > 0).mean()),
        "mrr": float(reciprocal_ranks.mean()),
        f"coverage@{k}": float(listed.mean()),
    }
    return metrics if popularity is None else metrics | _recall_by_stratum(totals, found, k)


def _check_sizes(
    queries: Tensor, items: Tensor, relevant: PairIndex, seen: PairIndex | None, popularity: NDArray[Any] | None
) -> None:
    expect_type("queries", queries, Tensor)
    expect_type("items", items, Tensor)
    expect_type("relevant", relevant, PairIndex)
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        raise ValueError(f"queries [Q, D] and items [N, D] need one width, got {list(queries.shape)} and {list(items.shape)}")
    for name, pairs in (("relevant", relevant), ("seen", seen)):
        if pairs is not None and (pairs.num_left, pairs.num_right) != (len(queries), len(items)):
            raise ValueError(
                f"`{name}` is of {pairs.num_left} queries and {pairs.num_right} items, the tables have {len(queries)} "
                f"and {len(items)} rows"
            )
    if popularity is not None and popularity.shape != (len(items),):
        raise ValueError(f"popularity needs one number for each of {len(items)} items, got shape {popularity.shape}")


def _recall_by_stratum(totals: NDArray[np.int64], found: NDArray[np.int64], k: int) -> dict[str, float]:
    recalls = {}
    for number, name in enumerate(STRATA):
        having = totals[:, number] > 0
        if having.any():
            recalls[f"recall@{k}/{name}"] = float((found[having, number] / totals[having, number]).mean())
    return recalls


def popularity_strata(popularity: NDArray[Any]) -> NDArray[np.int8]:
    """Part items into strata with a third of the interactions each, the most popular items first.

    Args:
        popularity: how often each item is interacted with, [N].

    Returns:
        Position in `STRATA` of each item, int8 [N].

    Example:
        >>> popularity_strata(np.array([1, 6, 0, 3, 3, 2, 3])).tolist()
        [2, 0, 2, 1, 1, 2, 2]
    """
    order = np.argsort(-np.asarray(popularity, dtype=np.float64), kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    total = max(float(np.sum(popularity)), 1e-300)
    strata = np.empty(len(order), dtype=np.int8)
    strata[order] = np.minimum(before * len(STRATA) / total, len(STRATA) - 1)
    return strata


@numba.njit(nogil=True, cache=True)
def _mask_seen(
    scores: Any, queries: Any, seen_indptr: Any, seen_indices: Any, relevant_indptr: Any, relevant_indices: Any
) -> None:
    for row in range(len(queries)):
        query = queries[row]
        relevant = relevant_indices[relevant_indptr[query] : relevant_indptr[query + 1]]
        for position in range(seen_indptr[query], seen_indptr[query + 1]):
            item = seen_indices[position]
            place = np.searchsorted(relevant, item)
            if place == len(relevant) or relevant[place] != item:
                scores[row, item] = -np.inf


@numba.njit(nogil=True, cache=True)
def _judge(
    scores: Any,
    best: Any,
    queries: Any,
    relevant_indptr: Any,
    relevant_indices: Any,
    stratum_of_item: Any,
    gains: Any,
    reciprocal_ranks: Any,
    totals: Any,
    found: Any,
    listed: Any,
) -> None:
    """Count each query's relevant items, and those in its list, by stratum; sum its gain; rank its best one."""
    for row in range(len(queries)):
        relevant = relevant_indices[relevant_indptr[queries[row]] : relevant_indptr[queries[row] + 1]]
        highest = np.float32(-np.inf)
        for item in relevant:
            totals[row, stratum_of_item[item]] += 1
            highest = max(highest, scores[row, item])
        for place in range(best.shape[1]):
            item = best[row, place]
            if scores[row, item] > -np.inf:
                listed[item] = True
            position = np.searchsorted(relevant, item)
            if position < len(relevant) and relevant[position] == item:
                found[row, stratum_of_item[item]] += 1
                gains[row] += 1.0 / np.log2(place + 2.0)
        above = 0
        equal = 0
        for column in range(scores.shape[1]):
            above += scores[row, column] > highest
            equal += scores[row, column] == highest
        reciprocal_ranks[row] = 1.0 / (above + 1.0 + (equal - 1.0) / 2.0)
