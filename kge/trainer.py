"""Training of entity tables and relation parameters on triples."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from kge.batches import BatchSource, place_types
from kge.evaluation import evaluate
from kge.full_training import train_against_all
from kge.models import build_model
from kge.predictor import LinkPredictor
from kge.relations import RelationParameters
from kge.result import KgeResult
from kge.schedule import rate_factor
from kge.step import TrainingStep
from kge.triples import TripleSet
from tables.checkpoint import SavedState
from tables.lanes import Lanes
from tables.pairs import PairIndex
from tables.rowwise import RowwiseAdagrad
from tables.training import Lifecycle, Position, TrainingRun

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from graphdb import GraphView
    from kge.batches import Batch
    from kge.config import KgeConfig
    from kge.triples import TripleSplit

__all__ = ["Trainer", "TrainerState", "split_view", "train", "train_triples"]

logger = logging.getLogger(__name__)

# No clock in a result's metrics: equal trainings have equal metrics, and so equal snapshots.
_TIMINGS = ("seconds", "edges_per_s")


def train(
    view: GraphView,
    config: KgeConfig,
    *,
    progress: Callable[[Mapping[str, float]], None] | None = None,
    lifecycle: Lifecycle | None = None,
) -> KgeResult:
    """Learn a table for each node type of a view by predicting its links.

    Args:
        view: the graph window; all of its relations take part unless their weight is zero.
        config: the model and how it is trained.
        progress: called with the history's row after each epoch.
        lifecycle: checkpoints, resuming, a warm start and progress by step.

    Returns:
        Tables, relation parameters, history and metrics.

    Raises:
        ValueError: if the configuration does not fit the view, or the loss stops being a number.
        CheckpointError: if the checkpoint to resume from is of another run.
    """
    lifecycle = lifecycle or Lifecycle()
    if config.full_softmax is not None:
        if lifecycle.checkpoint or lifecycle.warm_start or lifecycle.on_step or lifecycle.stop:
            raise ValueError("training with full_softmax has neither checkpoints nor warm starts: leave them out")
        return train_against_all(view, config, progress=progress)
    run = TrainingRun(
        lifecycle,
        config=config.model_dump(mode="json"),
        window=view.fingerprint if lifecycle.checkpoint else "",
        num_epochs=config.epochs,
    )
    generator = np.random.default_rng(config.seed)
    trainer = Trainer(split_view(view, config, generator), config, generator)
    state, warm_start = trainer.state, lifecycle.warm_start
    if warm_start is not None:
        if config.validation.num_edges and config.validation.choose == "random":
            logger.warning(
                "the snapshot may have been trained on edges that are held out here, which makes validation look too good; "
                "validation.choose='latest' holds out what came after it"
            )
        warm_start.apply(state.tables, state.optimizers, view.node_ids, facet="kge")
        state.relations.warm_start(warm_start.snapshot.parameters())
    return _run(trainer, run, progress)


def train_triples(
    split: TripleSplit,
    config: KgeConfig,
    *,
    progress: Callable[[Mapping[str, float]], None] | None = None,
    lifecycle: Lifecycle | None = None,
) -> KgeResult:
    """Learn from the `train` part of a split, and validate on its `valid` part; `config.validation` says only how often.

    Args:
        split: triples, such as `TripleSplit.from_files` reads. All are learned from as often as they stand there.
        config: the model and how it is trained.
        progress: called with the history's row after each epoch.
        lifecycle: checkpoints, resuming and progress by step.

    Returns:
        Tables, relation parameters, history and metrics.
    """
    run = TrainingRun(lifecycle, config=config.model_dump(mode="json"), window=repr(split), num_epochs=config.epochs)
    return _run(Trainer(split, config, np.random.default_rng(config.seed)), run, progress)


def split_view(view: GraphView, config: KgeConfig, generator: np.random.Generator) -> TripleSplit:
    """Read a view's triples and set the validation's apart.

    Args:
        view: the graph window.
        config: which relations take part, and what is held out.
        generator: source of the held-out sample.

    Raises:
        ValueError: if the configuration names a relation that the view lacks, or no edge is left to train on.
    """
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
    if config.distinct_edges:
        triples = triples.distinct()
    validated = config.validation.relations
    held = [name for name in chosen if validated is None or name in validated]
    return triples.hold_out(config.validation.model_copy(update={"relations": tuple(held)}), generator)


def _run(trainer: Trainer, run: TrainingRun, progress: Callable[[Mapping[str, float]], None] | None) -> KgeResult:
    config, state, num_held_out = trainer.config, trainer.state, len(trainer.split.valid)
    run.resume(state)
    history = state.position.history
    patience = config.validation.patience
    for epoch in range(state.position.epoch + 1, config.epochs + 1):
        if patience is not None and _validations_since_best(history) >= patience:
            logger.info("no better filtered MRR in %d validations: stopping before epoch %d", patience, epoch)
            break
        row = trainer.run_epoch(run)
        if num_held_out and (epoch % config.validation.every == 0 or epoch == config.epochs):
            row |= trainer.validate()
        history.append(row)
        if patience is not None and _validations_since_best(history) == 0:
            state.keep_as_best()
        logger.info("kge epoch %d: %s", epoch, row)
        if progress is not None:
            progress(row)
    run.finish(state)
    last = history[-1]
    if state.best is not None:
        state.go_to_best()
        last = max(history, key=lambda row: row.get("filtered_mrr", -1.0))
    metrics = {name: value for name, value in last.items() if name not in _TIMINGS}
    return KgeResult(
        config=config,
        vectors=state.tables,
        relations=state.relations,
        ends=trainer.ends,
        history=history,
        metrics=metrics | {"num_held_out": float(num_held_out)},
        adagrad={node_type: optimizer.state for node_type, optimizer in state.optimizers.items()},
        warm_start=run.lifecycle.warm_start,
    )


def _validations_since_best(history: Sequence[Mapping[str, float]]) -> int:
    """How many validations there were after the best one; -1 if there was none at all."""
    values = [row["filtered_mrr"] for row in history if "filtered_mrr" in row]
    return len(values) - 1 - int(np.argmax(values)) if values else -1


@dataclass(kw_only=True, slots=True)
class TrainerState:
    """All that changes while a trainer runs.

    Attributes:
        tables: node type -> float32 [num_nodes, D], views of one block: fill them in place.
        optimizers: node type -> row-wise Adagrad, whose state likewise is a view of one block.
        relations: the relations' parameters with their Adagrad state.
        position: where the training stands, with the source of shuffles and negatives.
        best: a copy of all tensors as they were at the best validation, where the run stops early.
    """

    tables: dict[str, Tensor]
    optimizers: dict[str, RowwiseAdagrad]
    relations: RelationParameters
    position: Position
    best: dict[str, Tensor] | None = None

    def save(self) -> SavedState:
        """Give all of it but the position, which the run saves."""
        best = {f"best/{name}": tensor for name, tensor in (self.best or {}).items()}
        return SavedState(tensors=self._tensors() | best, fields={})

    def restore(self, saved: SavedState) -> None:
        """Go to where `save` was called, in place."""
        self._copy_from(saved.tensors)
        best = {
            name.removeprefix("best/"): tensor.clone() for name, tensor in saved.tensors.items() if name.startswith("best/")
        }
        self.best = best or None

    def keep_as_best(self) -> None:
        """Keep a copy of all tensors."""
        self.best = {name: tensor.clone() for name, tensor in self._tensors().items()}

    def go_to_best(self) -> None:
        """Go back to the copy that was kept last."""
        if self.best is None:
            raise ValueError("no state has been kept as the best")
        self._copy_from(self.best)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"table/{node_type}": table for node_type, table in self.tables.items()}
        tensors |= {f"adagrad/{node_type}": optimizer.state for node_type, optimizer in self.optimizers.items()}
        return tensors | self.relations.to_tensors()

    def _copy_from(self, tensors: Mapping[str, Tensor]) -> None:
        for node_type, table in self.tables.items():
            table.copy_(tensors[f"table/{node_type}"])
            self.optimizers[node_type].state.copy_(tensors[f"adagrad/{node_type}"])
        self.relations.copy_from(tensors)


class Trainer:
    """Runs epochs over triples.

    Args:
        split: what is learned from and what is ranked.
        config: the model and how it is trained.
        generator: source of shuffles and negatives.
    """

    def __init__(self, split: TripleSplit, config: KgeConfig, generator: np.random.Generator) -> None:
        triples = split.train
        if not len(triples):
            raise ValueError("there is no triple to learn from: the split's train part is empty")
        self.config = config
        self.split = split
        self.ends = dict(triples.ends)
        self.model = build_model(config)
        self.source = BatchSource(triples, config)
        self._num_steps = 1
        seeded = torch.Generator().manual_seed(config.seed)
        offsets, num_rows = place_types(triples.num_nodes), sum(triples.num_nodes.values())
        table = torch.empty(num_rows, config.dim)
        squares = torch.zeros(num_rows)
        optimizers = {}
        tables = {}
        for node_type, count in triples.num_nodes.items():
            rows = slice(offsets[node_type], offsets[node_type] + count)
            tables[node_type] = table[rows].normal_(std=config.init_scale, generator=seeded)
            optimizers[node_type] = RowwiseAdagrad(0, config.lr)
            optimizers[node_type].state = squares[rows]
        self.state = TrainerState(
            tables=tables,
            optimizers=optimizers,
            relations=RelationParameters(self.model, triples.relation_names, reciprocal=config.reciprocal, generator=seeded),
            position=Position(generator=generator),
        )
        self.step = TrainingStep(self.model, config, self.source, state=self.state, table=table, squares=squares)

    def run_epoch(self, run: TrainingRun | None = None) -> dict[str, float]:
        """Pass once over the triples, or over those that are left of an epoch that was interrupted.

        Args:
            run: what saves the state between two steps; None for a run that is never saved.

        Returns:
            epoch, loss (mean over edges of both sides' losses), seconds and edges_per_s.
        """
        run, position = run or TrainingRun(), self.state.position
        plan = position.begin_epoch(self.source.epoch)
        self._num_steps = len(plan)
        with Lanes() as lanes:
            batches = self.source.batches(plan[position.step :], position.generator)
            for batch in run.steps(batches, lanes, self.state, num_steps=len(plan)):
                position.add(loss=self.learn(batch, lanes), examples=batch.num_edges)
        seconds = run.epoch_seconds(position)
        totals = position.end_epoch()
        loss = totals["loss"] / totals["examples"]
        if not np.isfinite(loss):
            raise ValueError(f"the loss of epoch {position.epoch} is {loss}; lower lr or init_scale")
        return {
            "epoch": float(position.epoch),
            "loss": loss,
            "seconds": seconds,
            "edges_per_s": totals["examples"] / seconds,
        }

    def learn(self, batch: Batch, lanes: Lanes) -> float:
        """Learn from a batch; gives the sum of its edges' losses before the step, unweighted."""
        config, position = self.config, self.state.position
        progress = (position.epoch + position.step / self._num_steps) / config.epochs
        factor = rate_factor(progress, config.lr_schedule, warmup=config.warmup)
        return self.step(batch, lanes, lr=config.lr * factor, relation_lr=config.relation_lr * factor)

    def validate(self) -> dict[str, float]:
        """Rank the validation's triples among all entities of the right type."""
        known = {name: self._known_pairs(name) for name in self.split.train.relation_names}
        return evaluate(self.predictor(), self.split.valid.edges(), known)

    def predictor(self) -> LinkPredictor:
        """Give the scores of the tables as they are now."""
        return LinkPredictor(model=self.model, vectors=self.state.tables, relations=self.state.relations, ends=self.ends)

    def _known_pairs(self, relation: str) -> PairIndex:
        parts = [part.edges()[relation] for part in self.split]
        src, dst = self.ends[relation]
        return PairIndex(
            np.concatenate([part.heads for part in parts]),
            np.concatenate([part.tails for part in parts]),
            num_left=self.split.train.num_nodes[src],
            num_right=self.split.train.num_nodes[dst],
        )
