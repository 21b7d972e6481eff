"""TransRA: transR whose projections are anchored at the identity: M_r = I + U_r V_r^T with U_r, V_r [D, k]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from typing_extensions import override

from multifacet.inputs import takes, whole
from multifacet.kge.models.model import Model, noise
from multifacet.kge.models.projections import Projection, ProjectionKind
from multifacet.kge.models.registry import register_model
from multifacet.kge.models.transe import TransE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from multifacet.kge.models.model import Distance, ModelFields

__all__ = ["TransRA"]


@register_model("transra")
class TransRA(TransE):
    """TransR whose projections are anchored at the identity: M_r = I + U_r V_r^T with U_r, V_r [D, k].

    Entities of one type stay comparable across relations (their dot products mean something without a projection), and
    a relation costs D (2 k + 1) numbers instead of D (D + 1). "TransR with Anchors" is named but not published as a
    formula in arXiv 2508.02609; this is the project's own reading of it.

    Args:
        dim: width D of an entity's vector.
        rank: k.
        distance: which distance scores are minus of.
    """

    has_projection = True

    @takes(rank=whole(1))
    def __init__(self, dim: int, rank: int, distance: Distance = "squared") -> None:
        super().__init__(dim, distance)
        self.rank = rank

    @classmethod
    @override
    def from_config(cls, config: ModelFields) -> Self:
        return cls(config.dim, config.rank, config.distance)

    @override
    def initial_relation(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "left": noise(self.dim, self.rank, generator=generator) * 10.0,
            "right": torch.zeros(self.dim, self.rank),  # M_r is I at first; `left` is not zero, so that `right` can learn
            **super().initial_relation(generator),
        }

    @property
    @override
    def projection(self) -> Projection:
        return Projection(ProjectionKind.ANCHORED, self.dim, self.rank)

    @override
    def project(self, entities: Tensor, relation: Mapping[str, Tensor]) -> Tensor:
        return entities + (entities @ relation["left"]) @ relation["right"].mT

    @override
    def score_relations(self, heads: Tensor, tails: Tensor, relations: Mapping[str, Tensor]) -> Tensor:
        return Model.score_relations(self, heads, tails, relations)
