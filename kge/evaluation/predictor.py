"""Scores of trained tables: of triples, and of queries against all entities of a type."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from multifacet.inputs import whole
from multifacet.kernels.similarity import Similarity
from multifacet.kge.config import KgeConfig
from multifacet.kge.models.model import Model
from multifacet.kge.models.registry import build_model
from multifacet.kge.models.relations import RelationParameters, relation_names
from multifacet.tables import Similarity as SimilarityName
from multifacet.tables import Snapshot
from multifacet.tables.ids import find_row

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa
    from torch import Tensor

    from multifacet.kge.models.model import Side
    from multifacet.kge.triples.triples import TripleSet

__all__ = ["LinkPredictor", "Prediction"]

_SIMILARITIES: Final[dict[Similarity, SimilarityName]] = {
    Similarity.DOT: "dot",
    Similarity.SQUARED_EUCLIDEAN: "squared",
    Similarity.EUCLIDEAN: "l2",
    Similarity.MANHATTAN: "l1",
    Similarity.MODULI: "moduli",
}


class Prediction(NamedTuple):
    """One end that may belong to a query.

    Attributes:
        id: its external id.
        score: larger is likelier; comparable within one query.
    """

    id: Any
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkPredictor:
    """A model with its tables and relation parameters.

    Attributes:
        model: the scoring model.
        vectors: node type -> [num_nodes, D]; what is in half precision is scored as float32.
        relations: parameters of the relations.
        ends: relation name -> (node type of the heads, node type of the tails).
        ids: node type -> external id of each row, where known: what predictions by id need.
        trained: node type -> which rows a gradient has reached, bool [num_nodes]; a type that is missing has all of them.

    Example:
        >>> LinkPredictor.from_snapshot("kge").top_tails("user 7", "buys", k=10)  # doctest: +SKIP
        [Prediction(id='pin 3', score=2.1), ...]
    """

    model: Model
    vectors: Mapping[str, Tensor]
    relations: RelationParameters
    ends: Mapping[str, tuple[str, str]]
    ids: Mapping[str, pa.Array] = field(default_factory=dict)
    trained: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_snapshot(
        cls, snapshot: Snapshot | str | Path, *, ends: Mapping[str, tuple[str, str]] | None = None
    ) -> LinkPredictor:
        """Open the model of a snapshot; its tables stay in their files until they are read.

        Args:
            snapshot: of facet "kge", or its folder.
            ends: relation name -> (node type of its heads, of its tails), for a snapshot that is too old to say so.

        Raises:
            ValueError: if it is no snapshot of a knowledge graph embedding, or does not say what its relations join.
            ArtifactError: if there is no snapshot, or it is damaged.
        """
        opened = snapshot if isinstance(snapshot, Snapshot) else Snapshot.load(snapshot)
        tensors = opened.parameters()
        if opened.facet != "kge" or not tensors:
            raise ValueError(f"{opened.path} is of facet {opened.facet!r}; a link predictor's is 'kge', with its relations")
        config = KgeConfig.model_validate(dict(opened.config))
        found = ends if ends is not None else opened.window.get("ends")
        if found is None and len(opened.node_types) == 1:
            found = dict.fromkeys(relation_names(tensors, reciprocal=config.reciprocal), opened.node_types * 2)
        if found is None:
            raise ValueError(
                f"{opened.path} does not say which types its relations join: give ends={{relation: (heads, tails)}}"
            )
        model = build_model(config)
        relations = RelationParameters(
            model, tuple(found), reciprocal=config.reciprocal, generator=torch.Generator().manual_seed(0)
        )
        relations.copy_from(tensors)
        trained = {name: opened.trained(name) for name in opened.node_types}
        return cls(
            model=model,
            vectors={name: opened.vectors(name) for name in opened.node_types},
            relations=relations,
            ends={name: (pair[0], pair[1]) for name, pair in found.items()},
            ids={name: opened.ids(name) for name in opened.node_types},
            trained={name: rows for name, rows in trained.items() if rows is not None},
        )

    def top_tails(self, head: Any, relation: str, *, k: int = 10, known: TripleSet | None = None) -> list[Prediction]:
        """Give the likeliest tails of a head, by their ids.

        Args:
            head: external id.
            relation: the relation's name.
            k: predictions to give; fewer if there are not so many.
            known: triples whose tails are left out, such as those trained on; their ids may be in another order.

        Returns:
            The predictions, the likeliest first. Rows that no gradient has reached are none.

        Raises:
            KeyError: if there is no such relation, or no such head.
            ValueError: if this predictor has no ids, or k is below 1.
        """
        return self._top(head, relation, "tail", k, known)

    def top_heads(self, tail: Any, relation: str, *, k: int = 10, known: TripleSet | None = None) -> list[Prediction]:
        """Give the likeliest heads of a tail; see `top_tails`."""
        return self._top(tail, relation, "head", k, known)

    def _top(self, given: Any, relation: str, side: Side, k: int, known: TripleSet | None) -> list[Prediction]:
        src, dst = self.ends_of(relation)
        given_type, asked_type = (src, dst) if side == "tail" else (dst, src)
        for node_type in (given_type, asked_type):
            if node_type not in self.ids:
                raise ValueError(f"this predictor has no ids of {node_type!r}: open it by LinkPredictor.from_snapshot")
        whole()("k", k)
        if k < 1:
            raise ValueError(f"k is {k}; expected at least 1")
        row = find_row(self.ids[given_type], given, given_type)
        # By each candidate's own difference, which keeps its digits wherever the table lies.
        candidates = self.candidates(relation, side)
        scores = self.model.score_candidates(self.queries(relation, torch.tensor([row]), side), candidates)[0]
        if asked_type in self.trained:
            scores = scores.masked_fill(~self.trained[asked_type], -torch.inf)
        for taken in _known_ids(known, relation, side, given):
            place = find_row(self.ids[asked_type], taken, asked_type, missing=-1)
            if place >= 0:
                scores[place] = -torch.inf
        best = scores.topk(min(k, len(scores)))
        return [
            Prediction(self.ids[asked_type][place].as_py(), score)
            for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            if score > -torch.inf
        ]

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
    def similarity(self) -> SimilarityName:
        """What translated queries and candidates are compared by, as `find_neighbors` and `VectorIndex` name it."""
        return _SIMILARITIES[self.model.similarity]

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


def _known_ids(known: TripleSet | None, relation: str, side: Side, given: Any) -> list[Any]:
    """Give the ids that some triples know for a query."""
    if known is None or relation not in known.relation_names:
        return []
    src, dst = known.ends[relation]
    edges = known.edges()[relation]
    own, others, own_type, other_type = (
        (edges.heads, edges.tails, src, dst) if side == "tail" else (edges.tails, edges.heads, dst, src)
    )
    if own_type not in known.ids or other_type not in known.ids:
        raise ValueError(f"the known triples have no ids: {known}; read them with ids, as kge.read_triples does")
    row = find_row(known.ids[own_type], given, own_type, missing=-1)
    return [known.ids[other_type][int(place)].as_py() for place in others[own == row]]
