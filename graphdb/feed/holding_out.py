"""Choosing pairs for validation by their hash: the same in whatever order edges are read, in memory for the chosen ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from multifacet.graphdb.feed.edge_hash import EdgeHash

_SPARE: Final = 2  # candidates for each pair that is wanted: some have an end that nothing else joins


class HeldOut:
    """The pairs of each relation with the smallest hashes, of which those are held out whose ends are joined otherwise too.

    Args:
        num_edges: edges of each relation in the window, repeated ones included.
        wanted: pairs to hold out of all relations together.
        max_fraction: most of a relation's distinct pairs that may be held out.
        num_nodes: nodes of all types.
    """

    def __init__(self, num_edges: Sequence[int], *, wanted: int, max_fraction: float, num_nodes: int) -> None:
        num_present = max(1, sum(count > 0 for count in num_edges))
        self._max_fraction = max_fraction
        self._quotas = [min(wanted // num_present, int(count * max_fraction)) for count in num_edges]
        self._hashes = [np.empty(0, np.uint64) for _ in num_edges]
        self._ends = [np.empty((0, 2), np.int64) for _ in num_edges]
        self._joined = np.zeros(num_nodes if wanted else 0, np.bool_)
        self._candidates = np.empty(0, np.uint64)
        self._held = np.empty(0, np.uint64)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be held out."""
        return not any(self._quotas)

    def offer(self, relation: int, pairs: NDArray[np.uint64], src: NDArray[Any], dst: NDArray[Any]) -> None:
        """Take the smallest hashes of a part of a relation's edges."""
        limit, kept = _SPARE * self._quotas[relation], self._hashes[relation]
        if not limit:
            return
        smaller = np.flatnonzero(pairs <= kept[-1]) if len(kept) == limit else np.arange(len(pairs))
        hashes = np.concatenate([kept, pairs[smaller]])
        ends = np.concatenate([self._ends[relation], np.stack([src[smaller], dst[smaller]], axis=1).astype(np.int64)])
        # Of a pair that is joined in both directions the same one stands for it, whichever was read first.
        order = np.lexsort((ends[:, 1], ends[:, 0], hashes))
        hashes, ends = hashes[order], ends[order]
        first = np.ones(len(hashes), np.bool_)
        first[1:] = hashes[1:] != hashes[:-1]
        self._hashes[relation], self._ends[relation] = hashes[first][:limit], ends[first][:limit]

    def close_offers(self) -> None:
        """Say that all edges have been offered."""
        self._candidates = np.unique(np.concatenate([*self._hashes, self._held]))

    def learn_ends(
        self, hash_of: EdgeHash, relations: NDArray[Any], src: NDArray[Any], dst: NDArray[Any], pairs: NDArray[np.uint64]
    ) -> None:
        """Note which nodes have an edge that stays, whatever is chosen."""
        stays = ~_are_among(pairs, self._candidates)
        hash_of.mark(relations[stays], src[stays], dst[stays], self._joined)

    def choose(self, hash_of: EdgeHash, num_distinct: Sequence[int]) -> None:
        """Choose among the candidates.

        Args:
            hash_of: numbers the nodes.
            num_distinct: distinct pairs of each relation.
        """
        for relation, count in enumerate(num_distinct):
            ends = self._ends[relation]
            known = hash_of.are_marked(relation, ends[:, 0], ends[:, 1], self._joined)
            chosen = np.flatnonzero(known)[: min(self._quotas[relation], int(count * self._max_fraction))]
            self._hashes[relation], self._ends[relation] = self._hashes[relation][chosen], ends[chosen]
        self._held = np.unique(np.concatenate(self._hashes))

    def split(self, relations: NDArray[Any], pairs: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Say of edges whether they are learned from, and whether they are held out; those that would tell are neither."""
        joined = _are_among(pairs, self._held)
        held = np.zeros(len(pairs), np.bool_)
        for place in np.flatnonzero(joined).tolist():
            hashes = self._hashes[int(relations[place])]
            found = np.searchsorted(hashes, pairs[place])
            held[place] = found < len(hashes) and hashes[found] == pairs[place]
        return ~joined, held

    def queries(self, relation: int, *, of_one_type: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give heads and tails of a relation's held-out pairs, ascending; of one type, both ends as both."""
        ends = self._ends[relation]
        if of_one_type:
            both = np.unique(ends)
            return both, both
        return np.unique(ends[:, 0]), np.unique(ends[:, 1])


def _are_among(values: NDArray[np.uint64], ascending: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Say which values are among a few ascending ones."""
    found = np.zeros(len(values), np.bool_)
    if not len(ascending):
        return found
    small = np.flatnonzero(values <= ascending[-1])
    places = np.searchsorted(ascending, values[small])
    found[small] = ascending[places] == values[small]
    return found
