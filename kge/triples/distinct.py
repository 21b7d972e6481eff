"""Which triples of a set are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["are_among", "are_joined", "first_positions", "first_times", "sorted_order"]


class Triples(Protocol):
    """Triples as columns: the part of a `TripleSet` that is read here."""

    @property
    def heads(self) -> NDArray[np.int32]: ...
    @property
    def relations(self) -> NDArray[np.int32]: ...
    @property
    def tails(self) -> NDArray[np.int32]: ...
    @property
    def times(self) -> NDArray[np.int64] | None: ...
    @property
    def relation_names(self) -> tuple[str, ...]: ...
    @property
    def ends(self) -> Mapping[str, tuple[str, str]]: ...
    @property
    def num_nodes(self) -> Mapping[str, int]: ...
    def __len__(self) -> int: ...
    def take(self, positions: NDArray[np.intp]) -> Self: ...


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


def first_positions(triples: Triples) -> NDArray[np.intp]:
    """Give the first position of each distinct triple, ascending."""
    order, repeats = sorted_order(triples.relations, triples.heads, triples.tails)
    return np.sort(order[~repeats])


def first_times(triples: Triples, relation: int) -> NDArray[np.int64]:
    """Give the earliest time of each distinct triple of a timed relation, in the order of `first_positions`."""
    part = triples.take(np.flatnonzero(triples.relations == relation))
    assert part.times is not None  # noqa: S101 - the caller has looked
    order, repeats = sorted_order(part.relations, part.heads, part.tails)
    starts = np.flatnonzero(~repeats)
    earliest = np.minimum.reduceat(part.times[order], starts)
    return earliest[np.argsort(order[starts], kind="stable")]


def are_among(triples: Triples, others: Triples) -> NDArray[np.bool_]:
    """Say of each triple whether it is one of the others, which are distinct."""
    both = [np.concatenate([getattr(others, name), getattr(triples, name)]) for name in ("relations", "heads", "tails")]
    order, repeats = sorted_order(*both)
    # Within equal triples the order is stable: one of the others, if any, is the first.
    leaders = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(order))))
    found = np.empty(len(order), dtype=np.bool_)
    found[order] = order[leaders] < len(others)
    return found[len(others) :]


def are_joined(triples: Triples, others: Triples) -> NDArray[np.bool_]:
    """Say of each triple whether one of the others has its two ends, by any relation and in either direction."""
    offsets, total = {}, 0
    for node_type, count in triples.num_nodes.items():
        offsets[node_type], total = total, total + count
    starts = np.array([[offsets[node_type] for node_type in triples.ends[name]] for name in triples.relation_names], np.int64)

    def keys(part: Triples) -> NDArray[np.int64]:
        ends = [column + starts[part.relations, end] for end, column in enumerate((part.heads, part.tails))]
        pairs: NDArray[np.int64] = np.minimum(*ends) * total + np.maximum(*ends)
        return pairs

    if not len(others):
        return np.zeros(len(triples), dtype=np.bool_)
    return np.isin(keys(triples), keys(others))
