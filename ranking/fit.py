"""A training run: epochs, validations, when it ends, and where it stands after a kill."""

from __future__ import annotations

import time
from logging import getLogger
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from multifacet.tables import Position, SavedState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor

    from multifacet.ranking.columns import Columns
    from multifacet.ranking.config import RankingConfig
    from multifacet.ranking.coverage import InitReport
    from multifacet.ranking.model import RankingModel
    from multifacet.tables import TrainingRun

logger = getLogger(__name__)


class StepTaker(Protocol):
    """What a run needs of a trainer: `Trainer` in one process; `ShardedTrainer` in a group, where every rank calls the same."""

    def start_tables(self) -> InitReport:
        """Give the tables their first rows, and their optimisers nothing to remember."""

    def count_rows(self, rows: Tensor) -> None:
        """Learn how often each row occurs in the training examples."""

    def lanes(self) -> AbstractContextManager[Any]:
        """Give what prepares batches beside the steps."""

    def take(self, columns: Columns, chosen: Tensor) -> Any:
        """Give what this process reads of a step's examples."""

    def step(self, batch: Any, lanes: Any, *, number: int, learns_tables: bool) -> float:
        """Take a step, and give the loss of all its examples."""

    def validate(self, columns: Columns) -> dict[str, float]:
        """Score examples and give their metrics, the same in every process."""

    def keep_best(self) -> None:
        """Keep the weights as they are now."""

    def finish(self) -> RankingModel:
        """Give a whole model with the weights that were kept last."""

    def to_tensors(self) -> dict[str, Tensor]:
        """Give all state as named tensors, which may be the living ones."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go to where `to_tensors` was called."""


class Fit:
    """One training run.

    Args:
        trainer: What takes the steps; its tables have their first rows.
        config: How to train.
        generator: Source of the epochs' orders.
    """

    def __init__(self, trainer: StepTaker, config: RankingConfig, generator: torch.Generator) -> None:
        self.trainer, self.config, self.generator = trainer, config, generator
        self.position = Position(generator=np.random.default_rng(config.seed))
        self.lowest, self.num_since_lowest, self.num_steps = float("inf"), 0, 0
        # The part of an epoch since the last validation.
        self.losses: list[float] = []
        self.part_seconds = 0.0
        self._epoch_state = generator.get_state()

    def run(
        self,
        train_columns: Columns,
        valid_columns: Columns,
        run: TrainingRun,
        progress: Callable[[Mapping[str, float]], None] | None,
    ) -> list[dict[str, float]]:
        """Train until the validation loss stops falling, or to the last epoch; the trainer has kept the weights.

        Returns:
            One row a validation.

        Raises:
            ValueError: If the loss is not finite.
            KeyboardInterrupt: If a stop was asked for; the state is saved.
        """
        config, position, trainer = self.config, self.position, self.trainer
        trainer.count_rows(train_columns.rows)
        while position.epoch < config.max_epochs and not self._has_stopped():
            is_new = position.epoch_start is None
            order = position.begin_epoch(lambda _: self._draw_order(len(train_columns)))
            if is_new and position.epoch > 0 and config.reinit_tables:
                trainer.start_tables()
            steps = _steps(order, config.validations_per_epoch, config.batch_size)
            validated_after = np.cumsum([len(part) for part in steps]).tolist()
            chosen = [step for part in steps for step in part][position.step :]
            batches = (trainer.take(train_columns, step) for step in chosen)
            with trainer.lanes() as lanes:
                # The run first: it has the last word after the last batch.
                for batch, step in zip(run.steps(batches, lanes, self, num_steps=validated_after[-1]), chosen, strict=False):
                    started = time.perf_counter()
                    learns_tables = not config.freeze_tables and self.num_steps >= config.thaw_after_steps
                    loss = trainer.step(batch, lanes, number=self.num_steps, learns_tables=learns_tables)
                    self.num_steps += 1
                    self.losses.append(loss)
                    position.add(loss=loss, examples=len(step))
                    self.part_seconds += time.perf_counter() - started
                    if position.step in validated_after:
                        self._validate(valid_columns, validated_after.index(position.step), progress)
                        if self._has_stopped():
                            break
                position.end_epoch()
        return position.history

    def save(self) -> SavedState:
        """Give all of the run's state."""
        fields = {
            "lowest": self.lowest if np.isfinite(self.lowest) else None,
            "num_since_lowest": self.num_since_lowest,
            "num_steps": self.num_steps,
            "losses": self.losses,
            "part_seconds": self.part_seconds,
        }
        return SavedState(tensors=self.trainer.to_tensors() | {"epoch_generator": self._epoch_state}, fields=fields)

    def restore(self, saved: SavedState) -> None:
        """Go to where `save` was called."""
        fields = saved.fields
        self.trainer.restore(saved.tensors)
        self._epoch_state = saved.tensors["epoch_generator"].clone()
        self.generator.set_state(self._epoch_state)
        self.lowest = float("inf") if fields["lowest"] is None else fields["lowest"]
        self.num_since_lowest, self.num_steps = fields["num_since_lowest"], fields["num_steps"]
        self.losses, self.part_seconds = list(fields["losses"]), fields["part_seconds"]

    def _has_stopped(self) -> bool:
        return self.config.keep == "best" and self.num_since_lowest >= self.config.patience

    def _draw_order(self, num_examples: int) -> Tensor:
        self._epoch_state = self.generator.get_state()
        return torch.randperm(num_examples, generator=self.generator)

    def _validate(self, columns: Columns, part: int, progress: Callable[[Mapping[str, float]], None] | None) -> None:
        config, position = self.config, self.position
        row = {
            "epoch": position.epoch + (part + 1) / config.validations_per_epoch,
            "loss": float(np.mean(self.losses)),
            **self.trainer.validate(columns),
            "seconds": self.part_seconds,
            "examples_per_s": len(self.losses) * config.batch_size / max(self.part_seconds, 1e-9),
        }
        if not np.isfinite(row["loss"]):
            raise ValueError(
                f"the loss is {row['loss']} in epoch {row['epoch']}; lower table_lr ({config.table_lr}) or "
                f"upper_lr ({config.upper_lr})"
            )
        position.history.append(row)
        self.losses, self.part_seconds = [], 0.0
        logger.info("%s: %s", config.name, row)
        if progress is not None:
            progress(row)
        self.num_since_lowest += 1
        if row["valid_ctr_log_loss"] < self.lowest:
            self.lowest, self.num_since_lowest = row["valid_ctr_log_loss"], 0
        if self.num_since_lowest == 0 or config.keep == "last":
            self.trainer.keep_best()


def _steps(order: Tensor, num_parts: int, batch_size: int) -> list[list[Tensor]]:
    """Cut an epoch's order into parts, each of which ends with a validation, and those into steps."""
    # A last batch of one example has no variance to normalise by.
    return [
        [part[start : start + batch_size] for start in range(0, max(len(part) - 1, 1), batch_size)]
        for part in order.chunk(num_parts)
    ]
