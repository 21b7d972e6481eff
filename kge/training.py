"""Whole trainings: from a view or from triples to tables, with validation, stopping early, and all that a run does beside."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from multifacet.graphdb import Feed
from multifacet.inputs import expect_attributes, expect_type
from multifacet.kge.auto import resolve
from multifacet.kge.config import KgeConfig
from multifacet.kge.evaluation.protocols import evaluate, known_pairs
from multifacet.kge.result import KgeResult
from multifacet.kge.statistics import GraphStatistics
from multifacet.kge.trainers import EpochTrainer, make_trainer
from multifacet.kge.triples.feeds import FeedSplit
from multifacet.kge.triples.triples import TripleSet, TripleSplit
from multifacet.training import Lifecycle, begin_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from multifacet.graphdb import GraphView
    from multifacet.kge.sampled.state import LearnedState
    from multifacet.training import PairIndex, TrainingRun

__all__ = ["split_view", "train", "train_triples"]

logger = logging.getLogger(__name__)

# No clock in a result's metrics: equal trainings have equal metrics, and so equal snapshots.
_TIMINGS = ("seconds", "edges_per_s")


def train(
    view: GraphView | Feed,
    config: KgeConfig,
    *,
    progress: Callable[[Mapping[str, float]], None] | None = None,
    lifecycle: Lifecycle | None = None,
) -> KgeResult:
    """Learn a table for each node type of a view, or of a feed, by predicting its links.

    A feed (`graphdb.write_feed`) is read part by part: memory does not grow with its edges. It says itself which relations take
    part and what is held out; of `config.validation` only `every` and `patience` count.

    Where `torch.distributed` has a group of several processes, all of them must call this with the same arguments: the tables
    are then shared out to them (see `kge.sharded.trainer`), and each gets the whole result, mapped from files. From a feed each
    reads its own shards.

    Args:
        view: the graph window; all of its relations take part unless their weight is zero. Or a feed.
        config: the model and how it is trained.
        progress: called with the history's row after each epoch.
        lifecycle: checkpoints, resuming, a warm start and progress by step.

    Returns:
        Tables, relation parameters, history and metrics.

    Raises:
        ValueError: if the configuration does not fit the view or the warm start, or the loss stops being a number.
        CheckpointError: if the checkpoint to resume from is of another run.
    """
    if not isinstance(view, Feed):
        expect_attributes("view", view, ("node_ids", "edges", "num_nodes"), "a graph's view, such as GraphStore.view gives")
    expect_type("config", config, KgeConfig)
    lifecycle = lifecycle or Lifecycle()
    expect_type("lifecycle", lifecycle, Lifecycle)
    if isinstance(view, Feed):
        return _train_feed(view, config, lifecycle, progress)
    if lifecycle.warm_start and config.validation.num_edges and config.validation.choose == "random":
        logger.warning(
            "the snapshot may have been trained on edges that are held out here, which makes validation look too good; "
            "validation.choose='latest' holds out what came after it"
        )
    generator = np.random.default_rng(config.seed)
    split = split_view(view, config, generator)
    config = resolve(config, GraphStatistics.of(split.train)) if config.preset == "auto" else config
    run = begin_run(
        lifecycle,
        config=config.model_dump(mode="json"),
        window=view.fingerprint if lifecycle.checkpoint else "",
        num_epochs=config.epochs,
    )
    return _train(split, config, generator, run, progress, view.node_ids)


def train_triples(
    split: TripleSplit,
    config: KgeConfig,
    *,
    progress: Callable[[Mapping[str, float]], None] | None = None,
    lifecycle: Lifecycle | None = None,
) -> KgeResult:
    """Learn from the `train` part of a split, and validate on its `valid` part; `config.validation` says only how often.

    In a group of several processes, as `train`.

    Args:
        split: triples, such as `TripleSplit.from_files` reads. All are learned from as often as they stand there.
        config: the model and how it is trained.
        progress: called with the history's row after each epoch.
        lifecycle: checkpoints, resuming, a warm start (of a split that knows its external ids) and progress by step.

    Returns:
        Tables, relation parameters, history and metrics.

    Raises:
        ValueError: if the configuration does not fit the split or the warm start, or the loss stops being a number.
        CheckpointError: if the checkpoint to resume from is of another run.
    """
    expect_type("split", split, TripleSplit, hint="kge.read_split makes one of plain triples")
    expect_type("config", config, KgeConfig)
    lifecycle = lifecycle or Lifecycle()
    expect_type("lifecycle", lifecycle, Lifecycle)

    def node_ids(node_type: str) -> Any:
        if node_type not in split.train.ids:
            raise ValueError(f"a warm start matches external ids, and these triples have none for {node_type!r}: {split.train}")
        return split.train.ids[node_type]

    config = resolve(config, GraphStatistics.of(split.train)) if config.preset == "auto" else config
    run = begin_run(
        lifecycle,
        config=config.model_dump(mode="json"),
        window=split.fingerprint() if lifecycle.checkpoint else "",
        num_epochs=config.epochs,
    )
    return _train(split, config, np.random.default_rng(config.seed), run, progress, node_ids)


def _train_feed(
    feed: Feed, config: KgeConfig, lifecycle: Lifecycle, progress: Callable[[Mapping[str, float]], None] | None
) -> KgeResult:
    run = begin_run(lifecycle, config=config.model_dump(mode="json"), window=feed.fingerprint, num_epochs=config.epochs)
    return _train(FeedSplit.of(feed), config, np.random.default_rng(config.seed), run, progress, feed.node_ids)


def split_view(view: GraphView, config: KgeConfig, generator: np.random.Generator) -> TripleSplit:
    """Read a view's triples and set the validation's apart.

    Args:
        view: the graph window.
        config: which relations take part, and what is held out.
        generator: source of the held-out sample.

    Raises:
        ValueError: if the configuration names a relation that the view lacks, or no edge is left to train on.
    """
    expect_attributes("view", view, ("node_ids", "edges", "num_nodes"), "a graph's view, such as GraphStore.view gives")
    expect_type("config", config, KgeConfig)
    names = [relation.name for relation in view.relations]
    for setting, given in (
        ("relation_weights", tuple(config.relation_weights)),
        ("validation.relations", config.validation.relations or ()),
    ):
        unknown = [name for name in given if name not in names]
        if unknown:
            raise ValueError(f"{setting} names {unknown}, but the view has the relations {names}")
    chosen = [name for name in names if config.relation_weights.get(name, 1.0) > 0 and view.num_edges[name] > 0]
    if not chosen:
        raise ValueError(
            f"there are no edges to train on: the view has {dict(view.num_edges)} and the relation weights are "
            f"{config.relation_weights}; widen the window or the weights"
        )
    triples = TripleSet.from_view(view, relations=chosen)
    if not len(triples):
        raise ValueError(f"there are no edges to train on: all of {chosen} have weight zero in this window")
    chose = "distinct_edges" in config.model_fields_set
    if config.distinct_edges and not chose and triples.weights is not None and (triples.weights != 1.0).any():
        logger.warning(
            "edges have weights, and distinct_edges=True learns from each pair once, whatever its weight: set "
            "distinct_edges=False (--set distinct_edges=false) to learn from an edge as often as its weight says"
        )
    triples = triples.distinct() if config.distinct_edges else triples.merged()
    validated = config.validation.relations
    held = [name for name in chosen if validated is None or name in validated]
    return triples.hold_out(config.validation.model_copy(update={"relations": tuple(held)}), generator)


def _train(
    split: TripleSplit | FeedSplit,
    config: KgeConfig,
    generator: np.random.Generator,
    run: TrainingRun,
    progress: Callable[[Mapping[str, float]], None] | None,
    node_ids: Callable[[str], Any],
) -> KgeResult:
    weights = split.train.weights
    if weights is not None and weights.sum() < 1:
        raise ValueError(
            f"the weights of {len(weights)} triples sum to {weights.sum():.4g}, and an epoch would have less than one of them: "
            "multiply the weights"
        )
    with ExitStack() as stack:
        trainer = make_trainer(split, config, generator, run.lifecycle.checkpoint, stack)
        return _run(trainer, split, config, run, progress, node_ids)


def _run(
    trainer: EpochTrainer,
    split: TripleSplit | FeedSplit,
    config: KgeConfig,
    run: TrainingRun,
    progress: Callable[[Mapping[str, float]], None] | None,
    node_ids: Callable[[str], Any],
) -> KgeResult:
    if run.lifecycle.warm_start is not None:
        trainer.warm_start(run.lifecycle.warm_start, node_ids)
    state, patience = trainer.state, config.validation.patience
    held_out, num_held_out = split.valid.edges(), len(split.valid)
    if config.plateau is not None and not num_held_out:
        raise ValueError("plateau lowers the rates by what validation says, and nothing is held out: leave it out, or hold out")
    known = _known(split) if num_held_out else {}
    run.resume(state)
    history = state.position.history
    for epoch in range(state.position.epoch + 1, config.epochs + 1):
        if patience is not None and _validations_since_best(history) >= patience:
            logger.info("no better filtered MRR in %d validations: stopping before epoch %d", patience, epoch)
            break
        row = trainer.run_epoch(run)
        _average(state, config, epoch)
        if num_held_out and (epoch % config.validation.every == 0 or epoch == config.epochs):
            row |= evaluate(trainer.predictor(), held_out, known)
        history.append(row)
        if patience is not None and _validations_since_best(history) == 0:
            state.keep_as_best()
        if (state.num_readers or 1) > 1 and epoch < config.epochs:
            run.save(state)  # from between two epochs any number of processes can go on
        if progress is not None:
            progress(row)  # who listens tells it, and the log need not again
        else:
            logger.info("kge epoch %d: %s", epoch, row)
    run.finish(state)
    last = history[-1]
    if state.best is not None:
        state.go_to_best()
        last = max(history, key=lambda row: row.get("filtered_mrr", -1.0))
    metrics = {name: value for name, value in last.items() if name not in _TIMINGS}
    return KgeResult(
        config=config,
        vectors={name: table.float() for name, table in trainer.predictor().vectors.items()},
        relations=state.relations,
        ends=split.train.ends,
        history=history,
        metrics=metrics | {"num_held_out": float(num_held_out)},
        adagrad=state.row_squares(),
        trained=state.trained_rows(),
        warm_start=run.lifecycle.warm_start,
    )


def _known(split: TripleSplit | FeedSplit) -> dict[str, PairIndex]:
    """Index what filtered ranks leave out: of a feed, only what answers a query of what is held out."""
    return known_pairs(split.known, split.valid) if isinstance(split, FeedSplit) else known_pairs(*split)


def _average(state: LearnedState, config: KgeConfig, epoch: int) -> None:
    """Add an epoch's tables to the mean that is given out, and go to it at the end."""
    if epoch > config.epochs - config.average_epochs:
        state.add_to_sums()
        if epoch == config.epochs:
            state.go_to_mean(config.average_epochs)


def _validations_since_best(history: Sequence[Mapping[str, float]]) -> int:
    """How many validations there were after the best one; -1 if there was none at all."""
    values = [row["filtered_mrr"] for row in history if "filtered_mrr" in row]
    return len(values) - 1 - int(np.argmax(values)) if values else -1
