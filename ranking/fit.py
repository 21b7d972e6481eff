"""A training run: steps, validations, the best weights, and all that it needs to go on after a kill."""

from __future__ import annotations

import time
from logging import getLogger
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from ranking.objective import training_loss
from ranking.optimizers import Optimizers
from ranking.scoring import score_columns, validate
from tables import Position, SavedState
from tables.lanes import Lanes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from ranking.columns import Columns
    from ranking.config import RankingConfig
    from ranking.model import RankingModel
    from tables import TrainingRun

logger = getLogger(__name__)

_MODEL: Final = "model"
_BEST: Final = "best"


class Fit:
    """One training run.

    Args:
        model: The model, whose tables have their first rows.
        config: How to train it.
        generator: Source of the epochs' orders.
        start_tables: Fills the tables anew as in the beginning, for `reinit_tables`.
    """

    def __init__(
        self, model: RankingModel, config: RankingConfig, generator: torch.Generator, start_tables: Callable[[], object]
    ) -> None:
        self.model, self.config, self.generator, self.start_tables = model, config, generator, start_tables
        self.optimizers = Optimizers(model, config)
        self.position = Position(generator=np.random.default_rng(config.seed))
        self.best: dict[str, Tensor] = {}
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
        """Train until the validation loss stops falling; leave the best weights in the model.

        Returns:
            One row a validation.

        Raises:
            ValueError: If the loss is not finite.
            KeyboardInterrupt: If a stop was asked for; the state is saved.
        """
        config, position = self.config, self.position
        self.optimizers.count_rows(train_columns.rows)
        while position.epoch < config.max_epochs and self.num_since_lowest < config.patience:
            is_new = position.epoch_start is None
            order = position.begin_epoch(lambda _: self._draw_order(len(train_columns)))
            if is_new and position.epoch > 0 and config.reinit_tables:
                self.start_tables()
                self.optimizers.forget_rows()
            steps = _steps(order, config.validations_per_epoch, config.batch_size)
            validated_after = np.cumsum([len(part) for part in steps]).tolist()
            chosen = [step for part in steps for step in part][position.step :]
            batches = (train_columns.take(step) for step in chosen)
            with Lanes() as lanes:
                for batch in run.steps(batches, lanes, self, num_steps=validated_after[-1]):
                    started = time.perf_counter()
                    loss = self._step(batch, lanes)
                    self.losses.append(loss)
                    position.add(loss=loss, examples=len(batch))
                    self.part_seconds += time.perf_counter() - started
                    if position.step in validated_after:
                        self._validate(valid_columns, validated_after.index(position.step), progress)
                        if self.num_since_lowest >= config.patience:
                            break
                position.end_epoch()
        self.model.load_state_dict(self.best)
        return position.history

    def save(self) -> SavedState:
        """Give all of the run's state."""
        tensors = {f"{_MODEL}.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"{_BEST}.{name}": value for name, value in self.best.items()}
        tensors |= self.optimizers.to_tensors()
        tensors |= {"epoch_generator": self._epoch_state, "torch_generator": torch.get_rng_state()}
        fields = {
            "lowest": self.lowest if self.best else None,
            "num_since_lowest": self.num_since_lowest,
            "num_steps": self.num_steps,
            "losses": self.losses,
            "part_seconds": self.part_seconds,
        }
        return SavedState(tensors=tensors, fields=fields)

    def restore(self, saved: SavedState) -> None:
        """Go to where `save` was called."""
        tensors, fields = saved.tensors, saved.fields
        self.model.load_state_dict(_named(tensors, _MODEL))
        self.best = {name: value.clone() for name, value in _named(tensors, _BEST).items()}
        self.optimizers.restore(tensors)
        self._epoch_state = tensors["epoch_generator"].clone()
        self.generator.set_state(self._epoch_state)
        torch.set_rng_state(tensors["torch_generator"].clone())
        self.lowest = float("inf") if fields["lowest"] is None else fields["lowest"]
        self.num_since_lowest, self.num_steps = fields["num_since_lowest"], fields["num_steps"]
        self.losses, self.part_seconds = list(fields["losses"]), fields["part_seconds"]

    def _draw_order(self, num_examples: int) -> Tensor:
        self._epoch_state = self.generator.get_state()
        return torch.randperm(num_examples, generator=self.generator)

    def _step(self, batch: Columns, lanes: Lanes) -> float:
        """Take one step: the tables' gradients stay those of the rows looked up, never a whole table's."""
        model = self.model.train()
        config = self.config
        looked_up = model.gather(batch.rows)
        learns = not config.freeze_tables and self.num_steps >= config.thaw_after_steps
        for rows in looked_up.values():
            rows.requires_grad_(learns)
        self.num_steps += 1
        logits = model.score(batch.dense, looked_up, batch.num_recent)
        loss = training_loss(logits, batch.ctr, batch.cvr, batch.cvr_known, heads=config.heads, cvr_weight=config.cvr_weight)
        self.optimizers.upper.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {feature: rows.grad for feature, rows in looked_up.items() if rows.grad is not None}
        lanes.run(
            self.optimizers.step_upper,
            lambda: self.optimizers.step_tables(batch.rows, gradients),
        )
        return loss.item()

    def _validate(self, columns: Columns, part: int, progress: Callable[[Mapping[str, float]], None] | None) -> None:
        config, position = self.config, self.position
        row = {
            "epoch": position.epoch + (part + 1) / config.validations_per_epoch,
            "loss": float(np.mean(self.losses)),
            **validate(score_columns(self.model, columns), columns),
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
            self.best = {name: value.clone() for name, value in self.model.state_dict().items()}


def _steps(order: Tensor, num_parts: int, batch_size: int) -> list[list[Tensor]]:
    """Cut an epoch's order into parts, each of which ends with a validation, and those into steps."""
    # A last batch of one example has no variance to normalise by.
    return [
        [part[start : start + batch_size] for start in range(0, max(len(part) - 1, 1), batch_size)]
        for part in order.chunk(num_parts)
    ]


def _named(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}."): value for name, value in tensors.items() if name.startswith(f"{kind}.")}
