"""How the facets of one id come together, before an upper model's features meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor, nn

from multifacet.ranking.slots import Slot

if TYPE_CHECKING:
    from collections.abc import Sequence

_LENGTH_EPS: Final = 1e-12

Combination = Literal["concat", "sum", "gating", "attention"]


class ConcatFacets(nn.Module):
    """Every facet keeps a slot of its own.

    Args:
        slots: (feature, facet) of each slot.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        super().__init__()
        self.slots = tuple(slots)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the embeddings as they are, [B, T, D]."""
        return embeddings


class SumFacets(nn.Module):
    """A feature's facets are added: N features leave N slots.

    Args:
        slots: (feature, facet) of each slot: all features of one facet, then all of the next.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        super().__init__()
        self.features, self.facets = _grid(slots)
        self.slots = tuple(Slot(feature, "sum") for feature in self.features)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Add the facets up, [B, T, D] to [B, N, D]."""
        return _by_facet(embeddings, len(self.features)).sum(1)


class GateFacets(nn.Module):
    """A feature's facets are averaged by weights that its own rows choose.

    ``w = softmax(W [e_1 ... e_F, |e_1| ... |e_F|]); e = sum_f w_f e_f``: a mixture-of-experts gate (Jacobs et al. 1991)
    whose experts are facets. An id that one facet knows badly can lean on another; how well it is known shows in its row's
    length, which a linear gate could not compute.

    Args:
        slots: (feature, facet) of each slot: all features of one facet, then all of the next.
        dim: Elements a row, D.
    """

    def __init__(self, slots: Sequence[Slot], dim: int) -> None:
        super().__init__()
        self.features, self.facets = _grid(slots)
        self.slots = tuple(Slot(feature, "gated") for feature in self.features)
        num_facets = len(self.facets)
        self.measure = _Measured(len(slots), dim)
        self.gates = nn.ModuleList(nn.Linear(num_facets * (dim + 1), num_facets) for _ in self.features)

    def weights(self, embeddings: Tensor) -> Tensor:
        """Choose each facet's weight.

        Args:
            embeddings: float32 [B, T, D].

        Returns:
            [B, F, N]; over F they sum to 1.
        """
        measured = _by_facet(self.measure(embeddings), len(self.features)).unbind(2)
        scores = [gate(rows.flatten(1)) for gate, rows in zip(self.gates, measured, strict=True)]
        return torch.stack(scores, dim=2).softmax(1)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Average the facets, [B, T, D] to [B, N, D]."""
        return (self.weights(embeddings).unsqueeze(3) * _by_facet(embeddings, len(self.features))).sum(1)


