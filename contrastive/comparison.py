"""Queries compared with the candidates that they share: the loss, and its derivatives by both, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from multifacet.contrastive.candidates import Candidates
    from multifacet.contrastive.losses import ScoreLoss

__all__ = ["Comparison", "Gradients", "compare"]

# One mebibyte of scores: a block stays in the cache from its product to its gradient.
_BLOCK_ELEMENTS: Final = 1 << 18


class Gradients(NamedTuple):
    """A summed loss, and its derivatives times the temperature by the compared vectors: queries [G, D], candidates [U, D]."""

    loss: float
    queries: Tensor
    candidates: Tensor


def compare(
    queries: NDArray[np.float32],
    keys: NDArray[np.float32],
    candidates: Candidates,
    loss: ScoreLoss,
    *,
    scale: float,
    bias: NDArray[np.float32],
    first: int = 0,
) -> Gradients:
    """Compare some of a batch's queries with all of its candidates.

    Args:
        queries: vectors, float32 [G, D].
        keys: the candidates' vectors, float32 [U, D].
        candidates: where the queries' positives and masked places are.
        loss: of the scores.
        scale: one over the temperature.
        bias: added to the scaled similarities, float32 [U].
        first: number of the first of these queries in the batch.

    Returns:
        What these queries add to the batch's summed loss and its derivatives.
    """
    own, compared = torch.from_numpy(queries), torch.from_numpy(keys)
    transposed = compared.t()
    query_gradients, key_gradients = torch.empty_like(own), torch.zeros_like(compared)
    block_rows = max(1, min(len(own), _BLOCK_ELEMENTS // len(keys)))
    scores = torch.empty((block_rows, len(keys)))
    total = 0.0
    for begin in range(0, len(own), block_rows):
        end = min(begin + block_rows, len(own))
        block = scores[: end - begin]
        torch.mm(own[begin:end], transposed, out=block)
        total += loss(
            block.numpy(),
            scale=scale,
            bias=bias,
            targets=candidates.targets,
            masked=candidates.masked,
            first=first + begin,
        )
        torch.mm(block, compared, out=query_gradients[begin:end])
        key_gradients.addmm_(block.t(), own[begin:end])
    return Gradients(total, query_gradients, key_gradients)


class Comparison(torch.autograd.Function):
    """`compare` as a node of autograd's graph, for vectors that a network makes: gives the mean loss a positive.

    Call `Comparison.apply(queries, keys, candidates, loss, scale, bias)`.
    """

    @staticmethod
    @override
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        candidates: Candidates,
        loss: ScoreLoss,
        scale: float,
        bias: NDArray[np.float32],
    ) -> Tensor:
        gradients = compare(queries.numpy(), keys.numpy(), candidates, loss, scale=scale, bias=bias)
        num_positives = len(candidates.targets.slots)
        factor = scale / num_positives
        ctx.save_for_backward(gradients.queries.mul_(factor), gradients.candidates.mul_(factor))
        return queries.new_tensor(gradients.loss / num_positives)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        by_query, by_key = ctx.saved_tensors
        return gradient * by_query, gradient * by_key, None, None, None, None
