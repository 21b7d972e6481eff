"""Training against all entities: each distinct query once an epoch, with every answer it has."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kge.dense_optimizer import DenseOptimizer
from kge.full_config import FullSoftmaxConfig
from kge.full_softmax import Answers, full_softmax_loss
from kge.full_state import FullTrainerState
from kge.models import build_model
from kge.predictor import LinkPredictor
from kge.queries import group_queries
from kge.relation_prediction import relation_loss
from kge.relations import RelationParameters
from kge.schedule import rate_factor
from tables.rowwise import RowwiseAdagrad
from tables.training import Position, TrainingRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from kge.config import KgeConfig
    from kge.queries import QueryGroup
    from kge.triples import TripleSplit
    from tables.warmstart import WarmStart

__all__ = ["FullTrainer"]


@dataclass(kw_only=True, slots=True)
class Gradients:
    """Gradients of some queries.

    Attributes:
        relations: by the table of relation parameters, [K, P].
        tables: node type -> by its table, [num_nodes, D]; types that take no part are missing.
        loss: sum of the answers' cross-entropies in nats, weighted as in the objective.
    """

    relations: Tensor
    tables: dict[str, Tensor] = field(default_factory=dict)
    loss: float = 0.0


class _Piece(NamedTuple):
    """Some queries of one group."""

    group: QueryGroup
    queries: NDArray[np.intp]


class FullTrainer:
    """Runs epochs over the distinct queries of triples.

    A step takes about `batch_size` queries. Where entities are projected by their relation (TransR, TransRA) it takes them
    relation by relation, so that each table is projected once for all of a relation's queries in the step.

    Args:
        split: what is learned from (`train`) and validated on (`valid`).
        config: the model and how it is trained, with `full_softmax` given.
        generator: source of shuffles and dropout.
    """

    def __init__(self, split: TripleSplit, config: KgeConfig, generator: np.random.Generator) -> None:
        if config.full_softmax is None:
            raise ValueError("config.full_softmax is None: this configuration asks for sampled negatives")
        self.config = config
        self.objective: FullSoftmaxConfig = config.full_softmax
        self.split = split
        self.model = build_model(config)
        self.ends = split.train.ends
        seeded = torch.Generator().manual_seed(config.seed)
        tables = {
            node_type: torch.randn(count, config.dim, generator=seeded) * config.init_scale
            for node_type, count in split.train.num_nodes.items()
        }
        relations = RelationParameters(self.model, split.train.relation_names, reciprocal=config.reciprocal, generator=seeded)
        self.relation_table, self._relation_shapes = relations.table, relations.shapes
        optimizer = self.objective.optimizer
        self.state = FullTrainerState(
            tables=tables,
            optimizers={node_type: DenseOptimizer(table, optimizer, config.lr) for node_type, table in tables.items()},
            relations=relations,
            relation_optimizer=DenseOptimizer(self.relation_table, optimizer, config.relation_lr),
            position=Position(generator=generator),
        )
        if optimizer == "adagrad":
            # The relations' own state, which a snapshot keeps, is the optimiser's.
            self.state.relation_optimizer.state["squares"] = relations.state
        self._num_steps = 1
        self._projects = self.predictor().projects_entities
        if self._projects and self.objective.relation_prediction:
            raise ValueError(
                f"relation prediction would project each pair of ends by every relation of {config.model}: leave it out"
            )
        weights = np.array([config.relation_weights.get(name, 1.0) for name in split.train.relation_names])
        self._relation_weights = weights
        kept = split.train.take(weights[split.train.relations] > 0)
        self._groups = group_queries(kept, reciprocal=config.reciprocal, by_relation=self._projects)
        self.num_queries = sum(len(group) for group in self._groups)
        if not self.num_queries:
            raise ValueError(f"there are no triples to train on: {split.train} with relation weights {config.relation_weights}")
        self._num_examples = (
            sum(len(group.answers) for group in self._groups) if self.objective.weigh == "triples" else self.num_queries
        )
        # Each step's sum times this is the mean over its examples, but of a step's expected, not own, number of them.
        self._scale = math.ceil(self.num_queries / config.batch_size) / self._num_examples
        self._num_triples = sum(len(group.answers) for group in self._groups) / 2

    def run_epoch(self, run: TrainingRun | None = None) -> dict[str, float]:
        """Pass once over the queries, or over those that are left of an epoch that was interrupted.

        Args:
            run: what saves the state between two steps; None for a run that is never saved.

        Returns:
            epoch, loss (mean over triples of both sides' cross-entropy, in nats), seconds and edges_per_s.
        """
        run, position = run or TrainingRun(), self.state.position
        steps = position.begin_epoch(self._draw_steps)
        self._num_steps = len(steps)
        # No lanes: a step is a few large products, which torch itself spreads over the threads.
        for pieces in run.steps(iter(steps[position.step :]), None, self.state, num_steps=len(steps)):
            num_answers = sum(int(np.diff(group.indptr)[queries].sum()) for group, queries in pieces)
            position.add(loss=self.step(pieces), examples=num_answers / 2)
        seconds = run.epoch_seconds(position)
        loss = position.end_epoch()["loss"] / self._num_triples
        if not math.isfinite(loss):
            raise ValueError(f"the loss of epoch {position.epoch} is {loss}; lower lr or init_scale")
        return {
            "epoch": float(position.epoch),
            "loss": loss,
            "seconds": seconds,
            "edges_per_s": self._num_triples / seconds,
        }

    def warm_start(self, warm_start: WarmStart, node_ids: Callable[[str], Any]) -> None:
        """Begin with the rows and relations of an older snapshot.

        Args:
            warm_start: the snapshot and how to start from it.
            node_ids: gives the external ids of a node type.

        Raises:
            ValueError: if the snapshot's tables or relations do not fit, or it is asked for what this training cannot do.
        """
        if warm_start.config.pull:
            raise ValueError(f"training with full_softmax has no pull towards older rows: pull={warm_start.config.pull}; set 0")
        state, keeps = self.state, self.objective.optimizer == "adagrad"
        if warm_start.config.keep_state and not keeps:
            raise ValueError(
                f"keep_state={warm_start.config.keep_state} goes on with the accumulated squares of Adagrad, which "
                "full_softmax.optimizer='adam' has not: set keep_state=0 (--keep-state 0)"
            )
        by_row = {node_type: RowwiseAdagrad(len(table), self.config.lr) for node_type, table in state.tables.items()}
        warm_start.apply(state.tables, by_row, node_ids, facet="kge")
        state.relations.warm_start(warm_start.snapshot.parameters())
        if keeps:
            for node_type, optimizer in by_row.items():
                state.optimizers[node_type].state["squares"].copy_(optimizer.state[:, None])

    def predictor(self) -> LinkPredictor:
        """Give the scores of the tables as they are now."""
        return LinkPredictor(model=self.model, vectors=self.state.tables, relations=self.state.relations, ends=self.ends)

    def step(self, pieces: list[_Piece]) -> float:
        """Learn from some queries.

        Args:
            pieces: the queries, group by group.

        Returns:
            The sum of the cross-entropies of their answers before the step.
        """
        config, state = self.config, self.state
        progress = (state.position.epoch + state.position.step / self._num_steps) / config.epochs
        factor = rate_factor(progress, config.lr_schedule, warmup=config.warmup)
        gradients = self.differentiate(pieces)
        for node_type, gradient in gradients.tables.items():
            state.optimizers[node_type].lr = config.lr * factor
            state.optimizers[node_type].step(gradient)
        state.relation_optimizer.lr = config.relation_lr * factor
        state.relation_optimizer.step(gradients.relations)
        return gradients.loss

    def differentiate(self, pieces: list[_Piece]) -> Gradients:
        """Give the loss of some queries, and the gradients of the whole objective: losses, auxiliary loss, regularisers."""
        gradients = Gradients(relations=torch.zeros_like(self.relation_table))
        touched: dict[str, Tensor] = {}
        relation_counts = self.relation_table.new_zeros(len(self.relation_table))
        for group, queries in pieces:
            known, keys = torch.from_numpy(group.known[queries]), torch.from_numpy(group.keys[queries])
            answers = Answers.from_csr(group.indptr, group.answers, queries)
            num_answers = torch.bincount(answers.queries, minlength=len(queries)).to(self.relation_table.dtype)
            weights = torch.from_numpy(self._relation_weights[group.relations[queries]]).to(num_answers) * self._scale
            if self.objective.weigh == "queries":
                weights = weights / num_answers
            for node_type in (group.known_type, group.asked_type):
                if node_type not in touched:
                    gradients.tables[node_type] = torch.zeros_like(self.state.tables[node_type])
                    touched[node_type] = gradients.tables[node_type].new_zeros(len(self.state.tables[node_type]))
            touched[group.known_type].index_add_(0, known, weights * num_answers)
            touched[group.asked_type].index_add_(0, answers.candidates, weights[answers.queries])
            relation_counts.index_add_(0, keys, weights * num_answers)
            self._add_gradients(gradients, group, known, keys, answers, weights)
        for node_type, counts in touched.items():
            self._regularise(gradients.tables[node_type], self.state.tables[node_type], counts)
        if not self.model.is_distance:
            self._regularise(gradients.relations, self.relation_table, relation_counts)
        return gradients

    def all_queries(self) -> list[_Piece]:
        """Give all queries as one step."""
        return [_Piece(group, np.arange(len(group))) for group in self._groups]

    def to_double(self) -> None:
        """Go on in float64: to check gradients, not to train."""
        state = self.state
        state.tables = {node_type: table.double() for node_type, table in state.tables.items()}
        self.relation_table = self.relation_table.double()

    def _add_gradients(
        self, gradients: Gradients, group: QueryGroup, known: Tensor, keys: Tensor, answers: Answers, weights: Tensor
    ) -> None:
        """Add one piece's loss and gradients; `weights` are those of each query's answers in the objective."""
        objective, model = self.objective, self.model
        table = self.state.tables[group.asked_type].detach().requires_grad_()
        known_rows = self.state.tables[group.known_type][known].requires_grad_()
        rows = keys[:1] if self._projects else keys
        relation_rows = self.relation_table[rows].requires_grad_()
        parameters = self._parameters(relation_rows[0] if self._projects else relation_rows)
        candidates = model.project(table, parameters)
        queries = model.translate(model.project(known_rows, parameters), parameters, group.side)
        bias = None
        if model.is_distance:
            # -|q - k|^2 without its -|q|^2, which is the same for all of a query's candidates.
            bias = -candidates.square().sum(-1)
            queries = 2.0 * queries
        if objective.dropout:
            kept = torch.from_numpy(self.state.position.generator.random(queries.shape, dtype=np.float32) >= objective.dropout)
            queries = queries * kept / (1.0 - objective.dropout)
        total = full_softmax_loss(
            queries,
            candidates,
            answers,
            bias=bias,
            query_weights=weights,
            label_smoothing=objective.label_smoothing,
            answers_compete=objective.answers_compete,
        )
        gradients.loss += float(total.detach()) / self._scale
        leaves = [known_rows, relation_rows, table]
        if objective.relation_prediction and group.side == "tail":
            rivals = torch.from_numpy(np.unique(group.keys))
            leaves += [
                self.relation_table[rivals].requires_grad_(),
                self.state.tables[group.asked_type][answers.candidates].requires_grad_(),
            ]
            losses = relation_loss(
                model,
                known_rows[answers.queries],
                leaves[4],
                self._parameters(leaves[3]),
                torch.searchsorted(rivals, keys[answers.queries]),
            )
            total = total + objective.relation_prediction * (losses @ weights[answers.queries])
        by_known, by_relation, by_table, *by_rivals = torch.autograd.grad(total, leaves)
        gradients.tables[group.asked_type] += by_table
        gradients.tables[group.known_type].index_add_(0, known, by_known)
        gradients.relations.index_add_(0, rows, by_relation)
        if by_rivals:
            gradients.relations.index_add_(0, rivals, by_rivals[0])
            gradients.tables[group.asked_type].index_add_(0, answers.candidates, by_rivals[1])

    def _regularise(self, gradient: Tensor, values: Tensor, counts: Tensor) -> None:
        """Add the gradient of the penalties of rows that stand `counts` times in a step."""
        l2, n3 = self.config.l2, self.config.n3
        if not (l2 or n3):
            return
        rows = counts.nonzero()[:, 0]
        vectors = values[rows]
        factors = torch.full_like(vectors, l2)
        if n3:
            # Half of each penalty at each side's example: an edge has two.
            moduli = vectors.abs()
            if self.model.has_complex_entities:
                real, imaginary = vectors.chunk(2, dim=1)
                moduli = torch.hypot(real, imaginary).repeat(1, 2)
            factors += 1.5 * n3 * moduli
        gradient.index_add_(0, rows, factors * vectors * counts[rows, None])

    def _parameters(self, rows: Tensor) -> dict[str, Tensor]:
        """Name the parameters that lie side by side in rows of the relation table, [P] or [n, P]."""
        parts = torch.split(rows, [math.prod(shape) for shape in self._relation_shapes.values()], dim=-1)
        return {
            name: torch.unflatten(part, -1, shape)
            for part, (name, shape) in zip(parts, self._relation_shapes.items(), strict=True)
        }

    def _draw_steps(self, generator: np.random.Generator) -> list[list[_Piece]]:
        """Shuffle the queries within each group and cut them, shuffle the cuts, and gather them to steps."""
        size = self.config.batch_size
        pieces = []
        for group in self._groups:
            order = generator.permutation(len(group))
            num_pieces = math.ceil(len(order) / size)
            pieces += [_Piece(group, part) for part in np.array_split(order, num_pieces)]
        steps: list[list[_Piece]] = []
        step: list[_Piece] = []
        num_queries = 0
        for position in generator.permutation(len(pieces)):
            step.append(pieces[position])
            num_queries += len(pieces[position].queries)
            if num_queries >= size:
                steps.append(step)
                step, num_queries = [], 0
        return [*steps, step] if step else steps