class AttendFacets(nn.Module):
    """A feature's facets are attended over by the example's other embeddings, which adds a slot to each feature.

    For feature n with the rows e_nf of its facets f, which stand with their lengths in queries and keys, in each head::

        q_n  = W_n [e of all other features]          the user's rows ask about the candidate, and the other way round
        k_nf = K e_nf + c_f
        a_n  = softmax_f(q_n . k_nf / sqrt(D / heads))
        e_n  = sum_f a_nf V_f e_nf                    V_f starts at the identity

    The facets' own slots stay: products of a user's and a pin's rows mean something within a facet only, and what the
    attention mixes is not of one facet. Pinterest describe an attention that fine-tunes knowledge graph embeddings in
    their ranker (arXiv 2508.02609) without public formulas; this reading of it is ours.

    Args:
        slots: (feature, facet) of each slot: all features of one facet, then all of the next; at least two features.
        dim: Elements a row, D.
        num_heads: Attention heads; they divide D.
    """

    def __init__(self, slots: Sequence[Slot], dim: int, num_heads: int) -> None:
        super().__init__()
        self.features, self.facets = _grid(slots)
        if len(self.features) < 2:
            raise ValueError(f"combination 'attention' lets features ask about each other; there is only {self.features}")
        if dim % num_heads:
            raise ValueError(f"num_attention_heads is {num_heads}, which does not divide dim {dim}")
        self.slots = (*slots, *(Slot(feature, "attended") for feature in self.features))
        self.num_heads = num_heads
        num_facets = len(self.facets)
        self.measure = _Measured(len(slots), dim)
        asking = (len(self.features) - 1) * num_facets * (dim + 1)
        self.queries = nn.ModuleList(nn.Linear(asking, dim) for _ in self.features)
        self.keys = nn.Linear(dim + 1, dim, bias=False)
        self.facet_keys = nn.Parameter(torch.zeros(num_facets, 1, dim))
        self.values = nn.Parameter(torch.eye(dim).repeat(num_facets, 1, 1))

    def weights(self, embeddings: Tensor) -> Tensor:
        """Choose each facet's weight.

        Args:
            embeddings: float32 [B, T, D].

        Returns:
            [B, F, N, heads]; over F they sum to 1.
        """
        rows = _by_facet(self.measure(embeddings), len(self.features))
        by_feature = rows.unbind(2)
        asked = [
            query(torch.cat([other.flatten(1) for other in (*by_feature[:number], *by_feature[number + 1 :])], dim=1))
            for number, query in enumerate(self.queries)
        ]
        queries = self._by_head(torch.stack(asked, dim=1).unsqueeze(1))
        keys = self._by_head(self.keys(rows) + self.facet_keys)
        weights: Tensor = ((queries * keys).sum(4) / keys.shape[4] ** 0.5).softmax(1)
        return weights

    def forward(self, embeddings: Tensor) -> Tensor:
        """Add the attended slots, [B, F N, D] to [B, (F + 1) N, D]."""
        values = torch.einsum("bfnd,fed->bfne", _by_facet(embeddings, len(self.features)), self.values)
        attended = (self.weights(embeddings).unsqueeze(4) * self._by_head(values)).sum(1)
        return torch.cat([embeddings, attended.flatten(2)], dim=1)

    def _by_head(self, rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:-1], self.num_heads, rows.shape[-1] // self.num_heads)


class _Measured(nn.Module):
    """Rows, each with its length behind it, all elements normalised over the batch: [B, T, D] to [B, T, D + 1]."""

    def __init__(self, num_slots: int, dim: int) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm1d(num_slots * (dim + 1))

    def forward(self, embeddings: Tensor) -> Tensor:
        # The root of 0 has no gradient.
        lengths = (embeddings.square().sum(2, keepdim=True) + _LENGTH_EPS).sqrt()
        measured = torch.cat([embeddings, lengths], dim=2)
        normalised: Tensor = self.normalise(measured.flatten(1)).view_as(measured)
        return normalised


def make_combination(kind: Combination, slots: Sequence[Slot], *, dim: int, num_heads: int) -> Any:
    """Make the module that brings facets together.

    Args:
        kind: "concat", "sum", "gating" or "attention".
        slots: (feature, facet) of each slot.
        dim: Elements a row.
        num_heads: Heads of "attention".

    Returns:
        A module from [B, T, D] to [B, T', D], with the attribute `slots` of its T' results.

    Raises:
        ValueError: For another kind, or slots that it cannot bring together.
    """
    if kind == "concat" or not slots:
        return ConcatFacets(slots)
    if kind == "sum":
        return SumFacets(slots)
    if kind == "gating":
        return GateFacets(slots, dim)
    if kind == "attention":
        return AttendFacets(slots, dim, num_heads)
    raise ValueError(f"combination is {kind!r}; expected concat, sum, gating or attention")


def _grid(slots: Sequence[Slot]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the features and the facets of slots that are all features of one facet, then all of the next."""
    features = tuple(dict.fromkeys(slot.feature for slot in slots))
    facets = tuple(dict.fromkeys(slot.facet for slot in slots))
    if list(slots) != [Slot(feature, facet) for facet in facets for feature in features]:
        raise ValueError(
            f"slots are {[tuple(slot) for slot in slots]}; facets of one feature come together only if every feature has "
            "the same facets, in order: all features of the first, then of the next. Use combination 'concat'."
        )
    return features, facets


def _by_facet(embeddings: Tensor, num_features: int) -> Tensor:
    """View [B, F N, D] as [B, F, N, D]."""
    return embeddings.view(embeddings.shape[0], embeddings.shape[1] // num_features, num_features, embeddings.shape[2])
