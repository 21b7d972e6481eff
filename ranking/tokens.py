"""Interactions over tokens: DLRM's dot products, and DHEN's layers of unlike interactions side by side."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multifacet.ranking.slots import facing_pairs

with warnings.catch_warnings():
    # fbgemm_gpu's CPU build warns about kernels that only its CUDA build has.
    warnings.simplefilter("ignore", DeprecationWarning)
    from torchrec.models.dlrm import DenseArch, InteractionArch
    from torchrec.modules.crossnet import LowRankCrossNet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multifacet.ranking.slots import Slot


class DotInteraction(nn.Module):
    """DLRM (Naumov et al. 2019, arXiv 1906.00091): dots of all pairs of rows and of the dense features' token.

    TorchRec's DenseArch and InteractionArch.

    Args:
        num_dense: Dense features F.
        slots: (feature, facet) of each embedding slot.
        dim: Elements a row, D.

    Attributes:
        width: Elements of the result.
    """

    def __init__(self, num_dense: int, slots: Sequence[Slot], *, dim: int) -> None:
        super().__init__()
        num_slots = len(slots)
        self.dense = DenseArch(num_dense, [2 * dim, dim])
        self.dots = InteractionArch(num_slots)
        self.width = dim + num_slots * (num_slots + 1) // 2

    def forward(self, dense: Tensor, embeddings: Tensor) -> Tensor:
        """Let features meet: [B, F] and [B, T, D] to [B, width]."""
        met: Tensor = self.dots(self.dense(dense), embeddings)
        return met


class SelfAttention(nn.Module):
    """Attention of an example's tokens over each other.

    Args:
        dim: Elements a token.
        num_heads: Heads; they divide dim.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_attention_heads is {num_heads}, which does not divide the tokens' {dim} elements")
        self.num_heads = num_heads
        self.split = nn.Linear(dim, 3 * dim)
        self.join = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            tokens: [B, N, dim].
            mask: bool [B, N], True for tokens that may be attended to; None: all of them.

        Returns:
            [B, N, dim].
        """
        query, key, value = self.split(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        allowed = None if mask is None else mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        joined: Tensor = self.join(attended.transpose(1, 2).flatten(2))
        return joined


class DhenLayer(nn.Module):
    """Unlike interactions of the same tokens, summed, with a shortcut (Zhang et al. 2022, arXiv 2203.11014, equation 2).

    ``norm(attention(X) + cross(X) + dots(X) + linear(X) + X)``: self-attention over tokens, a low-rank cross over all
    elements (TorchRec's), the dots of all pairs of tokens, and a linear mixture of tokens.

    Args:
        num_tokens: Tokens N.
        dim: Elements a token.
        num_heads: Attention heads.
        cross_rank: Rank of the cross.
    """

    def __init__(self, num_tokens: int, dim: int, *, num_heads: int, cross_rank: int) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, num_heads)
        self.cross = LowRankCrossNet(num_tokens * dim, num_layers=1, low_rank=cross_rank)
        self.dots = InteractionArch(num_tokens - 1)
        num_dots = num_tokens * (num_tokens - 1) // 2
        self.from_dots = nn.Linear(dim + num_dots, num_tokens * dim)
        self.linear = nn.Linear(num_tokens, num_tokens)
        self.normalise = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Let tokens meet, [B, N, dim] to as many."""
        flat = tokens.flatten(1)
        met = self.attention(tokens)
        met = met + self.cross(flat).view_as(tokens)
        met = met + self.from_dots(self.dots(tokens[:, 0], tokens[:, 1:])).view_as(tokens)
        met = met + self.linear(tokens.transpose(1, 2)).transpose(1, 2)
        normalised: Tensor = self.normalise(met + tokens)
        return normalised


class DhenInteraction(nn.Module):
    """A stack of DHEN layers over the tokens: the dense features', one a row, and one a product of facing rows.

    Args:
        num_dense: Dense features F.
        slots: (feature, facet) of each embedding slot.
        dim: Elements a row, D.
        projected: Elements of a token.
        num_layers: Layers.
        num_heads: Attention heads.
        cross_rank: Rank of the crosses.

    Attributes:
        width: Elements of the result.
    """

    def __init__(
        self,
        num_dense: int,
        slots: Sequence[Slot],
        *,
        dim: int,
        projected: int,
        num_layers: int,
        num_heads: int,
        cross_rank: int,
    ) -> None:
        super().__init__()
        self.pairs = facing_pairs(slots)
        num_rows = len(slots) + len(self.pairs)
        num_tokens = 1 + num_rows
        self.dense = nn.Linear(num_dense, projected)
        if num_rows:
            self.normalise = nn.BatchNorm1d(num_rows * dim)
            self.project = nn.Parameter(torch.empty(num_rows, dim, projected).normal_(0, dim**-0.5))
        self.layers = nn.ModuleList(
            DhenLayer(num_tokens, projected, num_heads=num_heads, cross_rank=cross_rank) for _ in range(num_layers)
        )
        self.width = num_tokens * projected

    def forward(self, dense: Tensor, embeddings: Tensor) -> Tensor:
        """Let features meet: [B, F] and [B, T, D] to [B, width]."""
        tokens: Tensor = self.dense(dense).unsqueeze(1)
        slots = embeddings.unbind(1)
        if slots:
            rows = torch.stack([*slots, *(slots[left] * slots[right] for left, right in self.pairs)], dim=1)
            normalised = self.normalise(rows.flatten(1)).view_as(rows)
            tokens = torch.cat([tokens, torch.einsum("bnd,ndp->bnp", normalised, self.project)], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens.flatten(1)
