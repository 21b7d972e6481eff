"""Which triples of a set are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.kge.triples import TripleSet

__all__ = ["are_among", "are_joined", "first_positions", "first_times", "sorted_order"]


def sorted_order(
    relations: NDArray[np.int32], heads: NDArray[np.int32], tails: NDArray[np.int32]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Give the stable order by (relation, head, tail), and for each place whether its triple is the same as before it."""
    order = np.lexsort((tails, heads, relations))
    repeats = np.zeros(len(order), dtype=np.bool_)
    repeats[1:] = True
    for column in (relations, heads, tails):
        ordered = column[order]
        repeats[1:] &= ordered[1:] == ordered[:-1]
    return order, repeats


def first_positions(triples: TripleSet) -> NDArray[np.intp]:
    """Give the first position of each distinct triple, ascending."""
    order, repeats = sorted_order(triples.relations, triples.heads, triples.tails)
    return np.sort(order[~repeats])


def first_times(triples: TripleSet, relation: int) -> NDArray[np.int64]:
    """Give the earliest time of each distinct triple of a timed relation, in the order of `first_positions`."""
    part = triples.take(np.flatnonzero(triples.relations == relation))
    assert part.times is not None  # noqa: S101 - the caller has looked
    order, repeats = sorted_order(part.relations, part.heads, part.tails)
    starts = np.flatnonzero(~repeats)
    earliest = np.minimum.reduceat(part.times[order], starts)
    return earliest[np.argsort(order[starts], kind="stable")]


def are_among(triples: TripleSet, others: TripleSet) -> NDArray[np.bool_]:
    """Say of each triple whether it is one of the others, which are distinct."""
    both = [np.concatenate([getattr(others, name), getattr(triples, name)]) for name in ("relations", "heads", "tails")]
    order, repeats = sorted_order(*both)
    # Within equal triples the order is stable: one of the others, if any, is the first.
    leaders = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(order))))
    found = np.empty(len(order), dtype=np.bool_)
    found[order] = order[leaders] < len(others)
    return found[len(others) :]


def are_joined(triples: TripleSet, others: TripleSet) -> NDArray[np.bool_]:
    """Say of each triple whether one of the others has its two ends, by any relation and in either direction."""
    offsets, total = {}, 0
    for node_type, count in triples.num_nodes.items():
        offsets[node_type], total = total, total + count
    starts = np.array([[offsets[node_type] for node_type in triples.ends[name]] for name in triples.relation_names], np.int64)

    def keys(part: TripleSet) -> NDArray[np.int64]:
        ends = [column + starts[part.relations, end] for end, column in enumerate((part.heads, part.tails))]
        pairs: NDArray[np.int64] = np.minimum(*ends) * total + np.maximum(*ends)
        return pairs

    if not len(others):
        return np.zeros(len(triples), dtype=np.bool_)
    return np.isin(keys(triples), keys(others))
