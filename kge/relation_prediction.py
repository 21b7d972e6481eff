"""Predicting the relation of two given ends, as an auxiliary loss (Chen et al., arXiv 2110.02834)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from multifacet.kge.models import ComplEx, DistMult, RotatE, TransE, TransR, TransRA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from multifacet.kge.models import Model

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
    return F.cross_entropy(_scores(model, heads, tails, relations), targets, reduction="none")


def _scores(model: Model, heads: Tensor, tails: Tensor, relations: Mapping[str, Tensor]) -> Tensor:
    """Score pairs with each relation, [n, K], but for a constant of the pair."""
    if isinstance(model, TransE) and not isinstance(model, TransR | TransRA):
        translations = relations["translation"]
        return torch.addmm(-translations.square().sum(-1), 2.0 * (tails - heads), translations.t())
    if isinstance(model, DistMult):
        return (heads * tails) @ relations["diagonal"].t()
    # Re(h r conj(t)) as a product of the real pairs (h conj(t), conjugated) and r; a rotation's distance is -2 of it.
    head_real, head_imaginary = heads.chunk(2, dim=-1)
    tail_real, tail_imaginary = tails.chunk(2, dim=-1)
    pairs = torch.cat(
        [head_real * tail_real + head_imaginary * tail_imaginary, head_real * tail_imaginary - head_imaginary * tail_real],
        dim=-1,
    )
    if isinstance(model, ComplEx):
        return pairs @ torch.cat([relations["real"], relations["imaginary"]], dim=-1).t()
    if isinstance(model, RotatE):
        angles = relations["angle"]
        return 2.0 * (pairs @ torch.cat([angles.cos(), angles.sin()], dim=-1).t())
    raise ValueError(f"relation prediction would have to project each pair by every relation of {model}: leave it out")
