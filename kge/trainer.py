"""Training of entity tables and relation parameters on the edges of a view."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kge.edges import split_edges
from kge.evaluation import evaluate
from kge.models import build_model
from kge.predictor import LinkPredictor
from kge.relations import RelationParameters
from kge.result import KgeResult
from tables.candidates import CandidateSampler
from tables.checkpoint import SavedState
from tables.lanes import Lanes
from tables.rowwise import RowwiseAdagrad
from tables.softmax import sampled_softmax_loss
from tables.training import Lifecycle, Position, TrainingRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from graphdb import GraphView
    from kge.config import KgeConfig
    from kge.edges import RelationEdges
    from kge.models import Side
    from tables.candidates import Candidates

__all__ = ["Batch", "Trainer", "TrainerState", "train"]

logger = logging.getLogger(__name__)


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
    run = TrainingRun(
        lifecycle,
        config=config.model_dump(mode="json"),
        window=view.fingerprint if lifecycle.checkpoint else "",
        num_epochs=config.epochs,
    )
    generator = np.random.default_rng(config.seed)
    edges = split_edges(view, config, generator)
    trainer = Trainer(edges, view.num_nodes, config, generator)
    state, warm_start = trainer.state, lifecycle.warm_start
    if warm_start is not None:
        warm_start.apply(state.tables, state.optimizers, view.node_ids, facet="kge")
        state.relations.warm_start(warm_start.snapshot.parameters())
        if config.validation.num_edges and config.validation.choose == "random":
            logger.warning(
                "the snapshot may have been trained on edges that are held out here, which makes validation look too good; "
                "validation.choose='latest' holds out what came after it"
            )
    run.resume(state)
    num_held_out = sum(len(relation.held_out) for relation in edges)
    for epoch in range(state.position.epoch + 1, config.epochs + 1):
        row = trainer.run_epoch(run)
        if num_held_out and (epoch % config.validation.every == 0 or epoch == config.epochs):
            row |= trainer.validate()
        state.position.history.append(row)
        logger.info("kge epoch %d: %s", epoch, row)
        if progress is not None:
            progress(row)
    run.finish(state)
    # No clock: equal trainings have equal metrics, and so equal snapshots.
    timings = ("seconds", "edges_per_s")
    metrics = {name: value for name, value in state.position.history[-1].items() if name not in timings}
    return KgeResult(
        config=config,
        vectors=state.tables,
        relations=state.relations,
        ends=trainer.ends,
        history=state.position.history,
        metrics=metrics | {"num_held_out": float(num_held_out)},
        adagrad={node_type: optimizer.state for node_type, optimizer in state.optimizers.items()},
        warm_start=warm_start,
    )


@dataclass(kw_only=True, slots=True)
class TrainerState:
    """All that changes while a trainer runs.

    Attributes:
        tables: node type -> float32 [num_nodes, D].
        optimizers: node type -> row-wise Adagrad.
        relations: the relations' parameters with their Adagrad state.
        position: where the training stands, with the source of shuffles and negatives.
    """

    tables: dict[str, Tensor]
    optimizers: dict[str, RowwiseAdagrad]
    relations: RelationParameters
    position: Position

    def save(self) -> SavedState:
        """Give all of it but the position, which the run saves."""
        tensors = {f"table/{node_type}": table for node_type, table in self.tables.items()}
        tensors |= {f"adagrad/{node_type}": optimizer.state for node_type, optimizer in self.optimizers.items()}
        return SavedState(tensors=tensors | self.relations.to_tensors(), fields={})

    def restore(self, saved: SavedState) -> None:
        """Go to where `save` was called, in place."""
        for node_type, table in self.tables.items():
            table.copy_(saved.tensors[f"table/{node_type}"])
            self.optimizers[node_type].state.copy_(saved.tensors[f"adagrad/{node_type}"])
        self.relations.copy_from(saved.tensors)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Edges of one relation with what they are compared with.

    Attributes:
        relation: the relation.
        heads: the heads, among the candidates of the head's side.
        tails: the tails, among the candidates of the tail's side.
    """

    relation: RelationEdges
    heads: Candidates
    tails: Candidates

    def __len__(self) -> int:
        return len(self.heads.targets)


