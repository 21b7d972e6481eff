"""Whole trainings: of a graph's window, and of plain pairs."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from multifacet.contrastive.config import ContrastiveConfig, PositivesConfig
from multifacet.contrastive.positives.pairs import Pairs
from multifacet.contrastive.positives.positives import Positives, compose, hold_out_latest, read_positives
from multifacet.contrastive.positives.walks import add_walks
from multifacet.contrastive.result import ContrastiveResult
from multifacet.contrastive.trainer.towers import Tower
from multifacet.contrastive.trainer.trainer import Trainer
from multifacet.inputs import expect_attributes, expect_type
from multifacet.training import Lifecycle, are_several, begin_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from multifacet.contrastive.trainer.epochs import TowerEpochs
    from multifacet.graphdb import GraphView
    from multifacet.training import PairIndex, TrainingRun

__all__ = ["fingerprint", "split_view", "train", "train_pairs"]

logger = logging.getLogger(__name__)


def train(
    view: GraphView,
    config: ContrastiveConfig,
    *,
    progress: Callable[[Mapping[str, float]], None] | None = None,
    lifecycle: Lifecycle | None = None,
) -> ContrastiveResult:
    """Learn tables of queries, of items and of the composed towers by telling positives from sampled negatives.

    Where `torch.distributed` has a group of several processes, all of them must call this with the same arguments: the tables
    are then shared out to them (see `contrastive.trainer.sharded`), and each gets the whole result, mapped from files.

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
    expect_attributes("view", view, ("node_ids", "edges", "num_nodes"), "a graph's view, such as GraphStore.view gives")
    expect_type("config", config, ContrastiveConfig)
    lifecycle = lifecycle or Lifecycle()
    expect_type("lifecycle", lifecycle, Lifecycle)
    run = begin_run(
        lifecycle,
        config=config.model_dump(mode="json"),
        window=view.fingerprint if lifecycle.checkpoint else "",
        num_epochs=config.epochs,
    )
    generator = np.random.default_rng(config.seed)
    positives, held_out = split_view(view, config, generator)
    towers = [_item_tower(positives, config)]
    for composed in config.composed:
        pairs = compose(positives, view, config.item_type, composed)
        towers.append(Tower(composed.node_type, pairs, config, share=composed.share))
    trainer = _build_trainer(towers, config, generator, positives.index(), lifecycle)
    if lifecycle.warm_start is not None:
        trainer.warm_start(lifecycle.warm_start, view.node_ids)
    run.resume(trainer.state)
    return _run(trainer, run, positives, held_out, progress)


def split_view(
    view: GraphView, config: PositivesConfig, generator: np.random.Generator | None = None
) -> tuple[Positives, Positives]:
    """Give a view's positives, and those that are held out of training, as `train` does.

    Args:
        view: the graph window.
        config: which edges are positives, and which are held out.
        generator: source of the queries that are sampled; None for the one that `train` begins with.

    Returns:
        The positives to learn from, and the held-out ones.
    """
    expect_attributes("view", view, ("node_ids", "edges", "num_nodes"), "a graph's view, such as GraphStore.view gives")
    expect_type("config", config, PositivesConfig)
    generator = generator or np.random.default_rng(getattr(config, "seed", 0))
    return hold_out_latest(read_positives(view, config), config.validation, generator)


