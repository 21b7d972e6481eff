"""MaskNet: layers whose elements an example's own features turn up or down."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from torch import Tensor, nn

from multifacet.ranking.crossing import FlatInputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multifacet.ranking.slots import Slot

_REDUCTION: Final = 2


class MaskBlock(nn.Module):
    """An instance-guided mask, a linear layer and a layer norm (Wang et al. 2021, arXiv 2102.07619, equations 4 to 8).

    ``block(v, x) = relu(LN(W (mask(v) * x)))`` with ``mask(v) = W_2 relu(W_1 v)``

    Args:
        guide: Elements of v, which makes the mask; its hidden layer has twice as many.
        size_in: Elements of x.
        size_out: Elements of the result.
    """

    def __init__(self, guide: int, size_in: int, size_out: int) -> None:
        super().__init__()
        self.mask = nn.Sequential(nn.Linear(guide, _REDUCTION * guide), nn.ReLU(), nn.Linear(_REDUCTION * guide, size_in))
        self.hidden = nn.Sequential(nn.Linear(size_in, size_out, bias=False), nn.LayerNorm(size_out), nn.ReLU())

    def forward(self, guide: Tensor, current: Tensor) -> Tensor:
        """Mask and transform, ([B, guide], [B, size_in]) to [B, size_out]."""
        masked: Tensor = self.hidden(self.mask(guide) * current)
        return masked


class MaskInteraction(nn.Module):
    """The serial MaskNet: blocks one after the other, each guided by the normalised flat inputs.

    Args:
        num_dense: Dense features F.
        slots: (feature, facet) of each embedding slot.
        dim: Elements a row, D.
        projected: Elements that the rows, and the products, are projected to.
        num_blocks: Mask blocks.
        block_width: Elements of a block's result.

    Attributes:
        width: Elements of the result.
    """

    def __init__(
        self, num_dense: int, slots: Sequence[Slot], *, dim: int, projected: int, num_blocks: int, block_width: int
    ) -> None:
        super().__init__()
        self.inputs = FlatInputs(num_dense, slots, dim, projected)
        self.normalise = nn.LayerNorm(self.inputs.width)
        sizes = [self.inputs.width, *[block_width] * num_blocks]
        self.blocks = nn.ModuleList(MaskBlock(self.inputs.width, size_in, size_out) for size_in, size_out in pairwise(sizes))
        self.width = block_width

    def forward(self, dense: Tensor, embeddings: Tensor) -> Tensor:
        """Let features meet: [B, F] and [B, T, D] to [B, width]."""
        guide: Tensor = self.inputs(dense, embeddings)
        current: Tensor = self.normalise(guide)
        for block in self.blocks:
            current = block(guide, current)
        return current
