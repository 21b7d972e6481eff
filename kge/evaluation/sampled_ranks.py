"""Ranks of edges among a few entities drawn for each: an estimate for where ranking all costs too much."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from multifacet.kge.evaluation.ranks import EdgeRanks, check_edges

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from multifacet.kge.evaluation.predictor import LinkPredictor
    from multifacet.kge.models.model import Side
    from multifacet.kge.triples.triples import EdgeList
    from multifacet.training import PairIndex

__all__ = ["rank_edges_among_sample"]

# Numbers of drawn vectors held at once: 64 MiB of float32.
_BLOCK_ELEMENTS = 1 << 24


def rank_edges_among_sample(
    predictor: LinkPredictor,
    edges: Mapping[str, EdgeList],
    known: Mapping[str, PairIndex],
    *,
    num_sampled: int,
    generator: np.random.Generator,
) -> dict[str, EdgeRanks]:
    """Rank each edge's head and tail among entities drawn for it, known answers left out.

    Args:
        predictor: a trained model.
        edges: relation name -> edges to rank.
        known: relation name -> all known (head, tail) pairs.
        num_sampled: entities drawn an edge and side, uniformly with repeats.
        generator: source of the draws.

    Returns:
        Relation name -> the ranks of its edges, from 1 to `num_sampled` + 1. Relations without edges are left out.

    Raises:
        ValueError: if a score is not a number, or nothing is to be drawn.
    """
    if num_sampled < 1:
        raise ValueError(f"num_sampled must be at least 1, got {num_sampled}")
    check_edges(predictor, edges, known)
    return {
        name: EdgeRanks(
            heads=_side_ranks(
                predictor, name, "head", edge_list.tails, edge_list.heads, known[name].transposed, num_sampled, generator
            ),
            tails=_side_ranks(predictor, name, "tail", edge_list.heads, edge_list.tails, known[name], num_sampled, generator),
        )
        for name, edge_list in edges.items()
        if len(edge_list)
    }


def _side_ranks(
    predictor: LinkPredictor,
    relation: str,
    side: Side,
    queries: NDArray[np.int32],
    answers: NDArray[np.int32],
    known: PairIndex,
    num_sampled: int,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    ranks = np.empty(len(queries))
    num_rows = max(1, _BLOCK_ELEMENTS // (predictor.model.dim * (num_sampled + 1)))
    for begin in range(0, len(queries), num_rows):
        part = slice(begin, begin + num_rows)
        drawn = generator.integers(0, known.num_right, size=(len(queries[part]), num_sampled))
        rows = np.concatenate([answers[part, None], drawn], axis=1)
        scores = predictor.score_each(relation, torch.from_numpy(queries[part]).long(), torch.from_numpy(rows), side).numpy()
        if np.isnan(scores).any():
            row = int(queries[part][int(np.argmax(np.isnan(scores).any(axis=1)))])
            raise ValueError(f"relation {relation!r}, {side} query of row {row}: a score is not a number")
        own, others = scores[:, :1], scores[:, 1:]
        counted = ~known.contains(np.repeat(queries[part], num_sampled), drawn.ravel()).reshape(drawn.shape)
        counted &= drawn != answers[part, None]
        ranks[part] = 1.0 + ((others > own) & counted).sum(1) + 0.5 * ((others == own) & counted).sum(1)
    return ranks
