"""What a graph looks like, as far as recipes depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from multifacet.inputs import expect_attributes

if TYPE_CHECKING:
    from multifacet.kge.triples.triples import TripleSet

__all__ = ["GraphStatistics"]

_MIRRORED = 0.5  # share of a relation's pairs whose reverse is a pair too, from which on it counts as symmetric, or inverse


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphStatistics:
    """Sizes and shares of a graph's training triples.

    Attributes:
        num_entities: nodes of all types.
        most_entities: nodes of the largest type: what a query has to be told from.
        num_relations: relations.
        num_triples: triples.
        symmetric: share of triples in relations that mostly hold in both directions.
        inverse: share of triples in relations that mostly are another one's reverse.
        skew: share of the triples' ends that lie in the hundredth of nodes with the most, at least one node.
    """

    num_entities: int
    most_entities: int
    num_relations: int
    num_triples: int
    symmetric: float
    inverse: float
    skew: float

    @property
    def density(self) -> float:
        """Triples for each entity."""
        return self.num_triples / max(1, self.num_entities)

    @classmethod
    def of(cls, triples: TripleSet) -> Self:
        """Count a set of triples.

        Args:
            triples: the triples to learn from.

        Example:
            >>> from multifacet.kge import TripleSet
            >>> friends = TripleSet(
            ...     heads=np.int32([0, 1]), relations=np.int32([0, 0]), tails=np.int32([1, 0]),
            ...     relation_names=("knows",), ends={"knows": ("user", "user")}, num_nodes={"user": 2},
            ... )
            >>> GraphStatistics.of(friends).symmetric
            1.0
        """
        expect_attributes("triples", triples, ("heads", "num_nodes", "relation_names"), "TripleSet")
        offsets = dict(zip(triples.num_nodes, np.cumsum([0, *triples.num_nodes.values()]).tolist(), strict=False))
        src = np.array([offsets[triples.ends[name][0]] for name in triples.relation_names], dtype=np.int64)
        dst = np.array([offsets[triples.ends[name][1]] for name in triples.relation_names], dtype=np.int64)
        heads, tails = triples.heads + src[triples.relations], triples.tails + dst[triples.relations]
        num_entities, num_relations = sum(triples.num_nodes.values()), len(triples.relation_names)
        mirrored = _count_mirrored(heads, tails, triples.relations.astype(np.int64), num_entities, num_relations)
        counts = np.bincount(triples.relations, minlength=num_relations)
        own = np.diagonal(mirrored) / np.maximum(counts, 1)
        others = np.where(np.eye(num_relations, dtype=np.bool_), 0, mirrored).max(1, initial=0) / np.maximum(counts, 1)
        degrees = np.sort(np.bincount(np.concatenate([heads, tails]), minlength=num_entities))[::-1]
        total = max(1, len(heads))
        return cls(
            num_entities=num_entities,
            most_entities=max(triples.num_nodes.values(), default=0),
            num_relations=num_relations,
            num_triples=len(heads),
            symmetric=float(counts[own > _MIRRORED].sum() / total),
            inverse=float(counts[others > _MIRRORED].sum() / total),
            skew=float(degrees[: max(1, num_entities // 100)].sum() / (2 * total)),
        )


def _count_mirrored(
    heads: np.ndarray, tails: np.ndarray, relations: np.ndarray, num_entities: int, num_relations: int
) -> np.ndarray:
    """Count the pairs of each relation whose reverse is a pair of each relation, int64 [R, R]."""
    pairs = heads * num_entities + tails
    order = np.argsort(pairs, kind="stable")
    sorted_pairs, sorted_relations = pairs[order], relations[order]
    reverse = tails * num_entities + heads
    begins, ends = np.searchsorted(sorted_pairs, reverse), np.searchsorted(sorted_pairs, reverse, side="right")
    counts = ends - begins
    sources = np.repeat(np.arange(len(pairs)), counts)
    firsts = np.cumsum(counts) - counts
    places = np.arange(len(sources)) - np.repeat(firsts, counts) + begins[sources]
    codes = relations[sources] * num_relations + sorted_relations[places]
    return np.bincount(codes, minlength=num_relations**2).reshape(num_relations, num_relations)
