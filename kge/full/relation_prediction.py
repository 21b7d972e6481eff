"""Predicting the relation of two given ends, as an auxiliary loss (Chen et al., arXiv 2110.02834)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from multifacet.kge.models.model import Model

__all__ = ["relation_loss"]


def relation_loss(model: Model, heads: Tensor, tails: Tensor, relations: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Cross-entropy of each pair's relation among those given, as one matrix product.

    Args:
        model: the scoring model.
        heads: float [n, D].
        tails: float [n, D].
        relations: parameters of the relations to choose from, [K, ...] each.
        targets: position of each pair's relation among them, int64 [n].

    Returns:
        The losses in nats, float [n].

    Raises:
        ValueError: if the model projects entities by their relation: it would take K projections of every pair.
    """
    return F.cross_entropy(model.score_relations(heads, tails, relations), targets, reduction="none")
