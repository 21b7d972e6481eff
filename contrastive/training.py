"""Whole trainings: of a graph's window, and of plain pairs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from contrastive.positives import compose, hold_out_latest, read_positives
from contrastive.result import ContrastiveResult
from contrastive.towers import Tower
from contrastive.trainer import Trainer
from contrastive.walks import add_walks
from tables.training import Lifecycle, TrainingRun

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from contrastive.config import ContrastiveConfig
    from contrastive.positives import Positives
    from graphdb import GraphView
    from tables.warmstart import WarmStart

__all__ = ["train", "train_pairs"]

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


def _item_tower(positives: Positives, config: ContrastiveConfig) -> Tower:
    if config.walks is not None:
        positives = add_walks(positives, config.walks, seed=config.seed)
    return Tower(config.item_type, positives, config, share=1.0)
