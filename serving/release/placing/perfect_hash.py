"""A minimal perfect hash: n ids to the numbers 0 to n - 1, each once, by four bits an id that mostly stay in the cache.

Ids are dealt to buckets of four on average. Each bucket has a pilot, a number from 0 to 65535 that was searched for: the ids of
all buckets fall on places of their own::

    h      = mix(id + seed * GOLDEN)
    bucket = floor(h * buckets / 2**64)
    x      = h ^ (pilots[bucket] * GOLDEN)
    place  = floor((x ^ (x >> 32)) * MIX * places / 2**64), the product with MIX modulo 2**64

There are 1/32 more places than ids, or the last ids would be searched for too long. An id on one of the places from n on has
the number ``moved[place - n]``, one of those that no id is on. This is the scheme of PTHash (Pibiri and Trani, SIGIR 2021) with
pilots of two bytes. An id that is none of the n has some number, too: who looks ids up compares the id that stands there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numba
import numpy as np

from multifacet.kernels.hashing import mix64, reduce_range
from multifacet.kernels.memory import load_at, prefetch, prefetch_at

if TYPE_CHECKING:
    import numpy.typing as npt

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = np.uint64(0xD6E8FEB86659FD93)
_IDS_PER_BUCKET: Final = 4
_SPARE_SHARE: Final = 32
_LEAST_SPARE: Final = 4
_MAX_SEED: Final = 16
RING: Final = 64
PILOTS_AHEAD: Final = 48
"""Ids whose pilots are on their way at once; measured: 16 to 64 are alike where pilots lie in the cache."""
ROWS_AHEAD: Final = 24
"""Likewise the ids, or rows, that stand at their places."""


class PerfectHash(NamedTuple):
    """The numbers of some ids; see the module's text.

    Attributes:
        pilots: uint16 [buckets].
        moved: int32 [places - num_ids].
        num_ids: How many ids.
        seed: The first one from 0 with which there are pilots.
    """

    pilots: npt.NDArray[np.uint16]
    moved: npt.NDArray[np.int32]
    num_ids: int
    seed: int

    @classmethod
    def build(cls, ids: npt.NDArray[np.int64]) -> PerfectHash:
        """Search for pilots: some 0.3 us an id. The same ids give the same numbers, in whatever order they come.

        Args:
            ids: int64 [n], each once.

        Raises:
            ValueError: One of them occurs twice.

        Example:
            >>> ids = np.array([7, -3, 1 << 40])
            >>> sorted(PerfectHash.build(ids).numbers(ids).tolist())
            [0, 1, 2]
        """
        pilots = np.empty(num_buckets(len(ids)), np.uint16)
        moved = np.zeros(num_spare(len(ids)), np.int32)
        for seed in range(_MAX_SEED):
            if _build(ids, _offset(seed), pilots, moved):
                return cls(pilots, moved, len(ids), seed)
        raise ValueError(f"{len(ids)} ids have no places of their own: an id occurs twice")

    def numbers(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """The number of each id, some number of one that is unknown: int32 [n]."""
        numbers = np.empty(len(ids), np.int32)
        number_ids(self.pilots, self.moved, self.num_ids, _offset(self.seed), ids, numbers)
        return numbers

    @property
    def offset(self) -> np.uint64:
        """The seed as kernels take it."""
        return _offset(self.seed)


def num_buckets(num_ids: int) -> int:
    """Length of the pilots of so many ids."""
    return num_ids // _IDS_PER_BUCKET + 1


def num_spare(num_ids: int) -> int:
    """Places of so many ids that have no number of their own."""
    return num_ids // _SPARE_SHARE + _LEAST_SPARE


def _offset(seed: int) -> np.uint64:
    return np.uint64((seed * int(_GOLDEN)) % (1 << 64))


@numba.njit(nogil=True, cache=True, inline="always")
def _place(hashed: Any, pilot: Any, num_places: Any) -> Any:
    mixed = hashed ^ (np.uint64(pilot) * _GOLDEN)
    return reduce_range((mixed ^ (mixed >> np.uint64(32))) * _MIX, num_places)


@numba.njit(nogil=True, cache=True)
def _build(ids: Any, offset: Any, pilots: Any, moved: Any) -> Any:
    """Fill `pilots` and `moved`; False if a bucket has no pilot."""
    num_ids, buckets = len(ids), np.uint64(len(pilots))
    num_places = np.uint64(num_ids + len(moved))
    starts = np.zeros(len(pilots) + 1, np.int64)
    for key in ids:
        starts[np.int64(reduce_range(mix64(np.uint64(key) + offset), buckets)) + 1] += 1
    largest = starts.max()
    of_size = np.zeros(largest + 2, np.int64)
    for place in range(len(pilots)):
        of_size[largest - starts[place + 1] + 1] += 1
        starts[place + 1] += starts[place]
    dealt = np.empty(num_ids, np.uint64)
    free = starts[:-1].copy()
    for key in ids:
        hashed = mix64(np.uint64(key) + offset)
        bucket = np.int64(reduce_range(hashed, buckets))
        dealt[free[bucket]] = hashed
        free[bucket] += 1
    # The largest first: while most places are free, they are easy to find.
    for size in range(largest + 1):
        of_size[size + 1] += of_size[size]
    order = np.empty(len(pilots), np.int64)
    for place in range(len(pilots)):
        rank = largest - (starts[place + 1] - starts[place])
        order[of_size[rank]] = place
        of_size[rank] += 1
    taken = np.zeros((np.int64(num_places) >> 6) + 1, np.uint64)
    for bucket in order:
        pilot = _pilot(dealt[starts[bucket] : starts[bucket + 1]], num_places, taken)
        if pilot < 0:
            return False
        pilots[bucket] = pilot
    _move(taken, num_ids, moved)
    return True


@numba.njit(nogil=True, cache=True)
def _pilot(hashes: Any, num_places: Any, taken: Any) -> Any:
    """The first pilot with which all hashes fall on free places, which are taken then; -1 if there is none."""
    if len(hashes) == 0:
        return 0
    for pilot in range(1 << 16):
        num_set = 0
        while num_set < len(hashes):
            place = _place(hashes[num_set], pilot, num_places)
            word, bit = np.int64(place >> np.uint64(6)), np.uint64(1) << (place & np.uint64(63))
            if taken[word] & bit:
                break
            taken[word] |= bit
            num_set += 1
        if num_set == len(hashes):
            return pilot
        for position in range(num_set):
            place = _place(hashes[position], pilot, num_places)
            taken[np.int64(place >> np.uint64(6))] &= ~(np.uint64(1) << (place & np.uint64(63)))
    return -1


@numba.njit(nogil=True, cache=True)
def _move(taken: Any, num_ids: Any, moved: Any) -> None:
    """Give the places from `num_ids` on that are taken the numbers below that are not."""
    number = np.int64(0)
    for spare in range(len(moved)):
        moved[spare] = 0
        place = num_ids + spare
        if not taken[place >> 6] & (np.uint64(1) << np.uint64(place & 63)):
            continue
        while taken[number >> 6] & (np.uint64(1) << np.uint64(number & 63)):
            number += 1
        moved[spare] = number
        number += 1


@numba.njit(nogil=True, cache=True, inline="always")
def ask_pilot(pilots: Any, offset: Any, external_id: Any, position: Any, hashes: Any, buckets: Any) -> None:
    """The first of two steps to an id's number: have its bucket's pilot loaded, and keep hash and bucket for the second."""
    hashed = mix64(np.uint64(external_id) + offset)
    bucket = np.int64(reduce_range(hashed, np.uint64(len(pilots))))
    hashes[position & (RING - 1)] = hashed
    buckets[position & (RING - 1)] = bucket
    prefetch(pilots, np.intp(bucket) * pilots.itemsize)


@numba.njit(nogil=True, cache=True, inline="always")
def number_id(pilots: Any, moved: Any, num_ids: Any, position: Any, hashes: Any, buckets: Any) -> Any:
    """The second step, less than `RING` ids behind the first: the number."""
    pilot = pilots[buckets[position & (RING - 1)]]
    place = np.int64(_place(hashes[position & (RING - 1)], pilot, np.uint64(num_ids + len(moved))))
    return place if place < num_ids else np.int64(moved[place - num_ids])


@numba.njit(nogil=True, cache=True)
def number_ids(pilots: Any, moved: Any, num_ids: Any, offset: Any, ids: Any, numbers: Any) -> None:
    """Fill `numbers` (int32 [n]) with the number of each id, whether it is one of those that have numbers or not."""
    hashes, buckets = np.empty(RING, np.uint64), np.empty(RING, np.int64)
    for step in range(len(ids) + PILOTS_AHEAD):
        if step < len(ids):
            ask_pilot(pilots, offset, ids[step], step, hashes, buckets)
        position = step - PILOTS_AHEAD
        if position >= 0:
            numbers[position] = number_id(pilots, moved, num_ids, position, hashes, buckets)


@numba.njit(nogil=True, cache=True)
def find_placed(
    pilots: Any, moved: Any, num_ids: Any, offset: Any, keys: Any, stride: Any, missing: Any, ids: Any, rows: Any
) -> Any:
    """Look ids up: fills `rows` (int32 [n]); how many are unknown.

    An id waits for its pilot while `PILOTS_AHEAD` later ones ask for theirs, and for the id that stands at its place while
    `ROWS_AHEAD` later ones ask for those: the processor waits for many at once.

    Args:
        pilots: As the module's text says.
        moved: Likewise.
        num_ids: How many ids have numbers.
        offset: `PerfectHash.offset`.
        keys: Address of the id of number 0, uintp.
        stride: Bytes from one id to the next, uintp.
        missing: The row of unknown ids.
        ids: int64 [n].
        rows: int32 [n], written.
    """
    if num_ids == 0:
        rows[:] = missing
        return np.int64(len(ids))
    hashes, buckets = np.empty(RING, np.uint64), np.empty(RING, np.int64)
    num_missing = np.int64(0)
    for step in range(len(ids) + PILOTS_AHEAD + ROWS_AHEAD):
        if step < len(ids):
            ask_pilot(pilots, offset, ids[step], step, hashes, buckets)
        position = step - PILOTS_AHEAD
        if 0 <= position < len(ids):
            rows[position] = number_id(pilots, moved, num_ids, position, hashes, buckets)
            prefetch_at(keys + np.uintp(rows[position]) * stride)
        position -= ROWS_AHEAD
        if position >= 0:
            is_known = load_at(keys + np.uintp(rows[position]) * stride) == ids[position]
            rows[position] = rows[position] if is_known else missing
            num_missing += not is_known
    return num_missing
