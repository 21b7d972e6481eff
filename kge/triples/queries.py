"""The distinct queries of triples, (head, relation, ?) and (?, relation, tail), with all answers of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.kge.models.model import Side
    from multifacet.kge.triples.triples import TripleSet

__all__ = ["QueryGroup", "group_queries"]


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryGroup:
    """Queries that are scored alike: they know, and ask for, the same node types, by the same side of the model.

    Attributes:
        known_type: node type of the ends that are given.
        asked_type: node type of the ends that are asked for.
        side: the side that the model translates to.
        keys: each query's row among the relation parameters, int64 [Q].
        known: each query's known end, int64 [Q].
        relations: each query's relation, int32 [Q].
        indptr: int64 [Q + 1].
        answers: the answers of query q are `answers[indptr[q]:indptr[q + 1]]`, ascending, int32 [A].
    """

    known_type: str
    asked_type: str
    side: Side
    keys: NDArray[np.int64]
    known: NDArray[np.int64]
    relations: NDArray[np.int32]
    indptr: NDArray[np.int64]
    answers: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.keys)


def group_queries(triples: TripleSet, *, reciprocal: bool, by_relation: bool) -> list[QueryGroup]:
    """Group the queries of triples, both sides.

    Args:
        triples: the triples; repeated ones count once.
        reciprocal: whether head queries have relation parameters of their own: those of relation r lie at row
            num_relations + r, and a head query is a tail query of them.
        by_relation: whether queries of different relations are kept apart.

    Returns:
        The groups in a fixed order; each query is in one of them, once.
    """
    members: dict[tuple[str, str, Side, int], list[int]] = {}
    num_relations = len(triples.relation_names)
    for number, name in enumerate(triples.relation_names):
        src, dst = triples.ends[name]
        inverse_key, inverse_side = (num_relations + number, "tail") if reciprocal else (number, "head")
        members.setdefault((src, dst, "tail", number if by_relation else -1), []).append(number)
        inverse: tuple[str, str, Side, int] = (dst, src, inverse_side, inverse_key if by_relation else -1)  # type: ignore[assignment]
        members.setdefault(inverse, []).append(num_relations + number)
    # A directed relation is r for its tail queries and num_relations + r for its head queries.
    directed = np.concatenate([triples.relations, triples.relations + num_relations])
    known = np.concatenate([triples.heads, triples.tails])
    answers = np.concatenate([triples.tails, triples.heads])
    order = np.lexsort((answers, known, directed))
    directed, known, answers = directed[order], known[order], answers[order]
    bounds = np.searchsorted(directed, np.arange(2 * num_relations + 1))
    groups = []
    for (known_type, asked_type, side, _), numbers in members.items():
        places = np.concatenate([np.arange(bounds[number], bounds[number + 1]) for number in numbers])
        if not len(places):
            continue
        columns = directed[places], known[places], answers[places]
        is_new_query = np.ones(len(places), dtype=np.bool_)
        is_new_query[1:] = (columns[0][1:] != columns[0][:-1]) | (columns[1][1:] != columns[1][:-1])
        is_new = is_new_query.copy()
        is_new[1:] |= columns[2][1:] != columns[2][:-1]
        columns = tuple(column[is_new] for column in columns)
        begins = np.flatnonzero(is_new_query[is_new])
        relations = columns[0][begins]
        groups.append(
            QueryGroup(
                known_type=known_type,
                asked_type=asked_type,
                side=side,
                keys=(relations if reciprocal else relations % num_relations).astype(np.int64),
                known=columns[1][begins].astype(np.int64),
                relations=relations % np.int32(num_relations),
                indptr=np.append(begins, len(columns[2])).astype(np.int64),
                answers=columns[2],
            )
        )
    return groups
