"""Batch normalisation over the examples of all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.nn.functional import all_reduce

if TYPE_CHECKING:
    from torch import Tensor


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the examples of all ranks, as one process would do it with the whole batch.

    torch's SyncBatchNorm is for GPUs only; this one takes any backend. Every rank must call it equally often; how many
    examples each has, or whether any, does not matter.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as in torch
        """Normalise, [B, C] to as many."""
        if not self.training:
            return super().forward(input)
        ones = torch.ones((input.shape[0], 1), dtype=input.dtype, device=input.device)
        sums = _sum_of_ranks(torch.cat([ones, input], dim=1).sum(0))
        count, mean = sums[0].detach(), sums[1:] / sums[0].detach()
        variance = _sum_of_ranks((input - mean).square().sum(0)) / count
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            for running, now in ((self.running_mean, mean), (self.running_var, variance * count / (count - 1))):
                if running is not None:
                    running.lerp_(now, momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        normalised: Tensor = (input - mean) * torch.rsqrt(variance + self.eps)
        return normalised if self.weight is None else normalised * self.weight + self.bias

    @classmethod
    def convert(cls, module: nn.Module) -> None:
        """Make all batch normalisation inside a module global, in place."""
        for norm in module.modules():
            if type(norm) is nn.BatchNorm1d:
                norm.__class__ = cls


def _sum_of_ranks(part: Tensor) -> Tensor:
    total: Tensor = all_reduce(part)  # type: ignore[no-untyped-call]
    return total
