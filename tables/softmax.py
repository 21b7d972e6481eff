"""Softmax cross-entropy of queries over shared candidates, never holding the whole score matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tables.candidates import Hits

__all__ = ["sampled_softmax_loss"]

# One mebibyte of scores: a block stays in the cache from its product to its gradient.
BLOCK_ELEMENTS = 1 << 18


def sampled_softmax_loss(
    queries: Tensor,
    keys: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    hits: Hits | None = None,
) -> Tensor:
    """Mean cross-entropy of `queries @ keys.T + bias` against one target a query.

    Scores, softmax and gradients are computed block by block of queries in one pass, so that memory does not
    grow with B * U; the gradient comes from the closed form, softmax minus one-hot.

    Args:
        queries: float32 [B, D].
        keys: vectors of the candidates, float32 [U, D].
        targets: each query's right candidate, int64 [B].
        bias: added to every query's score of a candidate, float32 [U]: minus the log inclusion probability, and
            minus the squared norm when the score is a squared distance.
        hits: candidates to leave out of a query's softmax.

    Returns:
        The mean loss in nats, a scalar; differentiable in `queries`, `keys` and `bias`. A single query's loss is
        capped at about 87 nats, where float32 probabilities end; its gradient is not.

    Raises:
        ValueError: if the shapes don't fit.
    """
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1]:
        raise ValueError(f"queries [B, D] and keys [U, D] need one width, got {queries.shape} and {keys.shape}")
    if targets.shape != queries.shape[:1]:
        raise ValueError(f"one target a query: expected shape ({len(queries)},), got {tuple(targets.shape)}")
    if bias is None:
        bias = queries.new_zeros(len(keys))
    loss: Tensor = _SampledSoftmax.apply(queries, keys, targets, bias, hits)  # type: ignore[no-untyped-call]
    return loss


class _SampledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, targets: Tensor, bias: Tensor, hits: Hits | None) -> Tensor:
        num_queries, num_keys = len(queries), len(keys)
        block_rows = max(1, min(num_queries, BLOCK_ELEMENTS // max(1, num_keys)))
        transposed = keys.t()
        scores = queries.new_empty((block_rows, num_keys))
        queries_gradient = torch.empty_like(queries)
        keys_gradient = torch.zeros_like(keys)
        bias_gradient = torch.zeros_like(bias)
        probabilities = queries.new_empty(num_queries)
        target_slots = targets.numpy()
        for begin in range(0, num_queries, block_rows):
            end = min(begin + block_rows, num_queries)
            block = scores[: end - begin]
            torch.addmm(bias, queries[begin:end], transposed, out=block)
            if hits is not None:
                _fill_hits(block.numpy(), target_slots, hits.groups, hits.indptr, hits.slots, begin)
            torch.softmax(block, dim=1, out=block)
            block_targets = targets[begin:end, None]
            chosen = block.gather(1, block_targets)
            probabilities[begin:end] = chosen[:, 0]
            block.scatter_(1, block_targets, chosen - 1.0)
            torch.mm(block, keys, out=queries_gradient[begin:end])
            keys_gradient.addmm_(block.t(), queries[begin:end])
            bias_gradient += block.sum(0)
        ctx.save_for_backward(queries_gradient, keys_gradient, bias_gradient)
        return -probabilities.clamp_(min=torch.finfo(queries.dtype).tiny).log_().mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries_gradient, keys_gradient, bias_gradient = ctx.saved_tensors
        scale = gradients[0] / len(queries_gradient)
        return queries_gradient * scale, keys_gradient * scale, None, bias_gradient * scale, None


@numba.njit(nogil=True, cache=True)
def _fill_hits(
    block: NDArray[Any],
    targets: NDArray[np.int64],
    groups: NDArray[np.int32],
    indptr: NDArray[np.int64],
    slots: NDArray[np.int32],
    begin: int,
) -> None:
    for row in range(len(block)):
        target = targets[begin + row]
        kept = block[row, target]
        group = groups[begin + row]
        for position in range(indptr[group], indptr[group + 1]):
            block[row, slots[position]] = -np.inf
        block[row, target] = kept
