"""DistMult: bilinear with a diagonal: sum of h * r * t (Yang et al., ICLR 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from multifacet.kge.models.model import Model
from multifacet.kge.models.registry import register_model
from multifacet.kge.models.translations import Translation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from multifacet.kge.models.model import Side

__all__ = ["DistMult"]


@register_model("distmult")
class DistMult(Model):
    """Bilinear with a diagonal: sum of h * r * t (Yang et al., ICLR 2015)."""

    is_distance = False
    has_diagonal = True
    translation = Translation.PRODUCT

    @override
    def initial_relation(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"diagonal": self._first_diagonal(self.dim, generator)}

    @override
    def translate(self, projected: Tensor, relation: Mapping[str, Tensor], side: Side) -> Tensor:
        del side  # the score is symmetric in head and tail
        return projected * relation["diagonal"]

    @override
    def score_relations(self, heads: Tensor, tails: Tensor, relations: Mapping[str, Tensor]) -> Tensor:
        return (heads * tails) @ relations["diagonal"].t()
