"""TransE: translation: t is close to h + r (Bordes et al., NeurIPS 2013)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from multifacet.kge.models.model import Model, noise
from multifacet.kge.models.registry import register_model
from multifacet.kge.models.translations import Translation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from multifacet.kge.models.model import Side

__all__ = ["TransE"]


@register_model("transe")
class TransE(Model):
    """Translation: t is close to h + r (Bordes et al., NeurIPS 2013)."""

    is_distance = True
    translation = Translation.ADDITION

    @override
    def initial_relation(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"translation": noise(self.dim, generator=generator)}

    @override
    def translate(self, projected: Tensor, relation: Mapping[str, Tensor], side: Side) -> Tensor:
        translation = relation["translation"]
        return projected + translation if side == "tail" else projected - translation

    @override
    def score_relations(self, heads: Tensor, tails: Tensor, relations: Mapping[str, Tensor]) -> Tensor:
        translations = relations["translation"]
        return torch.addmm(-translations.square().sum(-1), 2.0 * (tails - heads), translations.t())