def train_pairs(
    positives: Positives | Pairs,
    config: ContrastiveConfig,
    *,
    held_out: Positives | None = None,
    progress: Callable[[Mapping[str, float]], None] | None = None,
    lifecycle: Lifecycle | None = None,
) -> ContrastiveResult:
    """Learn tables of queries and of items from plain pairs, without a graph; in a group of several processes, as `train`.

    Args:
        positives: the pairs to learn from: of ids (`read_pairs`), or of rows (`Positives.from_pairs`).
        config: the loss and how it is trained; what it says of relations, validation's choice and composed towers is of graphs.
        held_out: pairs to rank after each epoch, among all items that their query has not in `positives`; None for none.
        progress: called with the history's row after each epoch.
        lifecycle: checkpoints, resuming, a warm start (of pairs that know their ids) and progress by step.

    Returns:
        Tables, history and metrics.

    Raises:
        ValueError: if the configuration asks for what only a graph has, a warm start does not fit, or the loss stops being a
            number.
        CheckpointError: if the checkpoint to resume from is of another run.
    """
    expect_type("positives", positives, Positives, Pairs, hint="contrastive.read_pairs makes them of plain pairs")
    expect_type("config", config, ContrastiveConfig)
    source = positives
    if isinstance(positives, Pairs):
        positives = positives.positives
    if not len(positives):
        raise ValueError(
            f"there are no positives to learn from, of {positives.num_queries} queries and {positives.num_items} items"
        )
    if config.composed or config.relation_weights or config.half_life_days:
        raise ValueError("composed, relation_weights and half_life_days need a graph: train a view, or leave them out")
    if held_out is not None:
        expect_type("held_out", held_out, Positives)
    else:
        held_out = positives.keep(np.zeros(len(positives), dtype=np.bool_))
    lifecycle = lifecycle or Lifecycle()
    expect_type("lifecycle", lifecycle, Lifecycle)
    run = begin_run(
        lifecycle,
        config=config.model_dump(mode="json"),
        window=fingerprint(source, held_out) if lifecycle.checkpoint else "",
        num_epochs=config.epochs,
    )
    generator = np.random.default_rng(config.seed)
    trainer = _build_trainer([_item_tower(positives, config)], config, generator, positives.index(), lifecycle)
    if lifecycle.warm_start is not None:
        if not isinstance(source, Pairs):
            raise ValueError("a warm start matches external ids, and rows have none: give the pairs that read_pairs makes")
        trainer.warm_start(lifecycle.warm_start, partial(source.node_ids, config))
    run.resume(trainer.state)
    return _run(trainer, run, positives, held_out, progress)


def fingerprint(source: Positives | Pairs, held_out: Positives) -> str:
    """Give the sha256 (hex) of all that a training on pairs reads."""
    nothing = pa.array([], pa.int64())
    parts = [Pairs(positives=held_out, query_ids=nothing, item_ids=nothing)]
    parts.append(source if isinstance(source, Pairs) else replace(parts[0], positives=source))
    return hashlib.sha256("".join(part.fingerprint() for part in parts).encode()).hexdigest()


def _build_trainer(
    towers: list[Tower],
    config: ContrastiveConfig,
    generator: np.random.Generator,
    history: PairIndex,
    lifecycle: Lifecycle,
) -> TowerEpochs:
    if not are_several():
        return Trainer(towers, config, generator, history=history)
    from multifacet.contrastive.trainer.sharded import ShardedTrainer  # noqa: PLC0415 - importing TorchRec takes seconds

    folder = lifecycle.checkpoint.absolute().parent if lifecycle.checkpoint else None
    return ShardedTrainer(towers, config, generator, history=history, folder=folder)


def _run(
    trainer: TowerEpochs,
    run: TrainingRun,
    positives: Positives,
    held_out: Positives,
    progress: Callable[[Mapping[str, float]], None] | None,
) -> ContrastiveResult:
    config, state = trainer.config, trainer.state
    seen, relevant = positives.index(), held_out.index()
    for epoch in range(state.position.epoch + 1, config.epochs + 1):
        row = trainer.run_epoch(run)
        if len(held_out) and (epoch % config.validation.every == 0 or epoch == config.epochs):
            row |= trainer.validate(relevant, seen)
        state.position.history.append(row)
        if progress is not None:
            progress(row)  # who listens tells it, and the log need not again
        else:
            logger.info("contrastive epoch %d: %s", epoch, row)
    run.finish(state)
    vectors, optimizer_rows = trainer.finish()
    # No clock: equal trainings have equal metrics, and so equal snapshots.
    timings = ("seconds", "pairs_per_s")
    metrics = {name: value for name, value in state.position.history[-1].items() if name not in timings}
    return ContrastiveResult(
        config=config,
        vectors=vectors,
        history=state.position.history,
        metrics=metrics | {"num_held_out": float(len(held_out))},
        optimizer=optimizer_rows,
        warm_start=run.lifecycle.warm_start,
    )


def _item_tower(positives: Positives, config: ContrastiveConfig) -> Tower:
    if config.walks is not None:
        positives = add_walks(positives, config.walks, seed=config.seed)
    return Tower(config.item_type, positives, config, share=1.0)
