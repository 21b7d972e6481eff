"""What a flat upper model starts from (dense features, rows, products), and DCN-V2's cross layers over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from multifacet.ranking.slots import facing_pairs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multifacet.ranking.slots import Slot


class FlatInputs(nn.Module):
    """Dense features, rows and products as one vector.

    ::

        dense [B, F] ---------------------------------------------------------+
        embeddings [B, T, D] -> rows ------> normalise -> project ------------+-> [B, width]
          per facet: user * pin, user * advertiser -> normalise -> project ---+
          the same summed (dots) ----------> normalise -----------------------+

    The elementwise products are what lets the ranker use pretrained tables: whether a user's and a pin's row
    point the same way is a product, which an MLP learns badly from the rows alone. Rows and products are projected
    to a few elements before they are crossed, so that a step costs little and ids are memorised less.

    Args:
        num_dense: Dense features F.
        slots: (feature, facet) of each embedding slot.
        dim: Elements a row, D.
        projected: Elements that the rows, and the products, are projected to.

    Attributes:
        width: Elements of the vector.
    """

    def __init__(self, num_dense: int, slots: Sequence[Slot], dim: int, projected: int) -> None:
        super().__init__()
        self.num_slots = len(slots)
        self.pairs = facing_pairs(slots)
        self.width = num_dense
        if slots:
            self.rows = _normalise_and_project(len(slots) * dim, projected)
            self.width += projected
        if self.pairs:
            self.products = _normalise_and_project(len(self.pairs) * dim, projected)
            self.dots = nn.BatchNorm1d(len(self.pairs))
            self.width += projected + len(self.pairs)

    def forward(self, dense: Tensor, embeddings: Tensor) -> Tensor:
        """Join them.

        Args:
            dense: Standardised dense features, float32 [B, F].
            embeddings: float32 [B, T, D].

        Returns:
            float32 [B, width].
        """
        blocks = [dense]
        if self.num_slots:
            blocks.append(self.rows(embeddings.flatten(1)))
        if self.pairs:
            # Slices, not an index: an index's gradient is scattered one element at a time.
            slots = embeddings.unbind(1)
            products = torch.stack([slots[left] * slots[right] for left, right in self.pairs], dim=1)
            blocks += [self.products(products.flatten(1)), self.dots(products.sum(2))]
        return torch.cat(blocks, dim=1)


class CrossLayer(nn.Module):
    """A low-rank cross layer of DCN-V2 (Wang et al. 2021, arXiv 2008.13535, equation 2).

    ``x_next = x_0 * (U V^T x + b) + x``

    TorchRec's LowRankCrossNet is the same function from another start, which the comparisons here were not tuned with.

    Args:
        width: Elements of x.
        rank: Columns of U and V.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width)

    def forward(self, first: Tensor, current: Tensor) -> Tensor:
        """Cross the input with the first layer's input.

        Args:
            first: x_0, [B, width].
            current: x, [B, width].

        Returns:
            [B, width].
        """
        crossed: Tensor = first * self.up(self.down(current)) + current
        return crossed


class CrossInteraction(nn.Module):
    """DCN-V2: flat inputs through low-rank cross layers.

    Args:
        num_dense: Dense features F.
        slots: (feature, facet) of each embedding slot.
        dim: Elements a row, D.
        projected: Elements that the rows, and the products, are projected to.
        num_layers: Cross layers.
        rank: Rank of each.

    Attributes:
        width: Elements of the result.
    """

    def __init__(self, num_dense: int, slots: Sequence[Slot], *, dim: int, projected: int, num_layers: int, rank: int) -> None:
        super().__init__()
        self.inputs = FlatInputs(num_dense, slots, dim, projected)
        self.width = self.inputs.width
        self.cross = nn.ModuleList(CrossLayer(self.width, rank) for _ in range(num_layers))

    def forward(self, dense: Tensor, embeddings: Tensor) -> Tensor:
        """Let features meet: [B, F] and [B, T, D] to [B, width]."""
        first: Tensor = self.inputs(dense, embeddings)
        crossed = first
        for layer in self.cross:
            crossed = layer(first, crossed)
        return crossed


def _normalise_and_project(size_in: int, size_out: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm1d(size_in), nn.Linear(size_in, size_out))
