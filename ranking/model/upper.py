"""The upper model: everything above the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from multifacet.ranking.model.combination import make_combination
from multifacet.ranking.model.heads import make_heads
from multifacet.ranking.model.interactions.crossing import CrossInteraction
from multifacet.ranking.model.interactions.masknet import MaskInteraction
from multifacet.ranking.model.interactions.tokens import DhenInteraction, DotInteraction
from multifacet.ranking.slots import make_slots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multifacet.ranking.model.combination import Combination
    from multifacet.ranking.model.heads import Heads
    from multifacet.ranking.slots import Slot

Interaction = Literal["dcn_v2", "dlrm", "masknet", "dhen"]


class UpperModel(nn.Module):
    """Everything above the tables: dense features and looked-up rows in, CTR and CVR logits out.

    ::

        dense [B, F] ---------> standardise ---------+
        embeddings [B, T, D] -> combine facets ------+-> interaction -> heads -> logits [B, 2]

    It never sees an id or a table, so that it can be exported, and run where the tables are not.

    Args:
        num_dense: Dense features F; without any, the interaction gets a constant.
        slots: (feature, facet) of each embedding slot, in the order of `embeddings`' second axis.
        dim: Elements a row, D.
        combination: How facets come together: `ConcatFacets`, `SumFacets`, `GateFacets`, `AttendFacets`.
        interaction: How features meet: `CrossInteraction`, `DotInteraction`, `MaskInteraction`, `DhenInteraction`.
        heads: From there to logits: `SharedBottom`, `MixtureOfExperts`, `SeparateTowers`, `DenseConversionTower`.
        projected: Elements that the rows, and the products, are projected to; of a token of "dhen".
        num_cross_layers: Cross layers of "dcn_v2".
        cross_rank: Rank of cross layers.
        num_blocks: Mask blocks of "masknet", layers of "dhen".
        num_attention_heads: Heads of combination "attention" and of "dhen".
        num_experts: Experts of "mmoe".
        hidden: Widths of the MLPs' layers; the first is also a mask block's width.
        dropout: Dropout after each MLP layer.

    Raises:
        ValueError: If slots repeat, or the parts do not fit.
    """

    dense_mean: Tensor
    dense_scale: Tensor

    def __init__(
        self,
        *,
        num_dense: int,
        slots: Sequence[tuple[str, str]],
        dim: int,
        combination: Combination = "concat",
        interaction: Interaction = "dcn_v2",
        heads: Heads = "shared_bottom",
        projected: int = 32,
        num_cross_layers: int = 2,
        cross_rank: int = 32,
        num_blocks: int = 2,
        num_attention_heads: int = 2,
        num_experts: int = 4,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_dense, self.dim, self.slots = num_dense, dim, make_slots(slots)
        self.register_buffer("dense_mean", torch.zeros(num_dense))
        self.register_buffer("dense_scale", torch.ones(num_dense))
        if not num_dense and not self.slots:
            raise ValueError("a ranker needs a feature: there are neither dense ones nor ids")
        num_columns = max(1, num_dense)
        self.combination = make_combination(combination, self.slots, dim=dim, num_heads=num_attention_heads)
        combined: Sequence[Slot] = self.combination.slots
        self.interaction: Any
        if interaction == "dcn_v2":
            self.interaction = CrossInteraction(
                num_columns, combined, dim=dim, projected=projected, num_layers=num_cross_layers, rank=cross_rank
            )
        elif interaction == "dlrm":
            self.interaction = DotInteraction(num_columns, combined, dim=dim)
        elif interaction == "masknet":
            self.interaction = MaskInteraction(
                num_columns, combined, dim=dim, projected=projected, num_blocks=num_blocks, block_width=hidden[0]
            )
        elif interaction == "dhen":
            self.interaction = DhenInteraction(
                num_columns,
                combined,
                dim=dim,
                projected=projected,
                num_layers=num_blocks,
                num_heads=num_attention_heads,
                cross_rank=cross_rank,
            )
        else:
            raise ValueError(f"interaction is {interaction!r}; expected dcn_v2, dlrm, masknet or dhen")
        self.heads = make_heads(
            heads, self.interaction.width, hidden, dropout=dropout, num_experts=num_experts, num_dense=num_dense
        )
        self._heads_read_dense = heads == "esmm_dense"

    @property
    def num_slots(self) -> int:
        """Embedding slots, T."""
        return len(self.slots)

    def fit_normalisation(self, dense: Tensor) -> None:
        """Set the mean and scale of the dense features from training examples.

        Args:
            dense: Raw dense features, float32 [n, F].
        """
        if not self.num_dense:
            return
        self.dense_mean.copy_(dense.mean(0))
        self.dense_scale.copy_(1 / dense.std(0).clamp(min=1e-6))

    def forward(self, dense: Tensor, embeddings: Tensor) -> Tensor:
        """Score examples.

        Args:
            dense: Raw dense features, float32 [B, F].
            embeddings: Looked-up rows, float32 [B, T, D].

        Returns:
            Logits of (ctr, cvr), float32 [B, 2].
        """
        standardised = (dense - self.dense_mean) * self.dense_scale if self.num_dense else dense.new_zeros(dense.shape[0], 1)
        features = self.interaction(standardised, self.combination(embeddings))
        logits: Tensor = self.heads(features, standardised) if self._heads_read_dense else self.heads(features)
        return logits
