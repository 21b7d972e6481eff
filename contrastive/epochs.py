"""Epochs of batches of one or several towers, whatever a step is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from multifacet.tables.lanes import Lanes
from multifacet.tables.training import TrainingRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from multifacet.contrastive.config import ContrastiveConfig
    from multifacet.contrastive.towers import Batch, Tower
    from multifacet.tables.pairs import PairIndex
    from multifacet.tables.snapshot import OptimizerRows
    from multifacet.tables.training import TrainerState
    from multifacet.tables.warmstart import WarmStart

__all__ = ["TowerEpochs"]


class TowerEpochs(ABC):
    """Runs epochs of steps, each on a batch of one tower; what a step does is a subclass's.

    Args:
        towers: the items' tower first, then the composed ones.
        config: the loss and how it is trained.
        state: what changes while it runs.
        has_lanes: whether batches are drawn beside the steps, and steps run on lanes.
    """

    def __init__(self, towers: list[Tower], config: ContrastiveConfig, state: TrainerState, *, has_lanes: bool) -> None:
        self.towers = towers
        self.config = config
        self.state = state
        self._has_lanes = has_lanes

    @abstractmethod
    def step(self, tower: Tower, batch: Batch, lanes: Lanes | None) -> float:
        """Learn from one batch.

        Args:
            tower: the tower that the batch is of.
            batch: positives with their candidates.
            lanes: where parts of it run.

        Returns:
            The batch's mean loss a positive before the step.
        """

    @abstractmethod
    def warm_start(self, warm_start: WarmStart, node_ids: Callable[[str], Any]) -> None:
        """Begin with the rows of an older snapshot; `node_ids` gives the external ids of a node type."""

    @abstractmethod
    def validate(self, relevant: PairIndex, seen: PairIndex) -> dict[str, float]:
        """Rank the held-out items among all that their query has not seen."""

    @abstractmethod
    def finish(self) -> tuple[dict[str, Tensor], dict[str, OptimizerRows]]:
        """Give the tables as they are compared, and what a warm start needs of their rows, by node type."""

    def run_epoch(self, run: TrainingRun | None = None) -> dict[str, float]:
        """Draw as many positives as there are distinct ones, and the composed towers' share beside them.

        Args:
            run: what saves the state between two steps; None for a run that is never saved.

        Returns:
            epoch, loss (of the items' tower, in nats), loss/<node type> of each composed tower, seconds, pairs_per_s.
        """
        run, config, position = run or TrainingRun(), self.config, self.state.position
        schedule = position.begin_epoch(lambda _: list(self._schedule()))
        with ExitStack() as stack:
            lanes = stack.enter_context(Lanes()) if self._has_lanes else None
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

    @abstractmethod
    def _change_lr(self, lr: float) -> None:
        """Take this learning rate from here on."""

    def _set_lr(self, progress: float) -> None:
        if self.config.lr_schedule == "cosine":
            self._change_lr(self.config.lr * 0.5 * (1.0 + math.cos(math.pi * progress)))

    def _schedule(self) -> Iterator[Tower]:
        """Spread the composed towers' steps evenly among the items' steps."""
        num_steps = math.ceil(len(self.towers[0].positives) / self.config.batch_size)
        for step in range(num_steps):
            for tower in self.towers:
                if math.floor((step + 1) * tower.share) > math.floor(step * tower.share):
                    yield tower
