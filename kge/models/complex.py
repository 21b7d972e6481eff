"""ComplEx: complex bilinear: Re(sum of h * r * conj(t)) (Trouillon et al., ICML 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from multifacet.kge.models.model import Model, multiply, multiply_pairs, noise
from multifacet.kge.models.registry import register_model
from multifacet.kge.models.translations import Translation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from multifacet.kge.models.model import Side

__all__ = ["ComplEx"]


@register_model("complex")
class ComplEx(Model):
    """Complex bilinear: Re(sum of h * r * conj(t)) (Trouillon et al., ICML 2016).

    A vector's first half holds the real parts, its second half the imaginary parts.
    """

    is_distance = False
    has_complex_entities = True
    has_diagonal = True
    translation = Translation.COMPLEX_PRODUCT

    @override
    def initial_relation(self, generator: torch.Generator) -> dict[str, Tensor]:
        half = self.dim // 2
        real = self._first_diagonal(half, generator)
        if self.relation_init == "entities":
            return {"real": real, "imaginary": self._first_diagonal(half, generator)}
        return {"real": real, "imaginary": noise(half, generator=generator)}

    @override
    def translate(self, projected: Tensor, relation: Mapping[str, Tensor], side: Side) -> Tensor:
        return multiply(projected, relation["real"], relation["imaginary"], conjugate=side == "head")

    @override
    def score_relations(self, heads: Tensor, tails: Tensor, relations: Mapping[str, Tensor]) -> Tensor:
        return multiply_pairs(heads, tails) @ torch.cat([relations["real"], relations["imaginary"]], dim=-1).t()
