"""How often nodes are heads and tails of a feed's pairs: what negatives that are drawn by degree need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from multifacet.graphdb.feed.layout import FeedRelation

#: Counters of one number a node, relation and end, up to which relations are counted one by one; 256 MiB.
MAX_COUNTERS: Final = 1 << 25


class Degrees:
    """Counts the pairs of each node, by relation and end.

    Where that is too many counters, the relations between two node types are counted together.

    Args:
        relations: whose pairs are counted.
        num_nodes: node type -> nodes.
        max_counters: numbers of counters up to which relations are counted one by one.
    """

    def __init__(
        self, relations: Sequence[FeedRelation], num_nodes: Mapping[str, int], *, max_counters: int = MAX_COUNTERS
    ) -> None:
        total = sum(num_nodes[part.src] + num_nodes[part.dst] for part in relations)
        self.by_relation = total <= max_counters
        groups = group_relations(relations, by_relation=self.by_relation)
        self._group_of = np.array(groups, np.int64)
        self._counts: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for group in range(max(groups) + 1):
            part = relations[groups.index(group)]
            self._counts.append((np.zeros(num_nodes[part.src], np.int64), np.zeros(num_nodes[part.dst], np.int64)))

    def add(self, relations: NDArray[Any], src: NDArray[Any], dst: NDArray[Any]) -> None:
        """Count pairs."""
        groups = self._group_of[relations]
        for group in np.flatnonzero(np.bincount(groups, minlength=len(self._counts))).tolist():
            chosen = groups == group
            heads, tails = self._counts[group]
            _count(src[chosen], heads)
            _count(dst[chosen], tails)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Give the rows that have pairs and how many, by the names `<group>/<head or tail>/<rows or counts>`."""
        arrays: dict[str, NDArray[Any]] = {}
        for group, ends in enumerate(self._counts):
            for end, counts in zip(("head", "tail"), ends, strict=True):
                rows = np.flatnonzero(counts)
                narrow = np.int32 if len(counts) <= np.iinfo(np.int32).max else np.int64
                arrays[f"{group}/{end}/rows"] = rows.astype(narrow)
                arrays[f"{group}/{end}/counts"] = counts[rows]
        return arrays


def group_relations(relations: Sequence[FeedRelation], *, by_relation: bool) -> list[int]:
    """Give the number of the group in which each relation is counted: its own, or that of its pair of node types."""
    if by_relation:
        return list(range(len(relations)))
    pairs = list(dict.fromkeys((part.src, part.dst) for part in relations))
    return [pairs.index((part.src, part.dst)) for part in relations]


@numba.njit(nogil=True, cache=True)
def _count(rows: Any, counts: Any) -> None:
    for row in rows:
        counts[row] += 1
