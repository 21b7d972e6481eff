"""The links that a relation holds, to tell drawn negatives from true neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.graphdb.sampling.adjacency import Adjacency


class KnownLinks:
    """The distinct (src, dst) of a relation's edges, and when each was first seen.

    Args:
        adjacency: The relation.
    """

    def __init__(self, adjacency: Adjacency) -> None:
        self._num_dst = len(adjacency.colptr) - 1
        dst = np.repeat(np.arange(self._num_dst), adjacency.degrees)
        keys = self._keys(adjacency.row, dst)
        # Edges of a column are in time's order, which a stable sort keeps: the first of equal keys is the earliest.
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        is_first = np.ones(len(keys), np.bool_)
        is_first[1:] = keys[1:] != keys[:-1]
        self._known = keys[is_first]
        self._since = None if adjacency.time is None else adjacency.time[order][is_first]

    def __len__(self) -> int:
        return len(self._known)

    def holds(
        self, src: NDArray[np.int64], dst: NDArray[np.int64], times: NDArray[np.int64] | None = None
    ) -> NDArray[np.bool_]:
        """Whether each pair is linked, bool [n]; where times are given, whether it was at its time.

        Args:
            src: [n].
            dst: [n].
            times: int64 [n], or None for the whole window.
        """
        keys = self._keys(src, dst)
        if not len(self._known):
            return np.zeros(len(keys), np.bool_)
        place = np.minimum(np.searchsorted(self._known, keys), len(self._known) - 1)
        found: NDArray[np.bool_] = self._known[place] == keys
        if times is not None and self._since is not None:
            found &= self._since[place] <= times
        return found

    def _keys(self, src: NDArray[np.int32] | NDArray[np.int64], dst: NDArray[np.int64]) -> NDArray[np.int64]:
        return src.astype(np.int64) * self._num_dst + dst
