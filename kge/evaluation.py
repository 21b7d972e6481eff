"""Filtered ranking of held-out edges, against every entity of the right type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np
import torch

from tables.pairs import PairIndex

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from kge.predictor import LinkPredictor
    from kge.triples import EdgeList

__all__ = ["evaluate", "filtered_ranks", "ranking_metrics"]

# Scores held at once: 64 MiB of float32.
_BLOCK_ELEMENTS = 1 << 24


def evaluate(
    predictor: LinkPredictor,
    edges: Mapping[str, EdgeList],
    known: Mapping[str, PairIndex],
    *,
    hits: Sequence[int] = (1, 3, 10),
) -> dict[str, float]:
    """Rank each edge's head and tail among all entities of its type, known answers left out.

    Args:
        predictor: a trained model.
        edges: relation name -> edges to rank.
        known: relation name -> all known (head, tail) pairs: what is in training and what is ranked.
        hits: the k of hits@k.

    Returns:
        `filtered_mrr`, `filtered_mean_rank` and `filtered_hits@k` over both sides of all edges, and
        `filtered_mrr/<relation>` of each relation. Empty if there are no edges.
    """
    metrics: dict[str, float] = {}
    ranks_of_all = []
    for relation, edge_list in edges.items():
        if not len(edge_list):
            continue
        ranks = np.concatenate(filtered_ranks(predictor, relation, edge_list, known[relation]))
        metrics[f"filtered_mrr/{relation}"] = float(np.mean(1.0 / ranks))
        ranks_of_all.append(ranks)
    if not ranks_of_all:
        return {}
    return ranking_metrics(np.concatenate(ranks_of_all), hits) | metrics


def ranking_metrics(ranks: NDArray[np.float64], hits: Iterable[int]) -> dict[str, float]:
    """Summarise filtered ranks [n], which count from 1."""
    metrics = {"filtered_mrr": float(np.mean(1.0 / ranks)), "filtered_mean_rank": float(np.mean(ranks))}
    return metrics | {f"filtered_hits@{k}": float(np.mean(ranks <= k)) for k in hits}


def filtered_ranks(
    predictor: LinkPredictor, relation: str, edges: EdgeList, known: PairIndex
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rank the edges of one relation.

    A rank is realistic: the mean of the best and the worst place among equal scores. Queries that several edges share
    are scored once, in blocks of one matrix product; nothing is sorted.

    Args:
        predictor: a trained model.
        relation: the relation's name.
        edges: edges to rank.
        known: the relation's known (head, tail) pairs.

    Returns:
        The ranks of the heads and the ranks of the tails, float64 [E] each, from 1.

    Raises:
        ValueError: if a score is not a number.
    """
    heads_of = PairIndex(known.indices, known.left(), num_left=known.num_right, num_right=known.num_left)
    head_ranks = _side_ranks(predictor, relation, edges.tails, edges.heads, heads_of, side="head")
    tail_ranks = _side_ranks(predictor, relation, edges.heads, edges.tails, known, side="tail")
    return head_ranks, tail_ranks


def _side_ranks(
    predictor: LinkPredictor,
    relation: str,
    queries: NDArray[np.int32],
    answers: NDArray[np.int32],
    known: PairIndex,
    *,
    side: str,
) -> NDArray[np.float64]:
    distinct, query_of_edge = np.unique(queries, return_inverse=True)
    order = np.argsort(query_of_edge, kind="stable")
    bounds = np.searchsorted(query_of_edge[order], np.arange(len(distinct) + 1))
    candidates = predictor.candidates(relation, "tail" if side == "tail" else "head")
    block_rows = max(1, _BLOCK_ELEMENTS // max(1, len(candidates)))
    ranks = np.empty(len(queries), dtype=np.float64)
    for begin in range(0, len(distinct), block_rows):
        end = min(begin + block_rows, len(distinct))
        block = distinct[begin:end]
        scores = predictor.score_candidates(
            relation, torch.from_numpy(block), candidates, "tail" if side == "tail" else "head"
        ).numpy()
        if np.isnan(scores).any():
            row = int(block[int(np.argmax(np.isnan(scores).any(axis=1)))])
            raise ValueError(f"relation {relation!r}, {side} query of row {row}: a score is not a number")
        edges = order[bounds[begin] : bounds[end]]
        ranks[edges] = _ranks(scores, query_of_edge[edges] - begin, answers[edges], block, known.indptr, known.indices)
    return ranks


@numba.njit(cache=True)
def _ranks(
    scores: NDArray[np.float32],
    score_rows: NDArray[np.int64],
    answers: NDArray[np.int32],
    queries: NDArray[np.int32],
    known_indptr: NDArray[np.int64],
    known_indices: NDArray[np.int32],
) -> NDArray[np.float64]:
    ranks = np.empty(len(answers), dtype=np.float64)
    for edge in range(len(answers)):
        row = scores[score_rows[edge]]
        score = row[answers[edge]]
        greater = 0
        equal = 0
        for candidate in range(len(row)):
            greater += row[candidate] > score
            equal += row[candidate] == score
        query = queries[score_rows[edge]]
        answer_is_known = False
        for position in range(known_indptr[query], known_indptr[query + 1]):
            candidate = known_indices[position]
            greater -= row[candidate] > score
            equal -= row[candidate] == score
            answer_is_known |= candidate == answers[edge]
        if not answer_is_known:
            equal -= 1
        ranks[edge] = 1.0 + greater + 0.5 * equal
    return ranks
