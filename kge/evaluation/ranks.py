"""Ranks of edges among all entities that could stand in their place, in bounded memory and without sorting."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch

from multifacet.inputs import expect_attributes
from multifacet.kge.models.model import Side, near_origin
from multifacet.training import Lanes, PairIndex

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from multifacet.kge.evaluation.predictor import LinkPredictor
    from multifacet.kge.triples.triples import EdgeList, TripleSet

__all__ = ["EdgeRanks", "SeenEnds", "rank_edges"]

# Scores that a lane holds at once: 16 MiB of float32, in the cache from their product to their count. Where a row alone is
# larger, a lane takes as many as keep the product efficient, up to 128 MiB.
_BLOCK_ELEMENTS = 1 << 22
_LARGE_BLOCK_ELEMENTS = 1 << 25
_EFFICIENT_ROWS = 32
# Of a squared distance: what a product may be off before it is computed again in double precision.
_MAX_RELATIVE_ERROR = 1e-4

_SIDES: tuple[Side, Side] = ("head", "tail")


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeRanks:
    """Ranks of one relation's edges, from 1; half ranks are ties.

    Attributes:
        heads: rank of each edge's head, float64 [E].
        tails: rank of each edge's tail, float64 [E].
    """

    heads: NDArray[np.float64]
    tails: NDArray[np.float64]

    def both(self) -> NDArray[np.float64]:
        """Give the heads' ranks and then the tails', float64 [2 E]."""
        return np.concatenate([self.heads, self.tails])


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenEnds:
    """The entities that stand at the two ends of one relation: the candidates of a type-constrained ranking.

    Attributes:
        heads: int32, ascending.
        tails: int32, ascending.
    """

    heads: NDArray[np.int32]
    tails: NDArray[np.int32]

    @classmethod
    def of(cls, triples: TripleSet) -> dict[str, SeenEnds]:
        """Collect the ends of each relation of some triples: training's, for a fair ranking."""
        return {
            name: cls(heads=np.unique(edges.heads), tails=np.unique(edges.tails)) for name, edges in triples.edges().items()
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Queries:
    """Distinct queries of one relation and side, and the edges that ask them, in the queries' order.

    Attributes:
        relation: the relation.
        side: the side that is asked for.
        rows: each query's known end, int64 [Q].
        bounds: the edges of query q are `edges[bounds[q]:bounds[q + 1]]`, int64 [Q + 1].
        edges: position of each edge in the relation's list, int64 [E].
        answers: the right end of each of `edges`, int32 [E].
        known: the known answers of every possible query.
    """

    relation: str
    side: Side
    rows: NDArray[np.int64]
    bounds: NDArray[np.int64]
    edges: NDArray[np.int64]
    answers: NDArray[np.int32]
    known: PairIndex


def rank_edges(
    predictor: LinkPredictor,
    edges: Mapping[str, EdgeList],
    known: Mapping[str, PairIndex],
    *,
    constraint: Mapping[str, SeenEnds] | None = None,
) -> dict[str, EdgeRanks]:
    """Rank each edge's head and tail among all entities of its type, other known answers left out.

    A rank is realistic: the mean of the best and the worst place among equal scores. Queries that several edges share are
    scored once, those of all relations together unless the model projects entities by relation; a block of scores is one
    matrix product, then one pass that counts, whose known answers are taken back one by one. Memory is the tables, one
    projected table where the model projects, and two blocks of at most 128 MiB (one score row each beyond 32M entities).

    Args:
        predictor: a trained model.
        edges: relation name -> edges to rank.
        known: relation name -> all known (head, tail) pairs: what is in training and what is ranked.
        constraint: relation name -> the only candidates, besides an edge's own ends; None for all of the type.

    Returns:
        Relation name -> the ranks of its edges. Relations without edges are left out.

    Raises:
        ValueError: if a score is not a number.
        KeyError: if there is no such relation.
    """
    check_edges(predictor, edges, known)
    ranks = {
        name: EdgeRanks(heads=np.empty(len(edge_list)), tails=np.empty(len(edge_list)))
        for name, edge_list in edges.items()
        if len(edge_list)
    }
    pools: dict[tuple[str, ...], list[_Queries]] = defaultdict(list)
    for name in ranks:
        for side in _SIDES:
            queries = _distinct_queries(name, side, edges[name], known[name])
            src, dst = predictor.ends_of(name)
            asked_type = dst if side == "tail" else src
            pools[(asked_type, name, side) if predictor.projects_entities else (asked_type,)].append(queries)
    with Lanes() as lanes:
        for pool in pools.values():
            candidates = predictor.candidates(pool[0].relation, pool[0].side)
            scorer = _Scorer(predictor, candidates)
            blocks = iter(list(_blocks(pool, scorer.num_rows)))

            def run_lane(scorer: _Scorer = scorer, blocks: Iterator[list[_Queries]] = blocks) -> None:
                buffer = scorer.buffer()
                for block in blocks:
                    _rank_block(scorer, block, buffer, ranks, constraint)

            lanes.run(run_lane, run_lane)
    return ranks


def check_edges(predictor: LinkPredictor, edges: Mapping[str, EdgeList], known: Mapping[str, PairIndex]) -> None:
    """Refuse edges that a predictor cannot rank.

    Raises:
        TypeError: if it is no predictor.
        KeyError: if a relation is not the predictor's, or nothing is known of it.
        ValueError: if heads and tails are not as many, or one lies outside its table.
    """
    expect_attributes(
        "predictor", predictor, ("ends_of", "score_candidates"), "LinkPredictor, such as result.predictor() gives"
    )
    for name, edge_list in edges.items():
        ends = predictor.ends_of(name)
        if len(edge_list) and name not in known:
            raise KeyError(f"nothing is known of relation {name!r}; known are {sorted(known)}: index what is ranked too")
        if edge_list.heads.shape != edge_list.tails.shape:
            raise ValueError(
                f"relation {name!r}: heads and tails are {list(edge_list.heads.shape)} and "
                f"{list(edge_list.tails.shape)}; expected as "
                "many"
            )
        for end, column, node_type in (("head", edge_list.heads, ends[0]), ("tail", edge_list.tails, ends[1])):
            num_rows = len(predictor.vectors[node_type])
            if len(column) and not 0 <= int(column.min()) <= int(column.max()) < num_rows:
                raise ValueError(f"relation {name!r}: a {end} lies outside the {num_rows} rows of {node_type!r}")


def _distinct_queries(relation: str, side: Side, edges: EdgeList, known: PairIndex) -> _Queries:
    queries, answers = (edges.heads, edges.tails) if side == "tail" else (edges.tails, edges.heads)
    rows, query_of_edge = np.unique(queries, return_inverse=True)
    order = np.argsort(query_of_edge, kind="stable")
    return _Queries(
        relation=relation,
        side=side,
        rows=rows.astype(np.int64),
        bounds=np.searchsorted(query_of_edge[order], np.arange(len(rows) + 1)),
        edges=order,
        answers=answers[order],
        known=known if side == "tail" else known.transposed,
    )


def _blocks(pool: list[_Queries], num_rows: int) -> Iterator[list[_Queries]]:
    """Cut a pool into parts of at most `num_rows` queries."""
    block: list[_Queries] = []
    free = num_rows
    for queries in pool:
        begin = 0
        while begin < len(queries.rows):
            end = min(begin + free, len(queries.rows))
            edges = slice(queries.bounds[begin], queries.bounds[end])
            block.append(
                _Queries(
                    relation=queries.relation,
                    side=queries.side,
                    rows=queries.rows[begin:end],
                    bounds=queries.bounds[begin : end + 1] - queries.bounds[begin],
                    edges=queries.edges[edges],
                    answers=queries.answers[edges],
                    known=queries.known,
                )
            )
            free -= end - begin
            begin = end
            if not free:
                yield block
                block, free = [], num_rows
    if block:
        yield block


class _Scorer:
    """Scores blocks of queries against one table of candidates, up to a constant of the query.

    Squared distances come of a matrix product, 2 q.c - |c|^2, which keeps few digits where |c| is large against the distances
    that are compared. So rows are measured from near the candidates' mean; a query whose answer leaves too few digits even so,
    as between clusters that are far apart, is scored again in double precision.
    """

    def __init__(self, predictor: LinkPredictor, candidates: Tensor) -> None:
        self._predictor = predictor
        num_candidates = max(1, len(candidates))
        efficient = min(_EFFICIENT_ROWS, _LARGE_BLOCK_ELEMENTS // num_candidates)
        self.num_rows = max(1, efficient, _BLOCK_ELEMENTS // num_candidates)
        # -|q - c|^2 ranks as 2 q.c - |c|^2, and its root alike; sums of absolute differences are no product.
        self._is_product = not predictor.model.is_distance or predictor.model.distance != "l1"
        self._candidates, self._origin = candidates, candidates.new_zeros(candidates.shape[1])
        self._squares: Tensor | None = None
        self._doubles: tuple[Tensor, Tensor] | None = None
        if predictor.model.is_distance and self._is_product:
            self._origin = near_origin(candidates)
            self._candidates = candidates - self._origin
            self._squares = self._candidates.square().sum(-1)

    def buffer(self) -> Tensor:
        return self._candidates.new_empty(self.num_rows, len(self._candidates))

    def __call__(self, block: list[_Queries], buffer: Tensor) -> NDArray[np.float32]:
        vectors = torch.cat([self._predictor.queries(part.relation, torch.from_numpy(part.rows), part.side) for part in block])
        out = buffer[: len(vectors)]
        if not self._is_product:
            out.copy_(self._predictor.model.score_candidates(vectors, self._candidates))
        elif self._squares is None:
            torch.mm(vectors, self._candidates.t(), out=out)
        else:
            vectors -= self._origin
            torch.addmm(-self._squares, vectors, self._candidates.t(), alpha=2.0, out=out)
            lost = self._lost_digits(block, vectors, self._squares)
            if len(lost):
                out[lost] = self._score_in_double(vectors[lost])
        scores: NDArray[np.float32] = out.numpy()
        return scores

    def _lost_digits(self, block: list[_Queries], vectors: Tensor, squares: Tensor) -> Tensor:
        """Find the queries whose product's rounding tells against the squared distance to their first answer."""
        answers = torch.from_numpy(np.concatenate([part.answers[part.bounds[:-1]] for part in block]).astype(np.int64))
        rounding = torch.finfo(vectors.dtype).eps * (squares[answers] + vectors.square().sum(-1))
        apart = (vectors - self._candidates[answers]).square().sum(-1)
        # A distance of zero is no unit to measure by: such an answer is the nearest one, whatever the digits.
        return torch.nonzero((rounding > _MAX_RELATIVE_ERROR * apart) & (apart > 0)).flatten()

    def _score_in_double(self, vectors: Tensor) -> Tensor:
        """Give minus the whole squared distances [n, N], whose rounding to single precision is of their own size."""
        if self._doubles is None:
            candidates = self._candidates.double()
            self._doubles = candidates, candidates.square().sum(-1)
        candidates, squares = self._doubles
        queries = vectors.double()
        scores = torch.addmm(-squares, queries, candidates.t(), alpha=2.0).sub_(queries.square().sum(-1, keepdim=True))
        return scores.clamp_(max=0.0).float()


def _rank_block(
    scorer: _Scorer,
    block: list[_Queries],
    buffer: Tensor,
    ranks: Mapping[str, EdgeRanks],
    constraint: Mapping[str, SeenEnds] | None,
) -> None:
    scores = scorer(block, buffer)
    begin = 0
    for part in block:
        of_relation = ranks[part.relation]
        out = of_relation.tails if part.side == "tail" else of_relation.heads
        seen = None
        if constraint is not None:
            if part.relation not in constraint:
                raise KeyError(f"seen has no ends of {part.relation!r}; give SeenEnds.of(the training triples)")
            ends = constraint[part.relation]
            seen = ends.tails if part.side == "tail" else ends.heads
        bad = _count(
            scores[begin : begin + len(part.rows)],
            part.rows,
            part.bounds,
            part.edges,
            part.answers,
            part.known.indptr,
            part.known.indices,
            seen,
            out,
        )
        if bad >= 0:
            raise ValueError(f"relation {part.relation!r}, {part.side} query of row {part.rows[bad]}: a score is not a number")
        begin += len(part.rows)


@numba.njit(nogil=True, cache=True)
def _count(
    scores: Any,
    rows: Any,
    bounds: Any,
    edges: Any,
    answers: Any,
    known_indptr: Any,
    known_indices: Any,
    seen: Any,
    ranks: Any,
) -> int:
    """Write the ranks of the edges of some queries; give the first query with a score that is no number, or -1."""
    for query in range(len(rows)):
        row = scores[query]
        known = known_indices[known_indptr[rows[query]] : known_indptr[rows[query] + 1]]
        for edge in range(bounds[query], bounds[query + 1]):
            answer = answers[edge]
            score = row[answer]
            greater, greater_or_equal, less = np.int32(0), np.int32(0), np.int32(0)
            if seen is None:
                for candidate in range(len(row)):
                    greater += np.int32(row[candidate] > score)
                    greater_or_equal += np.int32(row[candidate] >= score)
                    less += np.int32(row[candidate] < score)
                num_counted = len(row)
                counts_itself = True
            else:
                for place in range(len(seen)):
                    greater += np.int32(row[seen[place]] > score)
                    greater_or_equal += np.int32(row[seen[place]] >= score)
                    less += np.int32(row[seen[place]] < score)
                num_counted = len(seen)
                counts_itself = _holds(seen, answer)
            if greater_or_equal + less != num_counted or np.isnan(score):
                return query
            equal = greater_or_equal - greater
            for place in range(len(known)):
                candidate = known[place]
                if candidate != answer and (seen is None or _holds(seen, candidate)):
                    greater -= row[candidate] > score
                    equal -= row[candidate] == score
            if counts_itself:
                equal -= 1
            ranks[edges[edge]] = 1.0 + greater + 0.5 * equal
    return -1


@numba.njit(nogil=True, cache=True)
def _holds(ascending: Any, value: Any) -> bool:
    place = np.searchsorted(ascending, value)
    return bool(place < len(ascending) and ascending[place] == value)
