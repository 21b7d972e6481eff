"""Scores of trained tables: of triples, and of queries against all entities of a type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kge.models import Model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from kge.models import Side
    from kge.relations import RelationParameters

__all__ = ["LinkPredictor"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkPredictor:
    """A model with its tables and relation parameters.

    Attributes:
        model: the scoring model.
        vectors: node type -> [num_nodes, D]; what is in half precision is scored as float32.
        relations: parameters of the relations.
        ends: relation name -> (node type of the heads, node type of the tails).
    """

    model: Model
    vectors: Mapping[str, Tensor]
    relations: RelationParameters
    ends: Mapping[str, tuple[str, str]]

    def score(self, relation: str, heads: Tensor, tails: Tensor) -> Tensor:
        """Score triples of one relation by its own (not its inverse's) parameters.

        Args:
            relation: the relation's name.
            heads: int [n], idx within the relation's src type.
            tails: int [n], idx within the relation's dst type.

        Returns:
            float32 [n], larger is likelier.

        Raises:
            KeyError: if there is no such relation.
        """
        src, dst = self.ends_of(relation)
        parameters = self.relations.values[relation]
        with torch.no_grad():
            return self.model.score(self.vectors[src][heads].float(), self.vectors[dst][tails].float(), parameters)

    def candidates(self, relation: str, side: Side) -> Tensor:
        """Project all entities that can stand on one side of a relation, float32 [num_nodes, D]."""
        src, dst = self.ends_of(relation)
        key, _ = self.relations.query(relation, side)
        with torch.no_grad():
            return self.model.project(self.vectors[dst if side == "tail" else src].float(), self.relations.values[key])

    def score_candidates(self, relation: str, queries: Tensor, candidates: Tensor, side: Side) -> Tensor:
        """Score queries against projected candidates.

        Args:
            relation: the relation's name.
            queries: the known ends, int [B]: heads if tails are asked for (`side="tail"`), tails otherwise.
            candidates: from `candidates` of the same relation and side, float32 [N, D].
            side: the side that is asked for.

        Returns:
            float32 [B, N], larger is likelier.
        """
        with torch.no_grad():
            return self.model.score_candidates(self.queries(relation, queries, side), candidates)

    def score_each(self, relation: str, queries: Tensor, rows: Tensor, side: Side) -> Tensor:
        """Score queries against candidates of their own.

        Args:
            relation: the relation's name.
            queries: the known ends, int64 [B].
            rows: the candidates of each query, int64 [B, S], idx within the asked type.
            side: the side that is asked for.

        Returns:
            float32 [B, S], larger is likelier.
        """
        src, dst = self.ends_of(relation)
        key, _ = self.relations.query(relation, side)
        with torch.no_grad():
            drawn = self.vectors[dst if side == "tail" else src][rows].float()
            candidates = self.model.project(drawn, self.relations.values[key])
            vectors = self.queries(relation, queries, side)
            scores = [self.model.score_candidates(vector[None], own) for vector, own in zip(vectors, candidates, strict=True)]
            return torch.cat(scores) if scores else vectors.new_empty(0, rows.shape[1])

    def queries(self, relation: str, rows: Tensor, side: Side) -> Tensor:
        """Translate the known ends of queries to where their answers should be.

        Args:
            relation: the relation's name.
            rows: the known ends, int64 [B]: heads if tails are asked for (`side="tail"`), tails otherwise.
            side: the side that is asked for.

        Returns:
            float32 [B, D], to be compared with what `candidates` gives.
        """
        src, dst = self.ends_of(relation)
        key, translated_side = self.relations.query(relation, side)
        parameters = self.relations.values[key]
        with torch.no_grad():
            known = self.vectors[src if side == "tail" else dst][rows].float()
            return self.model.translate(self.model.project(known, parameters), parameters, translated_side)

    @property
    def projects_entities(self) -> bool:
        """Whether a relation compares its ends in a space of its own, so that its candidates are no other relation's."""
        return type(self.model).project is not Model.project

    def ends_of(self, relation: str) -> tuple[str, str]:
        """Give the node types of a relation's heads and tails.

        Raises:
            KeyError: if there is no such relation.
        """
        if relation not in self.ends:
            raise KeyError(f"unknown relation {relation!r}; this model has {sorted(self.ends)}")
        return self.ends[relation]
