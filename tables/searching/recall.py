"""How often an index is right, judged by exact search by the same similarity."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from multifacet.tables.searching.neighbors import find_neighbors
from multifacet.tables.searching.similarity import Similarity, compare_each

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["Exact", "Recall", "find_exact", "judge", "measure_recall"]

# Of the scores' own size: what two ways to add up one score may differ by.
_TOLERANCE: Final = 1e-5
_BLOCK_QUERIES: Final = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """What an index found of what exact search finds, and how fast both are, on the same queries and threads.

    Attributes:
        recall: share of the k best that are found, mean over queries; a row that scores as the k-th best does counts as one of
            them, so duplicates and ties are no misses.
        k: neighbours asked for.
        num_queries: queries asked.
        queries_per_s: of the index, with the scoring of its candidates.
        exact_queries_per_s: of `find_neighbors`.
    """

    recall: float
    k: int
    num_queries: int
    queries_per_s: float
    exact_queries_per_s: float

    @property
    def speedup(self) -> float:
        """Queries a second of the index over those of exact search."""
        return self.queries_per_s / self.exact_queries_per_s

    def to_dict(self) -> dict[str, Any]:
        """Gives all of it as JSON-able fields."""
        return {**asdict(self), "speedup": self.speedup}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Exact:
    """What exact search finds: the k-th best score of each query, float64 [Q], and the time that it took."""

    kth: Tensor
    k: int
    seconds: float


def find_exact(queries: Tensor, vectors: Tensor, k: int, similarity: Similarity) -> Exact:
    """Find the score that a row must reach to be among the k best of each query, by comparing with every row."""
    started = time.perf_counter()
    _, rows = find_neighbors(queries, vectors, k, similarity=similarity)
    seconds = time.perf_counter() - started
    scores = _rescore(queries, vectors, rows, similarity)
    return Exact(kth=scores.min(1).values, k=rows.shape[1], seconds=seconds)


def judge(queries: Tensor, vectors: Tensor, found: Tensor, exact: Exact, similarity: Similarity) -> float:
    """Give the share of the k best that stand among the rows found, int64 [Q, k], -1 for none; ties are no misses."""
    scores = _rescore(queries, vectors, found.clamp(min=0), similarity)
    slack = _TOLERANCE * (exact.kth.abs() + exact.kth.abs().mean())
    hits = (scores >= (exact.kth - slack)[:, None]) & (found >= 0)
    ordered = found.sort(1)
    again = torch.zeros_like(hits)  # one row found twice is one hit
    again.scatter_(1, ordered.indices[:, 1:], ordered.values[:, 1:] == ordered.values[:, :-1])
    return float((hits & ~again).sum(1).clamp(max=exact.k).double().mean() / exact.k)


def measure_recall(
    search: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    queries: Tensor,
    vectors: Tensor,
    k: int,
    similarity: Similarity,
) -> Recall:
    """Compares what a search finds with what exact search finds.

    Args:
        search: gives scores and rows, [Q, k] each, of queries; such as `VectorIndex.search`.
        queries: float32 [Q, D].
        vectors: float32 [N, D], which the search's rows are positions of.
        k: neighbours to ask for.
        similarity: what to compare by.

    Returns:
        The recall, and both speeds on this machine, with the threads that each library has now.

    Example:
        >>> table = torch.eye(4)
        >>> measure_recall(lambda queries, k: find_neighbors(queries, table, k), table, table, 1, "cosine").recall
        1.0
    """
    exact = find_exact(queries, vectors, k, similarity)
    search(queries[:1], exact.k)  # loads what is loaded once
    started = time.perf_counter()
    _, found = search(queries, exact.k)
    seconds = time.perf_counter() - started
    return Recall(
        recall=judge(queries, vectors, found, exact, similarity),
        k=exact.k,
        num_queries=len(queries),
        queries_per_s=len(queries) / max(seconds, 1e-9),
        exact_queries_per_s=len(queries) / max(exact.seconds, 1e-9),
    )


def _rescore(queries: Tensor, vectors: Tensor, rows: Tensor, similarity: Similarity) -> Tensor:
    blocks = []
    for begin in range(0, len(queries), _BLOCK_QUERIES):
        part = slice(begin, begin + _BLOCK_QUERIES)
        candidates = vectors[rows[part].flatten()].double().view(*rows[part].shape, -1)
        blocks.append(compare_each(queries[part].double(), candidates, similarity))
    return torch.cat(blocks) if blocks else torch.from_numpy(np.zeros((0, rows.shape[1])))
