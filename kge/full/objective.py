"""What training against all entities minimises, and its gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from multifacet.kge.full.relation_prediction import relation_loss
from multifacet.kge.full.softmax import Answers, full_softmax_loss
from multifacet.kge.models.projections import ProjectionKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from multifacet.kge.config import KgeConfig
    from multifacet.kge.full_config import FullSoftmaxConfig
    from multifacet.kge.models.model import Model
    from multifacet.kge.triples.queries import QueryGroup

__all__ = ["FullObjective", "Gradients", "Piece"]


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


class Piece(NamedTuple):
    """Some queries of one group."""

    group: QueryGroup
    queries: NDArray[np.intp]


class FullObjective:
    """The loss of queries over all entities, with the auxiliary loss and the regularisers.

    Args:
        model: the scoring model.
        config: regularisation.
        objective: the loss.
        shapes: of a relation's parameters, by name, in the order in which they lie in a row.
        relation_weights: weight of each relation's loss, float [R].
        scale: what a step's sum is multiplied by.
    """

    def __init__(
        self,
        model: Model,
        config: KgeConfig,
        objective: FullSoftmaxConfig,
        *,
        shapes: Mapping[str, torch.Size],
        relation_weights: NDArray[np.float64],
        scale: float,
    ) -> None:
        self._model = model
        self._config = config
        self._objective = objective
        self._shapes = dict(shapes)
        self._relation_weights = relation_weights
        self._scale = scale
        self._projects = model.projection.kind != ProjectionKind.NONE

    def differentiate(
        self, pieces: list[Piece], tables: Mapping[str, Tensor], relation_table: Tensor, generator: np.random.Generator
    ) -> Gradients:
        """Give the loss of some queries, and the gradients of the whole objective: losses, auxiliary loss, regularisers.

        Args:
            pieces: the queries, group by group.
            tables: node type -> float [num_nodes, D].
            relation_table: the relations' parameters, [K, P].
            generator: source of what is dropped.
        """
        gradients = Gradients(relations=torch.zeros_like(relation_table))
        touched: dict[str, Tensor] = {}
        relation_counts = relation_table.new_zeros(len(relation_table))
        for group, queries in pieces:
            known, keys = torch.from_numpy(group.known[queries]), torch.from_numpy(group.keys[queries])
            answers = Answers.from_csr(group.indptr, group.answers, queries)
            num_answers = torch.bincount(answers.queries, minlength=len(queries)).to(relation_table.dtype)
            weights = torch.from_numpy(self._relation_weights[group.relations[queries]]).to(num_answers) * self._scale
            if self._objective.weigh == "queries":
                weights = weights / num_answers
            for node_type in (group.known_type, group.asked_type):
                if node_type not in touched:
                    touched[node_type] = tables[node_type].new_zeros(len(tables[node_type]))
            touched[group.known_type].index_add_(0, known, weights * num_answers)
            touched[group.asked_type].index_add_(0, answers.candidates, weights[answers.queries])
            relation_counts.index_add_(0, keys, weights * num_answers)
            self._add_gradients(gradients, tables, relation_table, group, known, keys, answers, weights, generator)
        objective, l2, n3 = self._objective, self._config.l2, self._config.n3
        if objective.penalize == "tables":
            # Of the mean over examples, which a step is an estimate of, and so as often an epoch as there are steps.
            touched = {node_type: torch.ones_like(counts) for node_type, counts in touched.items()}
            relation_counts = torch.ones_like(relation_counts)
        for node_type, counts in touched.items():
            self._regularise(gradients.tables[node_type], tables[node_type], counts, l2, n3)
        if not self._model.is_distance:
            relation_l2 = l2 if objective.relation_l2 is None else objective.relation_l2
            relation_n3 = n3 if objective.relation_n3 is None else objective.relation_n3
            self._regularise(gradients.relations, relation_table, relation_counts, relation_l2, relation_n3)
        return gradients

    def _add_gradients(
        self,
        gradients: Gradients,
        tables: Mapping[str, Tensor],
        relation_table: Tensor,
        group: QueryGroup,
        known: Tensor,
        keys: Tensor,
        answers: Answers,
        weights: Tensor,
        generator: np.random.Generator,
    ) -> None:
        """Add one piece's loss and gradients; `weights` are those of each query's answers in the objective."""
        objective, model = self._objective, self._model
        table = tables[group.asked_type].detach().requires_grad_()
        known_rows = tables[group.known_type][known].requires_grad_()
        rows = keys[:1] if self._projects else keys
        relation_rows = relation_table[rows].requires_grad_()
        ends = _drop(known_rows, objective.entity_dropout, generator)
        parameters = self.parameters(
            relation_rows[0] if self._projects else _drop(relation_rows, objective.relation_dropout, generator)
        )
        candidates = model.project(_drop(table, objective.entity_dropout, generator), parameters)
        queries = model.translate(model.project(ends, parameters), parameters, group.side)
        bias = None
        if model.is_distance:
            # -|q - k|^2 without its -|q|^2, which is the same for all of a query's candidates.
            bias = -candidates.square().sum(-1)
            queries = 2.0 * queries
        queries = _drop(queries, objective.dropout, generator)
        total = full_softmax_loss(
            queries,
            candidates,
            answers,
            bias=bias,
            query_weights=weights,
            label_smoothing=objective.label_smoothing,
            answers_compete=objective.answers_compete,
            product_dtype=torch.bfloat16 if objective.products == "bf16" else None,
        )
        gradients.loss += float(total.detach()) / self._scale
        leaves = [known_rows, relation_rows, table]
        if objective.relation_prediction and group.side == "tail":
            rivals = torch.from_numpy(np.unique(group.keys))
            leaves += [
                relation_table[rivals].requires_grad_(),
                tables[group.asked_type][answers.candidates].requires_grad_(),
            ]
            losses = relation_loss(
                model,
                known_rows[answers.queries],
                leaves[4],
                self.parameters(leaves[3]),
                torch.searchsorted(rivals, keys[answers.queries]),
            )
            total = total + objective.relation_prediction * (losses @ weights[answers.queries])
        by_known, by_relation, by_table, *by_rivals = torch.autograd.grad(total, leaves)
        # A gradient of all rows is taken over where it is the first, not added to zeros: it is as large as the table.
        if group.asked_type in gradients.tables:
            by_table = gradients.tables[group.asked_type].add_(by_table)
        gradients.tables[group.asked_type] = by_table
        if group.known_type not in gradients.tables:
            gradients.tables[group.known_type] = torch.zeros_like(tables[group.known_type])
        gradients.tables[group.known_type].index_add_(0, known, by_known)
        gradients.relations.index_add_(0, rows, by_relation)
        if by_rivals:
            gradients.relations.index_add_(0, rivals, by_rivals[0])
            gradients.tables[group.asked_type].index_add_(0, answers.candidates, by_rivals[1])

    def _regularise(self, gradient: Tensor, values: Tensor, counts: Tensor, l2: float, n3: float) -> None:
        """Add the gradient of the penalties of rows that stand `counts` times in a step."""
        if not (l2 or n3):
            return
        rows = counts.nonzero()[:, 0]
        vectors = values[rows]
        factors = torch.full_like(vectors, l2)
        if n3:
            # Half of each penalty at each side's example: an edge has two.
            moduli = vectors.abs()
            if self._model.has_complex_entities:
                real, imaginary = vectors.chunk(2, dim=1)
                moduli = torch.hypot(real, imaginary).repeat(1, 2)
            factors += 1.5 * n3 * moduli
        gradient.index_add_(0, rows, factors * vectors * counts[rows, None])

    def parameters(self, rows: Tensor) -> dict[str, Tensor]:
        """Name the parameters that lie side by side in rows of the relation table, [P] or [n, P]."""
        parts = torch.split(rows, [math.prod(shape) for shape in self._shapes.values()], dim=-1)
        return {name: torch.unflatten(part, -1, shape) for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)}


def _drop(values: Tensor, chance: float, generator: np.random.Generator) -> Tensor:
    """Set each number to zero by chance, and lengthen the others so that the mean stays (Srivastava et al., JMLR 2014)."""
    if not chance:
        return values
    kept = torch.from_numpy(generator.random(values.shape, dtype=np.float32) >= chance)
    return values * kept / (1.0 - chance)
