"""What two rows are compared by: the scores that facets are trained with."""

from __future__ import annotations

from typing import Final, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SIMILARITIES", "Similarity", "compare_all", "compare_each", "move_near_origin"]

#: "cosine" and "dot" of towers and bilinear models; minus the squared distance, the distance, the sum of absolute differences
#: or the sum of complex moduli (real parts in a vector's first half, imaginary ones in its second) of distance models.
Similarity = Literal["cosine", "dot", "squared", "l2", "l1", "moduli"]
SIMILARITIES: Final[tuple[Similarity, ...]] = get_args(Similarity)

# Differences held at once: 64 MiB of float32.
_BLOCK_ELEMENTS: Final = 1 << 24
_SAMPLE_ROWS: Final = 1 << 16


def compare_each(queries: Tensor, candidates: Tensor, similarity: Similarity) -> Tensor:
    """Compares each query with candidates of its own, by their differences, which keep the digits that a product loses.

    Args:
        queries: float32 [Q, D].
        candidates: float32 [Q, S, D].
        similarity: what to compare by.

    Returns:
        float32 [Q, S], larger is nearer.
    """
    if similarity == "cosine":
        queries, candidates = F.normalize(queries, dim=-1), F.normalize(candidates, dim=-1)
    if similarity in {"cosine", "dot"}:
        return torch.bmm(candidates, queries[:, :, None])[:, :, 0]
    difference = candidates - queries[:, None]
    if similarity == "moduli":
        real, imaginary = difference.chunk(2, dim=-1)
        return -torch.hypot(real, imaginary).sum(-1)
    if similarity == "l1":
        return -difference.abs().sum(-1)
    squares = difference.square().sum(-1)
    return -squares if similarity == "squared" else -squares.sqrt()


def compare_all(queries: Tensor, vectors: Tensor, similarity: Similarity) -> Tensor:
    """Compares every query with every vector; by one matrix product, but for "l1" and "moduli".

    Args:
        queries: float32 [Q, D]; of length 1 for "cosine".
        vectors: float32 [N, D]; likewise.
        similarity: what to compare by.

    Returns:
        float32 [Q, N], larger is nearer.
    """
    if similarity in {"cosine", "dot"}:
        return queries @ vectors.t()
    if similarity == "l1":
        return -torch.cdist(queries, vectors, p=1.0)
    if similarity == "moduli":
        blocks = torch.split(queries, max(1, _BLOCK_ELEMENTS // max(1, vectors.numel())))
        return torch.cat([compare_each(block, vectors.expand(len(block), -1, -1), "moduli") for block in blocks])
    squares = torch.addmm(-vectors.square().sum(-1) - queries.square().sum(-1, keepdim=True), queries, vectors.t(), alpha=2.0)
    squares.clamp_(max=0.0)
    return squares if similarity == "squared" else -(-squares).sqrt_()


def move_near_origin(queries: Tensor, vectors: Tensor) -> Tensor:
    """Gives a point to subtract from both sides before distances are taken by a product, which keeps no digits far from 0.

    Args:
        queries: float [Q, D]; only their dtype and width are read.
        vectors: float [N, D]; the mean of its first rows is taken.

    Returns:
        float32 [D].
    """
    sample = vectors[:_SAMPLE_ROWS].float()
    return sample.mean(0) if len(sample) else queries.new_zeros(queries.shape[1], dtype=torch.float32)