class _TableRows(NamedTuple):
    """A table's rows in a batch, int32 [n], and where the candidates of each end stand among them (None: all, in order)."""

    node_type: str
    rows: Tensor
    slots_of: dict[Side, Tensor | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class _SideGradients:
    """One side's loss, and its gradients of the batch's rows of each table and of the relation's parameters."""

    loss: float
    key: str
    entities: tuple[Tensor, ...]
    relation: dict[str, Tensor]


class Trainer:
    """Runs epochs over the edges, a batch of one relation at a step.

    Args:
        edges: the relations' edges.
        num_nodes: node type -> rows.
        config: the model and how it is trained.
        generator: source of shuffles and negatives.
    """

    def __init__(
        self,
        edges: Sequence[RelationEdges],
        num_nodes: Mapping[str, int],
        config: KgeConfig,
        generator: np.random.Generator,
    ) -> None:
        self.config = config
        self.edges = edges
        self.ends = {relation.name: (relation.src, relation.dst) for relation in edges}
        self.model = build_model(config)
        seeded = torch.Generator().manual_seed(config.seed)
        self.state = TrainerState(
            tables={
                node_type: torch.randn(count, config.dim, generator=seeded) * config.init_scale
                for node_type, count in num_nodes.items()
            },
            optimizers={node_type: RowwiseAdagrad(count, config.lr) for node_type, count in num_nodes.items()},
            relations=RelationParameters(
                self.model,
                [relation.name for relation in edges],
                reciprocal=config.reciprocal,
                lr=config.relation_lr,
                generator=seeded,
            ),
            position=Position(generator=generator),
        )
        scratch = {node_type: np.full(count, -1, dtype=np.int32) for node_type, count in num_nodes.items()}
        self._samplers: dict[str, dict[Side, CandidateSampler]] = {
            relation.name: {
                "head": self._sampler(relation.train.heads, scratch[relation.src]),
                "tail": self._sampler(relation.train.tails, scratch[relation.dst]),
            }
            for relation in edges
        }

    def run_epoch(self, run: TrainingRun | None = None) -> dict[str, float]:
        """Pass once over the edges, or over those that are left of an epoch that was interrupted.

        Args:
            run: what saves the state between two steps; None for a run that is never saved.

        Returns:
            epoch, loss (mean over edges of both sides' cross-entropy, in nats), seconds and edges_per_s.
        """
        run, position = run or TrainingRun(), self.state.position
        plan = position.begin_epoch(self._plan)
        with Lanes() as lanes:
            for batch in run.steps(self._batches(plan[position.step :]), lanes, self.state, num_steps=len(plan)):
                position.add(loss=self.step(batch, lanes) * len(batch), examples=len(batch))
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

    def draw(self, relation: RelationEdges, heads: NDArray[np.int32], tails: NDArray[np.int32]) -> Batch:
        """Draw the candidates of a batch of one relation's edges, for both of its sides.

        Args:
            relation: the relation.
            heads: int32 [B].
            tails: int32 [B].

        Returns:
            The batch.
        """
        samplers, generator = self._samplers[relation.name], self.state.position.generator
        masks = self.config.mask_known
        return Batch(
            relation=relation,
            heads=samplers["head"].draw(heads, generator, queries=tails, known=relation.heads_of if masks else None),
            tails=samplers["tail"].draw(tails, generator, queries=heads, known=relation.tails_of if masks else None),
        )

    def step(self, batch: Batch, lanes: Lanes) -> float:
        """Learn from a batch; its heads are corrupted in one lane, its tails in the other.

        Args:
            batch: edges of one relation with their candidates.
            lanes: where the two sides run.

        Returns:
            The batch's loss before the step, unweighted.
        """
        tables = self._rows(batch)
        head_side, tail_side = lanes.run(
            lambda: self._side_gradients(batch, "head", tables), lambda: self._side_gradients(batch, "tail", tables)
        )
        for position, (node_type, rows, _) in enumerate(tables):
            gradient = head_side.entities[position].add_(tail_side.entities[position])
            self.state.optimizers[node_type].step(self.state.tables[node_type], rows, gradient)
        for key in dict.fromkeys((head_side.key, tail_side.key)):
            sides = [side for side in (head_side, tail_side) if side.key == key]
            gradients = {name: torch.stack([side.relation[name] for side in sides]).sum(0) for name in sides[0].relation}
            self.state.relations.step(key, gradients)
        return head_side.loss + tail_side.loss

    def validate(self) -> dict[str, float]:
        """Rank the held-out edges among all entities of the right type."""
        return evaluate(
            self.predictor(),
            {relation.name: relation.held_out for relation in self.edges},
            {relation.name: relation.known for relation in self.edges},
        )

    def predictor(self) -> LinkPredictor:
        """Give the scores of the tables as they are now."""
        return LinkPredictor(model=self.model, vectors=self.state.tables, relations=self.state.relations, ends=self.ends)

    def _sampler(self, positives: NDArray[np.int32], scratch: NDArray[np.int32]) -> CandidateSampler:
        config = self.config
        return CandidateSampler(
            np.bincount(positives, minlength=len(scratch)).astype(np.float64),
            num_uniform=config.num_uniform,
            num_degree=config.num_degree,
            degree_power=config.degree_power,
            slot_of_row=scratch,
        )

    def _plan(self, generator: np.random.Generator) -> list[tuple[RelationEdges, NDArray[np.int64]]]:
        """Shuffle the edges within each relation, and the relations' batches among each other."""
        batch_size = self.config.batch_size
        batches = []
        for relation in self.edges:
            order = generator.permutation(len(relation.train))[: self.config.max_edges_per_relation]
            batches += [(relation, order[begin : begin + batch_size]) for begin in range(0, len(order), batch_size)]
        return [batches[position] for position in generator.permutation(len(batches))]

    def _batches(self, plan: Sequence[tuple[RelationEdges, NDArray[np.int64]]]) -> Iterator[Batch]:
        for relation, edges in plan:
            yield self.draw(relation, relation.train.heads[edges], relation.train.tails[edges])

    def _rows(self, batch: Batch) -> list[_TableRows]:
        """Name the batch's rows of each table: once a table, so that a row has one gradient and one step."""
        relation = batch.relation
        head_rows, tail_rows = batch.heads.rows, batch.tails.rows
        if relation.src != relation.dst:
            return [
                _TableRows(relation.src, torch.from_numpy(head_rows), {"head": None}),
                _TableRows(relation.dst, torch.from_numpy(tail_rows), {"tail": None}),
            ]
        rows, slots = np.unique(np.concatenate([head_rows, tail_rows]), return_inverse=True)
        head_slots, tail_slots = map(torch.from_numpy, np.split(slots, [len(head_rows)]))
        return [_TableRows(relation.src, torch.from_numpy(rows), {"head": head_slots, "tail": tail_slots})]

    def _side_gradients(self, batch: Batch, side: Side, tables: list[_TableRows]) -> _SideGradients:
        """Give the gradients of the cross-entropy of the ends on `side` among their candidates."""
        config, model = self.config, self.model
        leaves = [self.state.tables[node_type].index_select(0, rows).requires_grad_() for node_type, rows, _ in tables]
        ends: dict[Side, Tensor] = {}
        for leaf, (_, _, slots_of) in zip(leaves, tables, strict=True):
            for end, slots in slots_of.items():
                ends[end] = leaf if slots is None else leaf.index_select(0, slots)
        candidates, known_candidates = (batch.heads, batch.tails) if side == "head" else (batch.tails, batch.heads)
        key, translated_side = self.state.relations.query(batch.relation.name, side)
        parameters = self.state.relations.leaves(key)
        known = model.project(ends["tail" if side == "head" else "head"], parameters)
        queries = model.translate(
            known.index_select(0, torch.from_numpy(known_candidates.targets)), parameters, translated_side
        )
        keys = model.project(ends[side], parameters)
        bias = -torch.from_numpy(candidates.log_inclusion) if config.logq else None
        if model.is_distance:
            # -|q - k|^2 without its -|q|^2, which is the same for all of a query's candidates.
            squares = keys.square().sum(-1)
            bias = -squares if bias is None else bias - squares
            queries = 2.0 * queries
        loss = sampled_softmax_loss(queries, keys, torch.from_numpy(candidates.targets).long(), bias=bias, hits=candidates.hits)
        objective = loss
        if config.l2:
            # Of the edges' own ends, as often as they stand in the batch: frequent entities are held as firmly as rare.
            share = torch.from_numpy(np.bincount(candidates.targets, minlength=len(candidates.rows)) / len(batch))
            objective = loss + config.l2 * (ends[side].square().sum(1) @ share.float())
        names = list(parameters)
        weight = torch.tensor(config.relation_weights.get(batch.relation.name, 1.0))
        gradients = torch.autograd.grad(objective, [*leaves, *(parameters[name] for name in names)], weight)
        return _SideGradients(
            loss=float(loss.detach()),
            key=key,
            entities=gradients[: len(leaves)],
            relation=dict(zip(names, gradients[len(leaves) :], strict=True)),
        )
