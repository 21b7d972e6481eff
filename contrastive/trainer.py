"""Training of a query table against one or several answering tables."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive.evaluation import evaluate
from contrastive.hard import HardNegatives, find_best_unknown
from contrastive.positives import compose, hold_out_latest, read_positives
from contrastive.result import ContrastiveResult
from contrastive.step import Stepper, Temperature
from contrastive.towers import Tower
from contrastive.vectors import History
from contrastive.walks import add_walks
from tables.checkpoint import SavedState
from tables.lanes import Lanes
from tables.rowwise import RowwiseAdagrad
from tables.rowwise_adam import RowwiseAdam
from tables.snapshot import OptimizerRows
from tables.training import Lifecycle, Position, TrainingRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from contrastive.candidates import CandidateSampler
    from contrastive.config import ContrastiveConfig
    from contrastive.positives import Positives
    from contrastive.towers import Batch
    from graphdb import GraphView
    from tables.pairs import PairIndex
    from tables.warmstart import WarmStart

__all__ = ["Trainer", "TrainerState", "train", "train_pairs"]

logger = logging.getLogger(__name__)


def train(
    view: GraphView,
    config: ContrastiveConfig,
    *,
    progress: Callable[[Mapping[str, float]], None] | None = None,
    lifecycle: Lifecycle | None = None,
) -> ContrastiveResult:
    """Learn tables of queries, of items and of the composed towers by telling positives from sampled negatives.

    Args:
        view: the graph window.
        config: positives, loss and how it is trained.
        progress: called with the history's row after each epoch.
        lifecycle: checkpoints, resuming, a warm start and progress by step.

    Returns:
        Tables, history and metrics.

    Raises:
        ValueError: if the configuration does not fit the view, or the loss stops being a number.
        CheckpointError: if the checkpoint to resume from is of another run.
    """
    lifecycle = lifecycle or Lifecycle()
    run = TrainingRun(
        lifecycle,
        config=config.model_dump(mode="json"),
        window=view.fingerprint if lifecycle.checkpoint else "",
        num_epochs=config.epochs,
    )
    generator = np.random.default_rng(config.seed)
    positives, held_out = hold_out_latest(read_positives(view, config), config.validation, generator)
    towers = [_item_tower(positives, config)]
    for composed in config.composed:
        pairs = compose(positives, view, config.item_type, composed)
        towers.append(Tower(composed.node_type, pairs, config, share=composed.share))
    trainer = Trainer(towers, config, generator, history=positives.index())
    state, warm_start = trainer.state, lifecycle.warm_start
    if warm_start is not None:
        if config.optimizer == "adam" and warm_start.config.pull:
            raise ValueError("a pull towards the warm start's rows goes with Adagrad only: set pull=0 or optimizer='adagrad'")
        warm_start.apply(state.tables, state.optimizers, view.node_ids, facet="contrastive")
    run.resume(state)
    return _run(trainer, run, positives, held_out, progress, warm_start)


def train_pairs(
    positives: Positives,
    config: ContrastiveConfig,
    *,
    held_out: Positives | None = None,
    progress: Callable[[Mapping[str, float]], None] | None = None,
) -> ContrastiveResult:
    """Learn tables of queries and of items from plain pairs, without a graph.

    Args:
        positives: the pairs to learn from (`Positives.from_pairs`).
        config: the loss and how it is trained; what it says of relations, validation's choice and composed towers is of graphs.
        held_out: pairs to rank after each epoch, among all items that their query has not in `positives`; None for none.
        progress: called with the history's row after each epoch.

    Returns:
        Tables, history and metrics.

    Raises:
        ValueError: if the configuration asks for what only a graph has, or the loss stops being a number.
    """
    if config.composed or config.relation_weights or config.half_life_days:
        raise ValueError("composed, relation_weights and half_life_days need a graph: train a view, or leave them out")
    trainer = Trainer([_item_tower(positives, config)], config, np.random.default_rng(config.seed), history=positives.index())
    if held_out is None:
        held_out = positives.keep(np.zeros(len(positives), dtype=np.bool_))
    return _run(trainer, TrainingRun(), positives, held_out, progress, None)


def _run(
    trainer: Trainer,
    run: TrainingRun,
    positives: Positives,
    held_out: Positives,
    progress: Callable[[Mapping[str, float]], None] | None,
    warm_start: WarmStart | None,
) -> ContrastiveResult:
    config, state = trainer.config, trainer.state
    seen, relevant = positives.index(), held_out.index()
    for epoch in range(state.position.epoch + 1, config.epochs + 1):
        row = trainer.run_epoch(run)
        if len(held_out) and (epoch % config.validation.every == 0 or epoch == config.epochs):
            row |= trainer.validate(relevant, seen)
        state.position.history.append(row)
        logger.info("contrastive epoch %d: %s", epoch, row)
        if progress is not None:
            progress(row)
    run.finish(state)
    # No clock: equal trainings have equal metrics, and so equal snapshots.
    timings = ("seconds", "pairs_per_s")
    metrics = {name: value for name, value in state.position.history[-1].items() if name not in timings}
    return ContrastiveResult(
        config=config,
        vectors={node_type: trainer.vectors(node_type) for node_type in state.tables},
        history=state.position.history,
        metrics=metrics | {"num_held_out": float(len(held_out))},
        optimizer={node_type: trainer.optimizer_rows(node_type) for node_type in state.tables},
        warm_start=warm_start,
    )


@dataclass(kw_only=True, slots=True)
class TrainerState:
    """All that changes while a trainer runs.

    Attributes:
        tables: node type -> float32 [num_nodes, D].
        optimizers: node type -> row-wise Adagrad.
        samplers: node type -> the tower's sampler, whose queue holds positives of past batches.
        hard: best unknown items of each query at the epoch's start, int32 [num_queries, depth]; empty without hard negatives.
        temperature: what similarities are divided by.
        position: where the training stands, with the source of positives and negatives.
    """

    tables: dict[str, Tensor]
    optimizers: dict[str, RowwiseAdagrad]
    samplers: dict[str, CandidateSampler]
    hard: NDArray[np.int32]
    temperature: Temperature
    position: Position

    def save(self) -> SavedState:
        """Give all of it but the position, which the run saves."""
        tensors = {f"table/{node_type}": table for node_type, table in self.tables.items()}
        tensors |= {f"adagrad/{node_type}": optimizer.state for node_type, optimizer in self.optimizers.items()}
        for node_type, optimizer in self.optimizers.items():
            if isinstance(optimizer, RowwiseAdam):
                tensors |= {f"momentum/{node_type}": optimizer.momentum, f"steps/{node_type}": optimizer.steps}
        tensors |= {f"queue/{node_type}": torch.from_numpy(sampler.queue) for node_type, sampler in self.samplers.items()}
        return SavedState(
            tensors=tensors | {"temperature": self.temperature.state, "hard": torch.from_numpy(self.hard)}, fields={}
        )

    def restore(self, saved: SavedState) -> None:
        """Go to where `save` was called, in place."""
        for node_type, table in self.tables.items():
            table.copy_(saved.tensors[f"table/{node_type}"])
            optimizer = self.optimizers[node_type]
            optimizer.state.copy_(saved.tensors[f"adagrad/{node_type}"])
            if isinstance(optimizer, RowwiseAdam):
                optimizer.momentum.copy_(saved.tensors[f"momentum/{node_type}"])
                optimizer.steps.copy_(saved.tensors[f"steps/{node_type}"])
        for node_type, sampler in self.samplers.items():
            sampler.queue = saved.tensors[f"queue/{node_type}"].numpy()
        self.temperature.state.copy_(saved.tensors["temperature"])
        self.hard = saved.tensors["hard"].numpy()


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
                node_type: torch.randn(count, config.dim, generator=seeded) * config.init_scale
                for node_type, count in num_rows.items()
            },
            optimizers={node_type: _build_optimizer(config, count) for node_type, count in num_rows.items()},
            samplers={tower.node_type: tower.sampler for tower in towers},
            hard=np.empty((0, 0), dtype=np.int32),
            temperature=Temperature(config.temperature or 1.0, lr=config.temperature_lr),
            position=Position(generator=generator),
        )
        self._history = History(share=config.history, items=towers[0].known if history is None else history)
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
        """Give a table as it is compared: of length 1 under cosine; zero where no gradient has ever been."""
        table, touched = self.state.tables[node_type], self.state.optimizers[node_type].state > 0
        if node_type == self.config.query_type and self._history.share:
            table = table.clone()
            queries = np.arange(len(table), dtype=np.int32)
            self._history.blend_(table.numpy(), queries, self.state.tables[self.config.item_type].numpy())
            touched |= torch.from_numpy(np.diff(self._history.items.indptr) > 0)
        if self.config.similarity == "cosine":
            table = F.normalize(table)
        return table * touched[:, None]

    def optimizer_rows(self, node_type: str) -> OptimizerRows:
        """Give what a warm start needs to go on with a table: `vectors` times `lengths` is the table."""
        adagrad, table = self.state.optimizers[node_type].state, self.state.tables[node_type]
        lengths = table.norm(dim=1) if self.config.similarity == "cosine" else torch.ones(len(table))
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


def _item_tower(positives: Positives, config: ContrastiveConfig) -> Tower:
    if config.walks is not None:
        positives = add_walks(positives, config.walks, seed=config.seed)
    return Tower(config.item_type, positives, config, share=1.0)


def _build_optimizer(config: ContrastiveConfig, num_rows: int) -> RowwiseAdagrad:
    return RowwiseAdam(num_rows, config.dim, config.lr) if config.optimizer == "adam" else RowwiseAdagrad(num_rows, config.lr)
