"""The end of an upper model: from an example's features to the logits of CTR and CVR."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from multifacet.ranking.model.interactions.crossing import CrossInteraction

if TYPE_CHECKING:
    from collections.abc import Sequence

TASKS: Final[tuple[str, ...]] = ("ctr", "cvr")
Heads = Literal["shared_bottom", "mmoe", "esmm", "esmm_dense"]
#: Heads whose CVR learns through the product of both probabilities, over all exposures.
PRODUCT_HEADS: Final = frozenset({"esmm", "esmm_dense"})
_CROSS_LAYERS: Final = 2
_CROSS_RANK: Final = 32


class SharedBottom(nn.Module):
    """One MLP for both tasks, and a linear head for each.

    Args:
        width: Elements of the features.
        hidden: Widths of the MLP's layers.
        dropout: Dropout after each.
    """

    def __init__(self, width: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.bottom = _mlp(width, hidden, dropout)
        self.heads = nn.Linear(hidden[-1], len(TASKS))

    def forward(self, features: Tensor) -> Tensor:
        """Give logits, [B, width] to [B, 2]."""
        logits: Tensor = self.heads(self.bottom(features))
        return logits


class MixtureOfExperts(nn.Module):
    """MMoE (Ma et al. 2018): shared experts, which each task mixes by a gate of its own.

    ``logit_t = h_t(sum_e softmax(G_t x)_e expert_e(x))``

    Args:
        width: Elements of the features.
        hidden: Widths of each expert's layers.
        dropout: Dropout after each.
        num_experts: Experts.
    """

    def __init__(self, width: int, hidden: Sequence[int], dropout: float, num_experts: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(_mlp(width, hidden, dropout) for _ in range(num_experts))
        self.gates = nn.ModuleList(nn.Linear(width, num_experts) for _ in TASKS)
        self.heads = nn.ModuleList(nn.Linear(hidden[-1], 1) for _ in TASKS)

    def forward(self, features: Tensor) -> Tensor:
        """Give logits, [B, width] to [B, 2]."""
        known = torch.stack([expert(features) for expert in self.experts], dim=1)
        mixed = [(gate(features).softmax(1).unsqueeze(2) * known).sum(1) for gate in self.gates]
        return torch.cat([head(features) for head, features in zip(self.heads, mixed, strict=True)], dim=1)


class SeparateTowers(nn.Module):
    """ESMM's towers (Ma et al. 2018, arXiv 1804.07931): an MLP for each task over shared embeddings.

    The CVR tower learns through the product of both probabilities over all exposures: see `ranking.training.objective`.

    Args:
        width: Elements of the features.
        hidden: Widths of each tower's layers.
        dropout: Dropout after each.
    """

    def __init__(self, width: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.towers = nn.ModuleList(nn.Sequential(_mlp(width, hidden, dropout), nn.Linear(hidden[-1], 1)) for _ in TASKS)

    def forward(self, features: Tensor) -> Tensor:
        """Give logits, [B, width] to [B, 2]."""
        return torch.cat([tower(features) for tower in self.towers], dim=1)


class DenseConversionTower(nn.Module):
    """ESMM's towers, where CVR's reads the dense features alone: cross layers over them, and an MLP.

    Conversions are few, and a tower that reads ids learns them by heart. Tables then serve CTR, and cost CVR nothing.

    Args:
        width: Elements of the features.
        num_dense: Dense features F.
        hidden: Widths of each tower's layers.
        dropout: Dropout after each.
    """

    def __init__(self, width: int, num_dense: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.cross = CrossInteraction(num_dense, (), dim=1, projected=1, num_layers=_CROSS_LAYERS, rank=_CROSS_RANK)
        self.towers = nn.ModuleList(
            nn.Sequential(_mlp(size, hidden, dropout), nn.Linear(hidden[-1], 1)) for size in (width, self.cross.width)
        )

    def forward(self, features: Tensor, dense: Tensor) -> Tensor:
        """Give logits, [B, width] and standardised dense features [B, F] to [B, 2]."""
        crossed = self.cross(dense, dense.new_zeros(dense.shape[0], 0, 1))
        return torch.cat([tower(given) for tower, given in zip(self.towers, (features, crossed), strict=True)], dim=1)


def make_heads(kind: Heads, width: int, hidden: Sequence[int], *, dropout: float, num_experts: int, num_dense: int = 0) -> Any:
    """Make the module from features to logits.

    Args:
        kind: "shared_bottom", "mmoe", "esmm" or "esmm_dense"; the last takes the dense features too.
        width: Elements of the features.
        hidden: Widths of the MLPs' layers.
        dropout: Dropout after each.
        num_experts: Experts of "mmoe".
        num_dense: Dense features of "esmm_dense".

    Raises:
        ValueError: For another kind, or if "esmm_dense" has no dense features.
    """
    if kind == "shared_bottom":
        return SharedBottom(width, hidden, dropout)
    if kind == "mmoe":
        return MixtureOfExperts(width, hidden, dropout, num_experts)
    if kind == "esmm":
        return SeparateTowers(width, hidden, dropout)
    if kind == "esmm_dense":
        if not num_dense:
            raise ValueError("heads is 'esmm_dense' and there are no dense features for CVR to read; take esmm")
        return DenseConversionTower(width, num_dense, hidden, dropout)
    raise ValueError(f"heads is {kind!r}; expected one of {', '.join(get_args(Heads))}")


def _mlp(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size_in, size_out in zip([width, *hidden], hidden, strict=False):
        layers += [nn.Linear(size_in, size_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)
