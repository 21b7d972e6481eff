"""Epochs on a query table and one or several answering tables that one process holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from typing_extensions import override

from multifacet.contrastive.candidates.hard import HardNegatives, find_best_unknown
from multifacet.contrastive.evaluation import evaluate
from multifacet.contrastive.trainer.epochs import TowerEpochs
from multifacet.contrastive.trainer.finishing import Finisher
from multifacet.contrastive.trainer.state import TrainerState
from multifacet.contrastive.trainer.step import Stepper, Temperature
from multifacet.contrastive.trainer.vectors import History
from multifacet.tables import OptimizerRows
from multifacet.tables.optim import LazyAdam, RowwiseAdagrad, RowwiseAdam
from multifacet.training import Position

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from multifacet.contrastive.config import ContrastiveConfig
    from multifacet.contrastive.trainer.towers import Batch, Tower
    from multifacet.training import Lanes, PairIndex, TrainingRun, WarmStart

__all__ = ["Trainer"]


class Trainer(TowerEpochs):
    """Runs epochs on tables in this process's memory.

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
        items = towers[0].positives
        num_rows = {config.query_type: items.num_queries}
        num_rows |= {tower.node_type: tower.positives.num_items for tower in towers}
        seeded = torch.Generator().manual_seed(config.seed)
        state = TrainerState(
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
        super().__init__(towers, config, state, has_lanes=True)
        self.state: TrainerState = state
        blended = History(share=config.history, items=towers[0].known if history is None else history)
        self._finisher = Finisher(towers, config, blended)
        self._stepper = Stepper(
            config, tables=state.tables, optimizers=state.optimizers, temperature=state.temperature, history=blended
        )

    @override
    def step(self, tower: Tower, batch: Batch, lanes: Lanes | None) -> float:
        if lanes is None:
            raise ValueError("a step on tables in memory runs on lanes")
        return self._stepper.step(tower.node_type, batch, lanes)

    @override
    def run_epoch(self, run: TrainingRun | None = None) -> dict[str, float]:
        if self.config.num_hard:
            self._set_hard()
        return super().run_epoch(run)

    def _set_hard(self) -> None:
        """Find the items' hard negatives at an epoch's start; in the middle of an epoch take those of its start."""
        config, tower, state = self.config, self.towers[0], self.state
        if state.position.step == 0:
            queries, items = self.vectors(config.query_type), self.vectors(config.item_type)
            state.hard = find_best_unknown(queries, items, tower.known, depth=config.hard_depth)
        tower.set_hard(HardNegatives(state.hard, config.num_hard, num_items=tower.positives.num_items))

    @override
    def warm_start(self, warm_start: WarmStart, node_ids: Callable[[str], Any]) -> None:
        if self.config.optimizer == "lazy_adam":
            raise ValueError("lazy Adam begins anew, without an older snapshot's state: set optimizer='adam' or 'adagrad'")
        if self.config.optimizer == "adam" and warm_start.config.pull:
            raise ValueError("a pull towards the warm start's rows goes with Adagrad only: set pull=0 or optimizer='adagrad'")
        warm_start.check_config(
            self.config.model_dump(mode="json"),
            same=("similarity",),
            told=("loss", "optimizer", "history", "smoothing", "popularity_power"),
        )
        self.state.taken = warm_start.apply(self.state.tables, self.state.optimizers, node_ids, facet="contrastive")

    @override
    def validate(self, relevant: PairIndex, seen: PairIndex) -> dict[str, float]:
        config = self.config
        return evaluate(
            self.vectors(config.query_type),
            self.vectors(config.item_type),
            relevant=relevant,
            seen=seen,
            k=config.validation.k,
        )

    def vectors(self, node_type: str) -> Tensor:
        """Give a table as it is compared (see `Finisher`), float32 [num_nodes, D]."""
        config, table = self.config, self.state.tables[node_type].clone()
        needs_queries = node_type == config.item_type and config.smoothing
        self._finisher.finish_(
            node_type,
            table,
            first=0,
            touched=self.state.touched(node_type),
            items=self.state.tables[config.item_type],
            queries=self.vectors(config.query_type) if needs_queries else None,
        )
        return table

    @override
    def finish(self) -> tuple[dict[str, Tensor], dict[str, OptimizerRows]]:
        tables, optimizers = self.state.tables, self.state.optimizers
        optimizer_rows = {
            name: OptimizerRows(adagrad=optimizers[name].state, lengths=self._finisher.trained_lengths(name, table))
            for name, table in tables.items()
        }
        return {name: self.vectors(name) for name in tables}, optimizer_rows

    @override
    def _change_lr(self, lr: float) -> None:
        for optimizer in self.state.optimizers.values():
            optimizer.lr = lr


def _build_optimizer(config: ContrastiveConfig, num_rows: int) -> RowwiseAdagrad:
    momentum = 0.9 if config.momentum is None else config.momentum
    if config.optimizer == "adam":
        return RowwiseAdam(num_rows, config.dim, config.lr, beta1=momentum)
    if config.optimizer == "lazy_adam":
        return LazyAdam(num_rows, config.dim, config.lr, beta1=momentum)
    return RowwiseAdagrad(num_rows, config.lr)
