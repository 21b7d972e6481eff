"""Where an edge stands in a feed: hashes of its ends, its relation and the seed, by arithmetic that is defined here.

A pair of nodes has one hash, whatever joins them and in whichever direction: what is held out by it leaves no other edge
between its ends behind. An edge's hash follows from its pair's, its relation and its direction. Changing a line here needs
another `layout.FORMAT_VERSION`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from multifacet.kernels.counter_rng import derive_key, key_at
from multifacet.kernels.hashing import reduce_range

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from multifacet.graphdb.feed.layout import FeedRelation


class EdgeHash:
    """Hashes edges.

    Args:
        relations: by whose numbers the edges name them.
        first_rows: node type -> its first number among all types' nodes.
        seed: of the order.
    """

    def __init__(self, relations: Sequence[FeedRelation], first_rows: Mapping[str, int], seed: int) -> None:
        self._key = derive_key(seed, "feed")
        self._offsets = np.array([[first_rows[part.src], first_rows[part.dst]] for part in relations], np.int64)

    def __call__(
        self, relations: NDArray[Any], src: NDArray[Any], dst: NDArray[Any]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Give the hashes of the pairs and of the edges, uint64 [n] each."""
        pairs, edges = np.empty((2, len(src)), np.uint64)
        _hash_edges(relations, src, dst, self._offsets, self._key, pairs, edges)
        return pairs, edges

    def mark(self, relations: NDArray[Any], src: NDArray[Any], dst: NDArray[Any], marks: NDArray[np.bool_]) -> None:
        """Mark the ends of edges among the nodes of all types."""
        _mark(relations, src, dst, self._offsets, marks)

    def are_marked(self, relation: int, src: NDArray[Any], dst: NDArray[Any], marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Say of edges of one relation whether both of their ends are marked."""
        first, second = self._offsets[relation]
        both: NDArray[np.bool_] = marks[src + first] & marks[dst + second]
        return both


@numba.njit(nogil=True, cache=True)
def group_by_shard(hashes: Any, num_shards: int) -> tuple[Any, Any]:
    """Give the stable order of edges by shard, int64 [n], and where each shard's begin in it, int64 [S + 1].

    Shards are even ranges of the hash, so that all shards one after the other are in its order.
    """
    shards = np.empty(len(hashes), np.int64)
    bounds = np.zeros(num_shards + 1, np.int64)
    for place in range(len(hashes)):
        shards[place] = np.int64(reduce_range(hashes[place], np.uint64(num_shards)))
        bounds[shards[place] + 1] += 1
    for shard in range(num_shards):
        bounds[shard + 1] += bounds[shard]
    order, nexts = np.empty(len(hashes), np.int64), bounds.copy()
    for place in range(len(hashes)):
        order[nexts[shards[place]]] = place
        nexts[shards[place]] += 1
    return order, bounds


@numba.njit(nogil=True, cache=True)
def _hash_edges(relations: Any, src: Any, dst: Any, offsets: Any, key: Any, pairs: Any, edges: Any) -> None:
    for place in range(len(src)):
        relation = np.int64(relations[place])
        head, tail = np.int64(src[place]) + offsets[relation, 0], np.int64(dst[place]) + offsets[relation, 1]
        pair = key_at(key_at(key, min(head, tail)), max(head, tail))
        pairs[place] = pair
        edges[place] = key_at(pair, 2 * relation + int(head > tail))  # type: ignore[arg-type]


@numba.njit(nogil=True, cache=True)
def _mark(relations: Any, src: Any, dst: Any, offsets: Any, marks: Any) -> None:
    for place in range(len(src)):
        relation = np.int64(relations[place])
        marks[np.int64(src[place]) + offsets[relation, 0]] = True
        marks[np.int64(dst[place]) + offsets[relation, 1]] = True
