"""Training against all entities: each distinct query once an epoch, with every answer it has."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from multifacet.kge.evaluation.predictor import LinkPredictor
from multifacet.kge.full.dense_optimizer import DenseOptimizer
from multifacet.kge.full.objective import FullObjective, Gradients, Piece
from multifacet.kge.full.state import FullTrainerState
from multifacet.kge.full_config import FullSoftmaxConfig
from multifacet.kge.models.registry import build_model
from multifacet.kge.models.relations import RelationParameters
from multifacet.kge.sampled.schedule import relation_rates, step_factor
from multifacet.kge.triples.queries import group_queries
from multifacet.tables.optim import RowwiseAdagrad
from multifacet.training import Position, TrainingRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from multifacet.kge.config import KgeConfig
    from multifacet.kge.triples.triples import TripleSplit
    from multifacet.training import WarmStart

__all__ = ["FullTrainer"]

logger = logging.getLogger(__name__)


class FullTrainer:
    """Runs epochs over the distinct queries of triples.

    A step takes at most `batch_size` queries. Where entities are projected by their relation (TransR, TransRA) it takes them
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
        if self.objective.products == "bf16" and not _has_bf16_products():
            logger.warning(
                "full_softmax.products='bf16' is slower than fp32 on this CPU, which has neither avx512_bf16 nor amx_bf16: set "
                "full_softmax.products='fp32'"
            )
        self.split = split
        self.model = build_model(config)
        self.ends = split.train.ends
        seeded = torch.Generator().manual_seed(config.seed)
        tables = {
            node_type: torch.randn(count, config.dim, generator=seeded) * config.init_scale
            for node_type, count in split.train.num_nodes.items()
        }
        relations = RelationParameters(self.model, split.train.relation_names, reciprocal=config.reciprocal, generator=seeded)
        self.relation_table = relations.table
        optimizer = self.objective.optimizer
        self.state = FullTrainerState(
            tables=tables,
            optimizers={node_type: DenseOptimizer(table, optimizer, config.lr) for node_type, table in tables.items()},
            relations=relations,
            relation_optimizer=DenseOptimizer(
                self.relation_table,
                optimizer,
                config.relation_lr,
                relation_rates(config, self.model, self.relation_table.shape[1]),
            ),
            position=Position(generator=generator),
        )
        if optimizer == "adagrad":
            # The relations' own state, which a snapshot keeps, is the optimiser's.
            self.state.relation_optimizer.state["squares"] = relations.state
        self._num_steps = 1
        projects = self.predictor().projects_entities
        if projects and self.objective.relation_prediction:
            raise ValueError(
                f"relation prediction would project each pair of ends by every relation of {config.model}: leave it out"
            )
        weights = np.array([config.relation_weights.get(name, 1.0) for name in split.train.relation_names])
        kept = split.train.take(weights[split.train.relations] > 0)
        self._groups = group_queries(kept, reciprocal=config.reciprocal, by_relation=projects)
        self.num_queries = sum(len(group) for group in self._groups)
        if not self.num_queries:
            raise ValueError(f"there are no triples to train on: {split.train} with relation weights {config.relation_weights}")
        self._num_examples = (
            sum(len(group.answers) for group in self._groups) if self.objective.weigh == "triples" else self.num_queries
        )
        # Each step's sum times this is the mean over its examples, but of a step's expected, not own, number of them.
        scale = math.ceil(self.num_queries / config.batch_size) / self._num_examples
        self._objective = FullObjective(
            self.model, config, self.objective, shapes=relations.shapes, relation_weights=weights, scale=scale
        )

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
        return self.state.end_epoch(run)

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
        warm_start.check_config(
            self.config.model_dump(mode="json"), same=("model", "distance"), told=("reciprocal", "table_dtype", "full_softmax")
        )
        state.taken = warm_start.apply(state.tables, by_row, node_ids, facet="kge")
        state.relations.warm_start(warm_start.snapshot.parameters())
        if keeps:
            for node_type, optimizer in by_row.items():
                state.optimizers[node_type].state["squares"].copy_(optimizer.state[:, None])

    def predictor(self) -> LinkPredictor:
        """Give the scores of the tables as they are now."""
        return LinkPredictor(model=self.model, vectors=self.state.tables, relations=self.state.relations, ends=self.ends)

    def step(self, pieces: list[Piece]) -> float:
        """Learn from some queries.

        Args:
            pieces: the queries, group by group.

        Returns:
            The sum of the cross-entropies of their answers before the step.
        """
        config, state = self.config, self.state
        factor = step_factor(config, state.position, self._num_steps)
        gradients = self.differentiate(pieces)
        for node_type, gradient in gradients.tables.items():
            state.optimizers[node_type].lr = config.lr * factor
            state.optimizers[node_type].step(gradient)
        state.relation_optimizer.lr = config.relation_lr * factor
        state.relation_optimizer.step(gradients.relations)
        return gradients.loss

    def differentiate(self, pieces: list[Piece]) -> Gradients:
        """Give the loss of some queries and the gradients of the whole objective, as the tables are now."""
        state = self.state
        return self._objective.differentiate(pieces, state.tables, self.relation_table, state.position.generator)

    def all_queries(self) -> list[Piece]:
        """Give all queries as one step."""
        return [Piece(group, np.arange(len(group))) for group in self._groups]

    def to_double(self) -> None:
        """Go on in float64: to check gradients, not to train."""
        state = self.state
        state.tables = {node_type: table.double() for node_type, table in state.tables.items()}
        self.relation_table = self.relation_table.double()

    def _draw_steps(self, generator: np.random.Generator) -> list[list[Piece]]:
        """Shuffle the queries within each group and cut them, shuffle the cuts, and gather them to steps."""
        size = self.config.batch_size
        pieces = []
        for group in self._groups:
            order = generator.permutation(len(group))
            num_pieces = math.ceil(len(order) / size)
            pieces += [Piece(group, part) for part in np.array_split(order, num_pieces)]
        steps: list[list[Piece]] = []
        step: list[Piece] = []
        num_queries = 0
        for position in generator.permutation(len(pieces)):
            piece = pieces[position]
            if step and num_queries + len(piece.queries) > size:
                steps.append(step)
                step, num_queries = [], 0
            step.append(piece)
            num_queries += len(piece.queries)
        return [*steps, step]


def _has_bf16_products() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
