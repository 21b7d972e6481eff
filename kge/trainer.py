"""Training of entity tables and relation parameters on the edges of a view."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kge.edges import split_edges
from kge.evaluation import evaluate
from kge.models import build_model
from kge.predictor import LinkPredictor
from kge.relations import RelationParameters
from kge.result import KgeResult
from tables.candidates import Candidates, CandidateSampler
from tables.rowwise import RowwiseAdagrad
from tables.softmax import sampled_softmax_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from graphdb import GraphView
    from kge.config import KgeConfig
    from kge.edges import RelationEdges
    from kge.models import Side

__all__ = ["Trainer", "TrainerState", "train"]

logger = logging.getLogger(__name__)


def train(view: GraphView, config: KgeConfig, *, progress: Callable[[Mapping[str, float]], None] | None = None) -> KgeResult:
    """Learn a table for each node type of a view by predicting its links.

    Args:
        view: the graph window; all of its relations take part unless their weight is zero.
        config: the model and how it is trained.
        progress: called with the history's row after each epoch.

    Returns:
        Tables, relation parameters, history and metrics.

    Raises:
        ValueError: if the configuration does not fit the view, or the loss stops being a number.
    """
    generator = np.random.default_rng(config.seed)
    edges = split_edges(view, config, generator)
    trainer = Trainer(edges, view.num_nodes, config, generator)
    num_held_out = sum(len(relation.held_out) for relation in edges)
    for epoch in range(1, config.epochs + 1):
        row = trainer.run_epoch()
        if num_held_out and (epoch % config.validation.every == 0 or epoch == config.epochs):
            row |= trainer.validate()
        trainer.state.history.append(row)
        logger.info("kge epoch %d: %s", epoch, row)
        if progress is not None:
            progress(row)
    # No clock: equal trainings have equal metrics, and so equal snapshots.
    timings = ("seconds", "edges_per_s")
    metrics = {name: value for name, value in trainer.state.history[-1].items() if name not in timings}
    return KgeResult(
        config=config,
        vectors=trainer.state.tables,
        relations=trainer.state.relations,
        ends=trainer.ends,
        history=trainer.state.history,
        metrics=metrics | {"num_held_out": float(num_held_out)},
    )


@dataclass(kw_only=True, slots=True)
class TrainerState:
    """All that changes while a trainer runs.

    Attributes:
        tables: node type -> float32 [num_nodes, D].
        optimizers: node type -> row-wise Adagrad.
        relations: the relations' parameters with their Adagrad state.
        generator: source of shuffles and negatives.
        epoch: epochs finished.
        history: one row a finished epoch.
    """

    tables: dict[str, Tensor]
    optimizers: dict[str, RowwiseAdagrad]
    relations: RelationParameters
    generator: np.random.Generator
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


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
            generator=generator,
        )
        scratch = {node_type: np.full(count, -1, dtype=np.int32) for node_type, count in num_nodes.items()}
        self._samplers: dict[str, dict[Side, CandidateSampler]] = {
            relation.name: {
                "head": self._sampler(relation.train.heads, scratch[relation.src]),
                "tail": self._sampler(relation.train.tails, scratch[relation.dst]),
            }
            for relation in edges
        }

    def run_epoch(self) -> dict[str, float]:
        """Pass once over the edges.

        Returns:
            epoch, loss (mean over edges of both sides' cross-entropy, in nats), seconds and edges_per_s.
        """
        begin = time.perf_counter()
        total_loss, num_edges = 0.0, 0
        for relation, batch in self._batches():
            loss = self.step(relation, relation.train.heads[batch], relation.train.tails[batch])
            total_loss += loss * len(batch)
            num_edges += len(batch)
        self.state.epoch += 1
        loss = total_loss / num_edges
        if not np.isfinite(loss):
            raise ValueError(f"the loss of epoch {self.state.epoch} is {loss}; lower lr or init_scale")
        seconds = time.perf_counter() - begin
        return {
            "epoch": float(self.state.epoch),
            "loss": loss,
            "seconds": seconds,
            "edges_per_s": num_edges / seconds,
        }

    def step(self, relation: RelationEdges, heads: NDArray[np.int32], tails: NDArray[np.int32]) -> float:
        """Learn from a batch of one relation's edges; both sides are corrupted.

        Args:
            relation: the relation.
            heads: int32 [B].
            tails: int32 [B].

        Returns:
            The batch's loss before the step, unweighted.
        """
        samplers, generator = self._samplers[relation.name], self.state.generator
        masks = self.config.mask_known
        head_candidates = samplers["head"].draw(heads, generator, queries=tails, known=relation.heads_of if masks else None)
        tail_candidates = samplers["tail"].draw(tails, generator, queries=heads, known=relation.tails_of if masks else None)
        leaves, head_entities, tail_entities = self._gather(relation, head_candidates, tail_candidates)
        parameters: dict[str, dict[str, Tensor]] = {}
        tail_loss = self._side_loss(
            relation, "tail", head_entities, head_candidates, tail_entities, tail_candidates, parameters
        )
        head_loss = self._side_loss(
            relation, "head", tail_entities, tail_candidates, head_entities, head_candidates, parameters
        )
        loss = tail_loss + head_loss
        (loss * self.config.relation_weights.get(relation.name, 1.0)).backward()  # type: ignore[no-untyped-call]
        for node_type, rows, leaf in leaves:
            if leaf.grad is None:
                raise RuntimeError(f"table {node_type!r} received no gradient from relation {relation.name!r}")
            self.state.optimizers[node_type].step(self.state.tables[node_type], rows, leaf.grad)
        for key, values in parameters.items():
            self.state.relations.step(key, values)
        return float(loss.detach())

    def validate(self) -> dict[str, float]:
        """Rank the held-out edges among all entities of the right type."""
        return evaluate(
            self.predictor(),
            {relation.name: relation.held_out for relation in self.edges},
            {relation.name: relation.tails_of for relation in self.edges},
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

    def _batches(self) -> Iterator[tuple[RelationEdges, NDArray[np.int64]]]:
        """Shuffle the edges within each relation, and the relations' batches among each other."""
        config, generator = self.config, self.state.generator
        batches = []
        for relation in self.edges:
            order = generator.permutation(len(relation.train))[: config.max_edges_per_relation]
            batches += [
                (relation, order[begin : begin + config.batch_size]) for begin in range(0, len(order), config.batch_size)
            ]
        for position in generator.permutation(len(batches)):
            yield batches[position]

    def _gather(
        self, relation: RelationEdges, head_candidates: Candidates, tail_candidates: Candidates
    ) -> tuple[list[tuple[str, Tensor, Tensor]], Tensor, Tensor]:
        """Copy the batch's rows into leaves: one a table, so that a row has one gradient and one step."""
        tables = self.state.tables
        if relation.src != relation.dst:
            head_rows, tail_rows = map(torch.from_numpy, (head_candidates.rows, tail_candidates.rows))
            heads = tables[relation.src].index_select(0, head_rows).requires_grad_()
            tails = tables[relation.dst].index_select(0, tail_rows).requires_grad_()
            return [(relation.src, head_rows, heads), (relation.dst, tail_rows, tails)], heads, tails
        rows, slots = np.unique(np.concatenate([head_candidates.rows, tail_candidates.rows]), return_inverse=True)
        leaf = tables[relation.src].index_select(0, torch.from_numpy(rows)).requires_grad_()
        head_slots, tail_slots = np.split(slots, [len(head_candidates.rows)])
        leaves = [(relation.src, torch.from_numpy(rows), leaf)]
        return (
            leaves,
            leaf.index_select(0, torch.from_numpy(head_slots)),
            leaf.index_select(0, torch.from_numpy(tail_slots)),
        )

    def _side_loss(
        self,
        relation: RelationEdges,
        side: Side,
        known_entities: Tensor,
        known_candidates: Candidates,
        entities: Tensor,
        candidates: Candidates,
        parameters: dict[str, dict[str, Tensor]],
    ) -> Tensor:
        """Cross-entropy of the ends on `side` among their candidates; adds the relation's leaves to `parameters`."""
        key, translated_side = self.state.relations.query(relation.name, side)
        leaves = parameters.setdefault(key, self.state.relations.leaves(key))
        known = self.model.project(known_entities, leaves).index_select(0, torch.from_numpy(known_candidates.targets))
        queries = self.model.translate(known, leaves, translated_side)
        keys = self.model.project(entities, leaves)
        bias = -torch.from_numpy(candidates.log_inclusion) if self.config.logq else None
        if self.model.is_distance:
            # -|q - k|^2 without its -|q|^2, which is the same for all of a query's candidates.
            squares = keys.square().sum(-1)
            bias = -squares if bias is None else bias - squares
            queries = 2.0 * queries
        return sampled_softmax_loss(queries, keys, torch.from_numpy(candidates.targets).long(), bias=bias, hits=candidates.hits)
