"""Which shard holds an id: the one rule that publishers split tables by, and clients send ids by.

A release may be split over N lookup hosts. Each shard is a folder of its own; all of them have one version, and each says
which of how many it is. Shard ``shard_of([id], N)`` holds the rows of an id in every table that is split, and nothing else
knows the rule.

An id's shard is the row that a hashed table of N rows, of seed 0, would give it. Two things follow. It says nothing about where
an id stands in an exact table's index, which hashes it once less: every shard has about the same number of ids, evenly over
its index. And a hashed table of seed 0 splits into ranges of its rows, since an id's shard and its row are both
floor(h x size / 2**64) of one hash h: see `serving.release.sharding.hashed_shard`. By any other rule each shard's ids could
have any of its rows, as they have in a hashed table of another seed, which lies whole in every shard. The rule must never
change: it is a part of every split release.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numba
import numpy as np

from multifacet.kernels.hashing import hash_strings, mix64, reduce_range, seed_stream

if TYPE_CHECKING:
    import numpy.typing as npt

    from multifacet.serving.wire.packing import IdArray

MAX_SHARDS: Final = 1 << 15
SHARD_SEED: Final = 0
"""Seed of the hashed id maps whose tables can be split; the default of `tables.IdMap.hashed`."""
_STEP: Final = seed_stream(SHARD_SEED, 1)[0]


class Partition(NamedTuple):
    """Ids by shard.

    Attributes:
        order: int64 [n], positions of the ids, those of shard 0 first; within a shard in the order that they were given.
        starts: int64 [num_shards + 1], ``order[starts[s] : starts[s + 1]]`` are those of shard s.
    """

    order: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]


def shard_of(ids: IdArray | Sequence[int] | Sequence[str], num_shards: int) -> npt.NDArray[np.int32]:
    """The shard of each id.

    Args:
        ids: int64 or strings [n].
        num_shards: How many shards there are, 1 to `MAX_SHARDS`.

    Returns:
        int32 [n], from 0 to num_shards - 1.

    Raises:
        ValueError: Another number of shards, or ids of another shape.
        TypeError: The ids are neither int64 nor strings.

    Example:
        >>> shard_of([7, 8, 9, 7], 4).tolist()
        [2, 2, 1, 2]
    """
    return shard_of_keys(_keys(ids), num_shards)


def shard_of_keys(keys: npt.NDArray[np.int64], num_shards: int) -> npt.NDArray[np.int32]:
    """The shard of each id from its key, as a `tables.ids.column.IdColumn` has it: for publishers of many ids.

    Args:
        keys: int64 [n], the ids themselves, or XXH64 (seed 0) of each string's UTF-8 bytes.
        num_shards: How many shards there are.

    Returns:
        int32 [n].

    Raises:
        ValueError: `num_shards` is out of range.
    """
    if not 1 <= num_shards <= MAX_SHARDS:
        raise ValueError(f"num_shards is {num_shards}: expected 1 to {MAX_SHARDS}")
    shards = np.empty(len(keys), np.int32)
    _fill(keys, num_shards, shards)
    return shards


def partition(ids: IdArray, num_shards: int) -> Partition:
    """Sort ids by their shard.

    Args:
        ids: int64 or strings [n].
        num_shards: How many shards there are.

    Raises:
        ValueError: As `shard_of`.
        TypeError: As `shard_of`.

    Example:
        >>> order, starts = partition(np.array([7, 8, 9, 7]), 4)
        >>> order.tolist(), starts.tolist()
        ([2, 0, 1, 3], [0, 0, 1, 4, 4])
    """
    shards = shard_of(ids, num_shards)
    order = np.empty(len(shards), np.int64)
    starts = np.zeros(num_shards + 1, np.int64)
    _sort(shards, order, starts)
    return Partition(order, starts)


def _keys(ids: IdArray | Sequence[int] | Sequence[str]) -> npt.NDArray[np.int64]:
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1:
            raise ValueError(f"ids have shape {ids.shape}: expected [n]")
        if ids.dtype == np.int64:
            return ids.astype(np.int64, copy=False)
        values = ids.tolist()
    else:
        values = list(ids)
    if not values:
        return np.empty(0, np.int64)
    if all(isinstance(value, str) for value in values):
        encoded = [value.encode() for value in values]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        keys = np.empty(len(encoded), np.int64)
        hash_strings(offsets, np.frombuffer(b"".join(encoded), np.uint8), keys, 0, len(keys))
        return keys
    found = np.asarray(values)
    if found.dtype != np.int64:
        raise TypeError(f"ids are {found.dtype}: expected int64 or strings")
    return found


@numba.njit(nogil=True, cache=True)
def _fill(keys: Any, num_shards: int, shards: Any) -> None:
    size = np.uint64(num_shards)
    for position in range(len(keys)):
        shards[position] = np.int32(reduce_range(mix64(mix64(np.uint64(keys[position])) + _STEP), size))


@numba.njit(nogil=True, cache=True)
def _sort(shards: Any, order: Any, starts: Any) -> None:
    """A counting sort; `starts` comes filled with zeros."""
    for shard in shards:
        starts[shard + 1] += 1
    for shard in range(1, len(starts)):
        starts[shard] += starts[shard - 1]
    free = starts[:-1].copy()
    for position in range(len(shards)):
        shard = shards[position]
        order[free[shard]] = position
        free[shard] += 1
