"""Training under TorchRec's DistributedModelParallel: one process a rank, tables sharded, the rest replicated."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from ranking.objective import training_loss

with warnings.catch_warnings():
    # fbgemm_gpu's CPU build warns about kernels that only its CUDA build has.
    warnings.simplefilter("ignore", DeprecationWarning)
    from torchrec.distributed import DistributedModelParallel
    from torchrec.optim import RowWiseAdagrad
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

if TYPE_CHECKING:
    from ranking.columns import Columns
    from ranking.config import RankingConfig
    from ranking.model import RankingModel

_EPS: Final = 1e-10


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the examples of all ranks, as one process would do it with the whole batch.

    torch's SyncBatchNorm is for GPUs only; this one takes any backend. Every rank must call it equally often.
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
        normalised: Tensor = (input - mean) * torch.rsqrt(variance + self.eps)
        return normalised if self.weight is None else normalised * self.weight + self.bias


class ShardedTrainer:
    """Steps of a ranker whose tables are sharded over the ranks of the default process group.

    Each rank gives its share of a batch; together they take the step that one process takes with the whole batch, up to the
    order of sums and the draws of dropout. Tables learn by FBGEMM's fused row-wise Adagrad, all else by AdamW with gradients
    averaged over ranks. Start tables with `init_tables(trainer.model, ...)`.

    Args:
        model: A ranker as `make_model` built it, the same on each rank; it is wrapped.
        config: Rates and weights.
        device: Where this rank's shards live.

    Attributes:
        model: The DistributedModelParallel; scores as the ranker does.

    Raises:
        ValueError: If the configuration asks for what this does not do: frozen, thawed or re-initialised
            tables, or rates by row.
    """

    def __init__(self, model: RankingModel, config: RankingConfig, device: torch.device) -> None:
        if config.freeze_tables or config.thaw_after_steps or config.reinit_tables or config.row_lr_power:
            raise ValueError(
                "sharded training updates all rows of a step at their table's rate; leave out freeze, thaw and reinit of "
                "tables, and row_lr_power"
            )
        self.config = config
        for module in [module for module in model.modules() if type(module) is nn.BatchNorm1d]:
            module.__class__ = GlobalBatchNorm
        if model.tables is not None:
            for spec in model.specs:
                rate = config.facet_lrs.get(spec.facet, config.table_lr)
                weights = [model.tables.embeddings[spec.name].weight]
                apply_optimizer_in_backward(RowWiseAdagrad, weights, {"lr": rate, "eps": _EPS})
        self.model: Any = DistributedModelParallel(model, device=device)
        dense = [weights for name, weights in self.model.named_parameters() if not _is_table(name)]
        self.optimizer = torch.optim.AdamW(dense, lr=config.upper_lr, weight_decay=config.weight_decay)

    def step(self, batch: Columns) -> float:
        """Take one step with this rank's share of a batch; every rank's must be equally long.

        Returns:
            The loss of the whole batch.
        """
        config = self.config
        self.model.train()
        num_recent = batch.num_recent if config.sequence != "none" else None
        logits = self.model(batch.dense, batch.rows, num_recent)
        # CVR's mean is over the labels that all ranks know.
        counted = torch.maximum(batch.cvr_known, 1 - batch.ctr) if config.heads == "esmm" else batch.cvr_known
        num_counted = counted.sum()
        dist.all_reduce(num_counted)
        loss = training_loss(
            logits,
            batch.ctr,
            batch.cvr,
            batch.cvr_known,
            heads=config.heads,
            cvr_weight=config.cvr_weight,
            num_counted=num_counted / dist.get_world_size(),
        )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        return float(total) / dist.get_world_size()


def _sum_of_ranks(part: Tensor) -> Tensor:
    total: Tensor = all_reduce(part)  # type: ignore[no-untyped-call]
    return total


def _is_table(name: str) -> bool:
    return ".tables." in f".{name}"
