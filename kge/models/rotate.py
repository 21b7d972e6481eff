"""RotatE: rotation: t is close to h * exp(i angle), elementwise in the complex plane (Sun et al., ICLR 2019)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from multifacet.kge.models.model import Model, multiply, multiply_pairs
from multifacet.kge.models.registry import register_model
from multifacet.kge.models.translations import Translation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from multifacet.kge.models.model import Side

__all__ = ["RotatE"]


@register_model("rotate")
class RotatE(Model):
    """Rotation: t is close to h * exp(i angle), elementwise in the complex plane (Sun et al., ICLR 2019).

    A vector's first half holds the real parts, its second half the imaginary parts. A rotation keeps distances, so the
    head's query is the tail turned back.
    """

    is_distance = True
    has_complex_entities = True
    translation = Translation.ROTATION

    @override
    def initial_relation(self, generator: torch.Generator) -> dict[str, Tensor]:
        # All around: from rotations near the identity, training ends in "linked nodes are alike", whatever the relation.
        return {"angle": (2.0 * torch.rand(self.dim // 2, generator=generator) - 1.0) * math.pi}

    @override
    def translate(self, projected: Tensor, relation: Mapping[str, Tensor], side: Side) -> Tensor:
        angle = relation["angle"]
        return multiply(projected, angle.cos(), angle.sin(), conjugate=side == "head")

    @override
    def score_relations(self, heads: Tensor, tails: Tensor, relations: Mapping[str, Tensor]) -> Tensor:
        angles = relations["angle"]  # the distance of a rotation is -2 times the product, but for lengths
        return 2.0 * (multiply_pairs(heads, tails) @ torch.cat([angles.cos(), angles.sin()], dim=-1).t())
