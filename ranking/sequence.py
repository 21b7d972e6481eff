"""A user's recent pins as one row a facet: pooled by attention, or read by a transformer first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from multifacet.ranking.tokens import SelfAttention

if TYPE_CHECKING:
    from collections.abc import Sequence

Pooling = Literal["attention", "transformer"]
SequenceTable = Literal["shared", "separate"]


class CandidateAttention(nn.Module):
    """Rows averaged by what the candidate finds in them.

    ``a = softmax(q(candidate) . k(row) / sqrt(D))`` over the rows and one learned row that stands for none of them, which
    is also what a user without a history gets. Values are the rows themselves, so that the result lies in the pins' space
    and its product with the candidate means what a user's does. (Zhou et al. 2018, arXiv 1706.06978, weigh by an MLP
    instead.)

    Args:
        dim: Elements a row, D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.nothing = nn.Parameter(torch.zeros(1, 1, dim))

    def weights(self, rows: Tensor, mask: Tensor, candidate: Tensor) -> Tensor:
        """Weigh the rows.

        Args:
            rows: [B, L, D].
            mask: bool [B, L], True where there is a row.
            candidate: [B, D].

        Returns:
            [B, L + 1], summing to 1; the last is the weight of none of them.
        """
        keys = self.key(self._with_nothing(rows))
        scores = torch.einsum("bd,bld->bl", self.query(candidate), keys) / rows.shape[2] ** 0.5
        allowed = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        weights: Tensor = scores.masked_fill(~allowed, -torch.inf).softmax(1)
        return weights

    def forward(self, rows: Tensor, mask: Tensor, candidate: Tensor) -> Tensor:
        """Pool, [B, L, D] to [B, D]."""
        return torch.einsum("bl,bld->bd", self.weights(rows, mask, candidate), self._with_nothing(rows))

    def _with_nothing(self, rows: Tensor) -> Tensor:
        # Not len(rows), which an export would take for a constant.
        return torch.cat([rows, self.nothing.expand(rows.shape[0], 1, -1)], dim=1)


class SequenceTransformer(nn.Module):
    """A transformer layer over the rows, most recent first, before the candidate's attention.

    ``h = x + attention(norm(x + p)); y = h + mlp(norm(h))`` with a learned vector p for each position. Both branches end
    in zeros at the start, so that training begins from plain attention pooling.

    Args:
        dim: Elements a row, D.
        length: Rows at most, L.
        num_heads: Attention heads; they divide D.
    """

    def __init__(self, dim: int, length: int, num_heads: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(length, dim).normal_(0, 0.02))
        self.normalise = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, num_heads)
        narrow = nn.Linear(2 * dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), narrow)
        self.pool = CandidateAttention(dim)
        for last in (self.attention.join, narrow):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, rows: Tensor, mask: Tensor, candidate: Tensor) -> Tensor:
        """Pool, [B, L, D] to [B, D]."""
        # A row always sees itself: a softmax over nothing is not a number. Rows that are none are not pooled afterwards.
        visible = mask | (~mask.any(1, keepdim=True))
        read = rows + self.attention(self.normalise(rows + self.positions), visible)
        pooled: Tensor = self.pool(read + self.mlp(read), mask, candidate)
        return pooled


class SequencePooling(nn.Module):
    """Pools a user's recent pins in each facet by itself: facets' spaces have nothing in common.

    Args:
        facets: The facets, S.
        dim: Elements a row, D.
        length: Recent pins at most, L.
        kind: "attention" (`CandidateAttention`) or "transformer" (`SequenceTransformer`).
        num_heads: Heads of the transformer's attention.

    Raises:
        ValueError: For another kind.
    """

    def __init__(self, facets: Sequence[str], *, dim: int, length: int, kind: Pooling, num_heads: int) -> None:
        super().__init__()
        if kind not in ("attention", "transformer"):
            raise ValueError(f"sequence is {kind!r}; expected attention or transformer")
        self.facets, self.dim, self.length = tuple(facets), dim, length
        self.pools = nn.ModuleList(
            CandidateAttention(dim) if kind == "attention" else SequenceTransformer(dim, length, num_heads) for _ in facets
        )

    def forward(self, rows: Tensor, num_recent: Tensor, candidate: Tensor) -> Tensor:
        """Pool.

        Args:
            rows: Rows of the recent pins, most recent first, [B, L, S, D]; what stands beyond a user's number is ignored.
            num_recent: How many there are, int [B].
            candidate: The candidate pin's rows, [B, S, D].

        Returns:
            [B, S, D]. If all candidates are one user's, rows and num_recent may come once, [1, L, S, D] and [1].
        """
        mask = torch.arange(self.length, device=rows.device) < num_recent.unsqueeze(1)
        pooled: list[Any] = [
            pool(facet_rows, mask, facet_candidate)
            for pool, facet_rows, facet_candidate in zip(self.pools, rows.unbind(2), candidate.unbind(1), strict=True)
        ]
        return torch.stack(pooled, dim=1)
