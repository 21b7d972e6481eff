"""Scores of trained tables: of triples, and of queries against all entities of a type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from kge.models import Model, Side
    from kge.relations import RelationParameters

__all__ = ["LinkPredictor"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkPredictor:
    """A model with its tables and relation parameters.

    Attributes:
        model: the scoring model.
        vectors: node type -> float32 [num_nodes, D].
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
        src, dst = self._ends(relation)
        parameters = self.relations.values[relation]
        with torch.no_grad():
            return self.model.score(self.vectors[src][heads], self.vectors[dst][tails], parameters)

    def candidates(self, relation: str, side: Side) -> Tensor:
        """Project all entities that can stand on one side of a relation, float32 [num_nodes, D]."""
        src, dst = self._ends(relation)
        key, _ = self.relations.query(relation, side)
        with torch.no_grad():
            return self.model.project(self.vectors[dst if side == "tail" else src], self.relations.values[key])

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
        src, dst = self._ends(relation)
        key, translated_side = self.relations.query(relation, side)
        parameters = self.relations.values[key]
        with torch.no_grad():
            known = self.vectors[src if side == "tail" else dst][queries]
            projected = self.model.project(known, parameters)
            return self.model.score_candidates(self.model.translate(projected, parameters, translated_side), candidates)

    def _ends(self, relation: str) -> tuple[str, str]:
        if relation not in self.ends:
            raise KeyError(f"unknown relation {relation!r}; this model has {sorted(self.ends)}")
        return self.ends[relation]
