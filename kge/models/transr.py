"""TransR: translation in a space of the relation's own: t M is close to h M + r (Lin et al., AAAI 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from multifacet.kge.models.model import Model, noise
from multifacet.kge.models.projections import Projection, ProjectionKind
from multifacet.kge.models.registry import register_model
from multifacet.kge.models.transe import TransE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


__all__ = ["TransR"]


@register_model("transr")
class TransR(TransE):
    """Translation in a space of the relation's own: t M is close to h M + r (Lin et al., AAAI 2015)."""

    has_projection = True

    @override
    def initial_relation(self, generator: torch.Generator) -> dict[str, Tensor]:
        projection = torch.eye(self.dim) + noise(self.dim, self.dim, generator=generator)
        return {"projection": projection, **super().initial_relation(generator)}

    @property
    @override
    def projection(self) -> Projection:
        return Projection(ProjectionKind.FULL, self.dim)

    @override
    def project(self, entities: Tensor, relation: Mapping[str, Tensor]) -> Tensor:
        return entities @ relation["projection"]

    @override
    def score_relations(self, heads: Tensor, tails: Tensor, relations: Mapping[str, Tensor]) -> Tensor:
        return Model.score_relations(self, heads, tails, relations)
