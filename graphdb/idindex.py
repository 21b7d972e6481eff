"""A growing hash index from 64-bit ids to idx, for mapping batches in memory."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from multifacet.graphdb.merging import Array

_FIRST_BITS = 12


class IdIndex:
    """Finds the idx of ids, and gives the next ones to ids that it has not seen.

    Open addressing with linear probing; a slot is a pair of int64, the id and idx + 1, so that a lookup touches one cache line.

    Args:
        ids: Known ids, int64 [N], each once.
        idx: Their idx, int32 [N].
        first: The idx of the first unknown id.
    """

    def __init__(self, ids: Array, idx: Array, first: int) -> None:
        bits = max(_FIRST_BITS, (2 * len(ids)).bit_length())
        self._slots = np.zeros(2 << bits, np.int64)
        self._taken = _put(ids, idx, self._slots)
        self.first = first
        self._new = np.empty(1 << _FIRST_BITS, np.int64)
        self._num_new = 0

    def __len__(self) -> int:
        return self._taken

    @property
    def new_ids(self) -> Array:
        """The ids that were unknown, in the order in which they came."""
        return self._new[: self._num_new]

    def add(self, ids: Array, idx: Array) -> None:
        """Writes the idx of `ids`, int64 [E], to `idx`, int32 [E]."""
        position = 0
        while position < len(ids):
            if self._num_new == len(self._new):
                self._new = np.concatenate([self._new, np.empty_like(self._new)])
            if 4 * self._taken >= len(self._slots):
                self._grow()
            # Half of the slots stay free, and every new id has its place in the list.
            room = min(len(self._slots) // 4 - self._taken, len(self._new) - self._num_new)
            position, added = _add(ids, position, self._slots, self._new, self._num_new, self.first, room, idx)
            self._num_new += added
            self._taken += added

    @property
    def num_idx(self) -> int:
        """The idx given so far: those of known ids, those of forgotten ones, and those of new ids."""
        return self.first + self._num_new

    def keep_earliest(self, idx: Array, time: Array, earliest: Array) -> None:
        """Lowers `earliest`, int64 [num_idx], to the least `time`, int64 [E], of each of `idx`, int32 [E]."""
        _keep_earliest(idx, time, earliest)

    def renumber(self, idx: Array, by: Array) -> None:
        """Gives the new ids among `idx` the idx `first + by[i]` in place of `first + i`."""
        _renumber(idx, self.first, by)

    def _grow(self) -> None:
        old = self._slots.reshape(-1, 2)
        used = old[old[:, 1] > 0]
        self._slots = np.zeros(2 * len(self._slots), np.int64)
        _put(np.ascontiguousarray(used[:, 0]), (used[:, 1] - 1).astype(np.int32), self._slots)


@numba.njit(nogil=True, cache=True, inline="always")
def _slot(identifier: int, num_slots: int) -> Any:
    # MurmurHash3's finaliser: sequential ids, and ids that differ in their high bits only, spread as well as random ones.
    mixed = np.uint64(identifier)
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return np.int64((mixed ^ (mixed >> np.uint64(33))) & np.uint64(num_slots - 1))


@numba.njit(nogil=True, cache=True)
def _put(ids: Array, idx: Array, slots: Array) -> int:
    """Enters ids; returns how many distinct ones there are."""
    num_slots = len(slots) // 2
    taken = 0
    for edge in range(len(ids)):
        slot = _slot(ids[edge], num_slots)
        while slots[2 * slot + 1] != 0 and slots[2 * slot] != ids[edge]:
            slot = (slot + 1) & (num_slots - 1)
        taken += slots[2 * slot + 1] == 0
        slots[2 * slot] = ids[edge]
        slots[2 * slot + 1] = np.int64(idx[edge]) + 1
    return taken


@numba.njit(nogil=True, cache=True)
def _add(ids: Array, start: int, slots: Array, new: Array, num_new: int, first: int, room: int, idx: Array) -> tuple[int, int]:
    """Maps ids from `start` until the room for new ones is used up; returns where it stopped, and how many it added."""
    num_slots = len(slots) // 2
    added = 0
    for edge in range(start, len(ids)):
        slot = _slot(ids[edge], num_slots)
        while slots[2 * slot + 1] != 0 and slots[2 * slot] != ids[edge]:
            slot = (slot + 1) & (num_slots - 1)
        if slots[2 * slot + 1] == 0:
            if added == room:
                return edge, added
            slots[2 * slot] = ids[edge]
            slots[2 * slot + 1] = first + num_new + added + 1
            new[num_new + added] = ids[edge]
            added += 1
        idx[edge] = slots[2 * slot + 1] - 1
    return len(ids), added


@numba.njit(nogil=True, cache=True)
def _renumber(idx: Array, first: int, by: Array) -> None:
    for edge in range(len(idx)):
        if idx[edge] >= first:
            idx[edge] = first + by[idx[edge] - first]


@numba.njit(nogil=True, cache=True)
def _keep_earliest(idx: Array, time: Array, earliest: Array) -> None:
    for edge in range(len(idx)):
        earliest[idx[edge]] = min(earliest[idx[edge]], time[edge])
