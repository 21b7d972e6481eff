"""Epochs of a query table against one or several answering tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from contrastive.evaluation import evaluate
from contrastive.hard import HardNegatives, find_best_unknown
from contrastive.state import TrainerState
from contrastive.step import Stepper, Temperature
from contrastive.vectors import History, normalize_
from tables.lanes import Lanes
from tables.rowwise import RowwiseAdagrad
from tables.rowwise_adam import RowwiseAdam
from tables.snapshot import OptimizerRows
from tables.training import Position, TrainingRun

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from contrastive.config import ContrastiveConfig
    from contrastive.positives import Positives
    from contrastive.towers import Batch, Tower
    from tables.pairs import PairIndex

__all__ = ["Trainer"]


class Trainer:
    """Runs epochs of steps, each on a batch of one tower.

    Args:
        towers: the items' tower first, then the composed ones.
        config: the loss and how it is trained.
        generator: source of positives and negatives.
        history: the items of each query that its vector may be blended with; the first tower's positives by default.
    """

    def __init__(
        self,
        towers: list[Tower],
        config: ContrastiveConfig,
        generator: np.random.Generator,
        *,
        history: PairIndex | None = None,
    ) -> None:
        self.towers = towers
        self.config = config
        items = towers[0].positives
        num_rows = {config.query_type: items.num_queries}
        num_rows |= {tower.node_type: tower.positives.num_items for tower in towers}
        seeded = torch.Generator().manual_seed(config.seed)
        self.state = TrainerState(
            tables={
                node_type: torch.randn(count, config.dim, generator=seeded).mul_(config.init_scale)
                for node_type, count in num_rows.items()
            },
            optimizers={node_type: _build_optimizer(config, count) for node_type, count in num_rows.items()},
            samplers={tower.node_type: tower.sampler for tower in towers},
            hard=np.empty((0, 0), dtype=np.int32),
            temperature=Temperature(config.temperature or 1.0, lr=config.temperature_lr),
            position=Position(generator=generator),
        )
        self._history = History(share=config.history, items=towers[0].known if history is None else history)
        self._lengths = {tower.node_type: tower.popularity_lengths() for tower in towers} if config.popularity_power else {}
        self._stepper = Stepper(
            config,
            tables=self.state.tables,
            optimizers=self.state.optimizers,
            temperature=self.state.temperature,
            history=self._history,
        )

    def run_epoch(self, run: TrainingRun | None = None) -> dict[str, float]:
        """Draw as many positives as there are distinct ones, and the composed towers' share beside them.

        Args:
            run: what saves the state between two steps; None for a run that is never saved.

        Returns:
            epoch, loss (of the items' tower, in nats), loss/<node type> of each composed tower, seconds, pairs_per_s.
        """
        run, config, position = run or TrainingRun(), self.config, self.state.position
        if config.num_hard:
            self._set_hard()
        schedule = position.begin_epoch(lambda _: list(self._schedule()))
        with Lanes() as lanes:
            batches = ((tower, tower.draw(position.generator)) for tower in schedule[position.step :])
            for tower, batch in run.steps(batches, lanes, self.state, num_steps=len(schedule)):
                self._set_lr((position.epoch * len(schedule) + position.step) / (config.epochs * len(schedule)))
                loss = self.step(tower, batch, lanes)
                position.add(examples=config.batch_size, **{f"loss/{tower.node_type}": loss, f"steps/{tower.node_type}": 1.0})
        seconds = run.epoch_seconds(position)
        totals = position.end_epoch()
        means = {
            tower.node_type: totals[f"loss/{tower.node_type}"] / totals[f"steps/{tower.node_type}"]
            for tower in self.towers
            if f"steps/{tower.node_type}" in totals
        }
        if not all(math.isfinite(mean) for mean in means.values()):
            raise ValueError(f"the losses of epoch {position.epoch} are {means}; lower lr or raise temperature")
        row = {"epoch": float(position.epoch), "loss": means.pop(config.item_type)}
        row |= {f"loss/{node_type}": mean for node_type, mean in means.items()}
        return row | {"seconds": seconds, "pairs_per_s": totals["examples"] / seconds}

    def step(self, tower: Tower, batch: Batch, lanes: Lanes) -> float:
        """Learn from one batch.

        Args:
            tower: the tower that the batch is of.
            batch: positives with their candidates.
            lanes: where its two halves run.

        Returns:
            The batch's mean loss a positive before the step.
        """
        return self._stepper.step(tower.node_type, batch, lanes)

    def _set_hard(self) -> None:
        """Find the items' hard negatives at an epoch's start; in the middle of an epoch take those of its start."""
        config, tower, state = self.config, self.towers[0], self.state
        if state.position.step == 0:
            queries, items = self.vectors(config.query_type), self.vectors(config.item_type)
            state.hard = find_best_unknown(queries, items, tower.known, depth=config.hard_depth)
        tower.set_hard(HardNegatives(state.hard, config.num_hard, num_items=tower.positives.num_items))

    def validate(self, relevant: PairIndex, seen: PairIndex) -> dict[str, float]:
        """Rank the held-out items among all that their query has not seen."""
        config = self.config
        return evaluate(
            self.vectors(config.query_type),
            self.vectors(config.item_type),
            relevant=relevant,
            seen=seen,
            k=config.validation.k,
        )

    def vectors(self, node_type: str) -> Tensor:
        """Give a table as it is compared: under cosine with the length of its popularity, or 1; zero where no gradient was.

        Items get their share of the mean of their queries' vectors here, and queries that of their items.
        """
        config, table = self.config, self.state.tables[node_type].clone()
        touched = self.state.optimizers[node_type].state > 0
        if node_type == config.query_type and self._history.share:
            queries = np.arange(len(table), dtype=np.int32)
            self._history.blend_(table.numpy(), queries, self.state.tables[config.item_type].numpy())
            touched |= torch.from_numpy(np.diff(self._history.items.indptr) > 0)
        if config.similarity == "cosine":
            normalize_(table.numpy())
        if node_type == config.item_type and config.smoothing:
            self._smooth_(table)
        if node_type in self._lengths:
            table.mul_(torch.from_numpy(self._lengths[node_type][:, None]))
        return table.mul_(touched[:, None])

    def _smooth_(self, items: Tensor) -> None:
        queries_of_item = History(share=1.0, items=self._history.items.transposed)
        means = np.zeros_like(items.numpy())
        queries_of_item.blend_(means, np.arange(len(items), dtype=np.int32), self.vectors(self.config.query_type).numpy())
        normalize_(means)
        items.add_(torch.from_numpy(means), alpha=self.config.smoothing)
        normalize_(items.numpy())

    def optimizer_rows(self, node_type: str) -> OptimizerRows:
        """Give what a warm start needs to go on with a table: `vectors` times `lengths` is the table."""
        adagrad, table = self.state.optimizers[node_type].state, self.state.tables[node_type]
        lengths = table.norm(dim=1) if self.config.similarity == "cosine" else torch.ones(len(table))
        if node_type in self._lengths:
            lengths /= torch.from_numpy(self._lengths[node_type])
        return OptimizerRows(adagrad=adagrad, lengths=lengths)

    def _set_lr(self, progress: float) -> None:
        if self.config.lr_schedule == "cosine":
            for optimizer in self.state.optimizers.values():
                optimizer.lr = self.config.lr * 0.5 * (1.0 + math.cos(math.pi * progress))

    def _schedule(self) -> Iterator[Tower]:
        """Spread the composed towers' steps evenly among the items' steps."""
        positives: Positives = self.towers[0].positives
        num_steps = math.ceil(len(positives) / self.config.batch_size)
        for step in range(num_steps):
            for tower in self.towers:
                if math.floor((step + 1) * tower.share) > math.floor(step * tower.share):
                    yield tower


def _build_optimizer(config: ContrastiveConfig, num_rows: int) -> RowwiseAdagrad:
    if config.optimizer == "adam":
        return RowwiseAdam(num_rows, config.dim, config.lr, beta1=0.9 if config.momentum is None else config.momentum)
    return RowwiseAdagrad(num_rows, config.lr)
