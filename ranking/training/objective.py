"""What a ranker learns from: CTR on all examples, CVR where it is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from multifacet.ranking.model.heads import PRODUCT_HEADS

if TYPE_CHECKING:
    from torch import Tensor

    from multifacet.ranking.model.heads import Heads


def training_loss(
    logits: Tensor,
    ctr: Tensor,
    cvr: Tensor,
    cvr_known: Tensor,
    *,
    heads: Heads,
    cvr_weight: float,
    weight: Tensor | None = None,
    num_examples: float | None = None,
    num_counted: float | None = None,
) -> Tensor:
    """The loss of a batch.

    With shared bottom and MMoE, CVR's cross entropy is over the examples whose conversion is known. With ESMM it is that
    of the product ``p(click) p(conversion | click)`` (Ma et al. 2018, arXiv 1804.07931, equation 3) over all examples but
    the clicks whose conversion is not known yet: an exposure without a click is known to have no conversion.

    Args:
        logits: Logits of (ctr, cvr), [B, 2].
        ctr: 1 for a click, else 0, [B].
        cvr: 1 for a conversion, else 0 (also where unknown), [B].
        cvr_known: 1 where a click's conversion is known, else 0, [B].
        heads: The heads that gave the logits.
        cvr_weight: Weight of CVR's loss beside CTR's of 1.
        weight: What each example counts for, [B]; None for 1. Both losses are then weighted means.
        num_examples: What to divide the sum of CTR's losses by, where this is a part of a batch; None: its examples.
        num_counted: What to divide the sum of CVR's losses by, likewise; None: its labels that count (`counted_labels`).

    Returns:
        A scalar.
    """
    if weight is not None and num_examples is None:
        num_examples = float(weight.sum())
    if num_examples is None:
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], ctr)
    else:
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], ctr, weight, reduction="sum") / num_examples
    if heads in PRODUCT_HEADS:
        losses = product_losses(logits, cvr)
    else:
        losses = F.binary_cross_entropy_with_logits(logits[:, 1], cvr, reduction="none")
    counted = counted_labels(ctr, cvr_known, heads)
    if weight is not None:
        counted = counted * weight
    if num_counted is None:
        # Without weights at least 1: a batch may have no label that counts.
        divisor: Tensor | float = counted.sum().clamp(min=1 if weight is None else torch.finfo(counted.dtype).tiny)
    else:
        divisor = num_counted
    return loss + cvr_weight * (losses * counted).sum() / divisor


def counted_labels(ctr: Tensor, cvr_known: Tensor, heads: Heads) -> Tensor:
    """Give 1 for each example whose CVR loss counts, else 0; arguments as in `training_loss`."""
    return torch.maximum(cvr_known, 1 - ctr) if heads in PRODUCT_HEADS else cvr_known


def product_losses(logits: Tensor, converted: Tensor) -> Tensor:
    """Cross entropy of the product of two probabilities, from their logits.

    ``-log(1 - s(a) s(b)) = softplus(a) + softplus(b) - log(1 + e^a + e^b)``, which stays finite and exact where the
    product rounds to 1.

    Args:
        logits: a and b, [B, 2].
        converted: Label of the product, [B].

    Returns:
        [B].
    """
    first, second = logits.unbind(1)
    both = F.softplus(-first) + F.softplus(-second)
    nothing = torch.zeros_like(first)
    neither = F.softplus(first) + F.softplus(second) - torch.logsumexp(torch.stack([nothing, first, second]), dim=0)
    return torch.where(converted > 0, both, neither)
