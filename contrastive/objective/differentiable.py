"""The losses of `ScoreLoss` once more, in torch: for vectors that come from other processes, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from multifacet.contrastive.objective.losses import ScoreLoss

__all__ = ["sum_losses"]


def sum_losses(loss: ScoreLoss, scores: Tensor, *, queries: Tensor, targets: Tensor, masked: Tensor) -> Tensor:
    """Sum the losses of some positives; `contrastive.objective.losses` has the formulas, and a test holds the two together.

    Args:
        loss: which one.
        scores: scaled similarities of queries and candidates, with their bias, float [G, U].
        queries: the query of each positive, int64 [B].
        targets: its place among the candidates, int64 [B].
        masked: the places that are no negatives of each query, bool [G, U].

    Returns:
        The sum, a scalar that autograd can go back from.
    """
    own = scores[queries, targets]
    is_negative = ~masked[queries, targets]  # one of the candidates that are left; never a negative of itself
    if loss.name == "bilateral":
        return _sum_bilateral(loss, scores, queries=queries, targets=targets, masked=masked)
    if loss.name == "softmax":
        others = torch.logsumexp(scores.masked_fill(masked, -torch.inf), dim=1)[queries]
        return (torch.where(is_negative, others, torch.logaddexp(others, own)) - own).sum()
    counts = ((~masked).sum(1)[queries] - is_negative.long()).clamp(min=1)
    if loss.name == "ccl":
        excess = F.relu(scores - loss.margin)
        of_negatives = excess.masked_fill(masked, 0.0).sum(1)[queries] - is_negative * excess[queries, targets]
        return (1.0 - own + loss.negative_weight * of_negatives / counts).sum()
    costs = F.softplus(scores[queries] - own[:, None]).masked_fill(masked[queries], 0.0)
    itself = is_negative * F.softplus(torch.zeros_like(own))
    return ((costs.sum(1) - itself) / counts).sum()


def _sum_bilateral(loss: ScoreLoss, scores: Tensor, *, queries: Tensor, targets: Tensor, masked: Tensor) -> Tensor:
    """Sum the bilateral softmax; positives' scores must be without a bias, as they are where logQ is off."""
    hidden = masked.clone()
    hidden[queries, targets] = True
    counts = (~hidden & (scores > -torch.inf)).sum(1)
    negatives = torch.logsumexp(scores.masked_fill(hidden, -torch.inf), dim=1) - counts.clamp(min=1).log()
    negatives = torch.where(counts > 0, negatives, torch.zeros_like(negatives))
    return (loss.negative_weight * negatives[queries] - scores[queries, targets]).sum()
