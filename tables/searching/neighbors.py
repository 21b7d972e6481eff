"""Exact nearest rows of a table, in bounded memory."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from multifacet.inputs import expect_type, one_of, whole
from multifacet.tables.searching.similarity import SIMILARITIES, Similarity, compare_all, move_near_origin

__all__ = ["Backend", "find_neighbors"]

Backend = Literal["torch", "faiss"]

# Scores and copied rows held at once: 64 MiB of float32 each.
_BLOCK_ELEMENTS: Final = 1 << 24


def find_neighbors(
    queries: Tensor, vectors: Tensor, k: int, *, similarity: Similarity = "cosine", backend: Backend = "torch"
) -> tuple[Tensor, Tensor]:
    """Finds the k most similar rows of a table for each query, by comparing it with every row.

    The table is read block by block, so it may be a mapped file that is larger than memory. Both backends are exact; among
    equal similarities either may come first.

    Args:
        queries: float [Q, D].
        vectors: the table, float32 or float16 [N, D].
        k: rows to find; no more than N are given.
        similarity: "cosine" (a row of zeros is at 0 from everything), "dot", or minus a distance: "squared", "l2", "l1", or
            "moduli", of complex vectors.
        backend: "torch", or "faiss" for `faiss.knn`, where faiss is installed; it has no "moduli".

    Returns:
        The similarities, float32 [Q, k], from the largest; and the rows, int64 [Q, k].

    Raises:
        ValueError: k is below 1, the widths differ, or faiss is asked for moduli.
        RuntimeError: faiss is asked for and not installed.

    Example:
        >>> similarities, rows = find_neighbors(torch.tensor([[1.0, 0.1]]), torch.eye(2), 1)
        >>> rows.tolist()
        [[0]]
    """
    one_of(*SIMILARITIES)("similarity", similarity)
    one_of("torch", "faiss")("backend", backend)
    whole()("k", k)
    expect_type("queries", queries, Tensor)
    expect_type("vectors", vectors, Tensor)
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1")
    if queries.ndim != 2 or vectors.ndim != 2 or queries.shape[1] != vectors.shape[1]:
        raise ValueError(
            f"queries [Q, D] and vectors [N, D] need one width, got {list(queries.shape)} and {list(vectors.shape)}"
        )
    k = min(k, len(vectors))
    queries = queries.float()
    origin = None
    if similarity == "cosine":
        queries = F.normalize(queries)
    elif similarity in {"squared", "l2"}:
        origin = move_near_origin(queries, vectors)
        queries = queries - origin
    search = _search_by_faiss if backend == "faiss" else _search
    best = queries.new_full((len(queries), 0), 0.0)
    rows = torch.empty((len(queries), 0), dtype=torch.int64)
    block_rows = max(k, _BLOCK_ELEMENTS // max(1, len(queries), vectors.shape[1]))
    for begin in range(0, len(vectors), block_rows):
        block = vectors[begin : begin + block_rows].float()
        if similarity == "cosine":
            block = F.normalize(block)
        elif origin is not None:
            block = block - origin
        scores, positions = search(queries, block, min(k, len(block)), similarity)
        best, kept = torch.cat([best, scores], 1).topk(min(k, best.shape[1] + scores.shape[1]), dim=1)
        rows = torch.cat([rows, positions + begin], 1).gather(1, kept)
    return best, rows


def _search(queries: Tensor, block: Tensor, k: int, similarity: Similarity) -> tuple[Tensor, Tensor]:
    scores, positions = compare_all(queries, block, similarity).topk(k, dim=1)
    return scores, positions


def _search_by_faiss(queries: Tensor, block: Tensor, k: int, similarity: Similarity) -> tuple[Tensor, Tensor]:
    if similarity == "moduli":
        raise ValueError('the backend "faiss" cannot compare by "moduli"; the backend "torch" can')
    if find_spec("faiss") is None:
        raise RuntimeError(
            'the backend "faiss" needs faiss: pip install "multifacet[index]", or faiss-cpu; the default is exact too'
        )
    import faiss  # noqa: PLC0415 - optional, and slow to import

    metrics = {"cosine": faiss.METRIC_INNER_PRODUCT, "dot": faiss.METRIC_INNER_PRODUCT, "l1": faiss.METRIC_L1}
    found, positions = faiss.knn(queries.numpy(), block.numpy(), k, metric=metrics.get(similarity, faiss.METRIC_L2))
    scores = torch.from_numpy(found)
    if similarity == "l2":
        scores = scores.sqrt()
    return scores if similarity in {"cosine", "dot"} else -scores, torch.from_numpy(positions)
