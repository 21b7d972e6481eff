"""An immutable hash index from external ids to rows, laid out in flat arrays that can be memory-mapped.

Ids are grouped by the leading bits of their hash; about two share a bucket::

    starts  int32 [2**bits + 1]   bucket b holds the slots starts[b] .. starts[b + 1]
    keys    int64 [n]             an id, or its string's XXH64
    rows    int32 [n]
    offsets int64 [n + 1], text uint8     strings only: slot s is text[offsets[s]:offsets[s + 1]]

A lookup touches one place in `starts`, one in `keys` and, on a hit, one in `rows`; there are no empty slots and no
probe chains, and the arrays depend on nothing but the ids and their order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import numba
import numpy as np
from safetensors.numpy import save_file

from multifacet.artifacts import map_tensors
from multifacet.kernels.hashing import mix64, read_word
from multifacet.kernels.memory import prefetch
from multifacet.kernels.threads import num_ranges, run_ranges

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from multifacet.tables.ids.column import IdColumn, IdType

_DTYPES: Final = {"starts": np.dtype(np.int32), "keys": np.dtype(np.int64), "rows": np.dtype(np.int32)}
_TEXT_DTYPES: Final = {"offsets": np.dtype(np.int64), "text": np.dtype(np.uint8)}
_IDS_PER_BUCKET: Final = 2
_BLOCK: Final = 256
_MIN_IDS_PER_THREAD: Final = 1 << 13
_IDS_PER_PART: Final = 1 << 15  # of `invert`: their part of the index is some 450 KiB
_MAX_IDS: Final = 1 << 31
_IDS_AT_ONCE: Final = 1 << 22


class IdIndex:
    """Finds the row of each id; see the module's text for the arrays."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.arrays: dict[str, NDArray[Any]] = arrays
        self.shift = 64 - (len(arrays["starts"]) - 1).bit_length() + 1

    def __len__(self) -> int:
        return len(self.arrays["keys"])

    @classmethod
    def build(cls, ids: IdColumn) -> Self:
        """Indexes ids; position i gets row i.

        Raises:
            ValueError: An id occurs twice, or rows do not fit into int32.
        """
        if len(ids) >= _MAX_IDS:
            raise ValueError(f"there are {len(ids)} ids, and an id map holds fewer than {_MAX_IDS}: shard the table first")
        bits = max(1, (len(ids) // _IDS_PER_BUCKET).bit_length())
        starts = np.zeros((1 << bits) + 1, np.int32)
        slots = np.empty(len(ids), np.int32)
        first, second = _fill(ids.keys, ids.offsets, ids.text, np.uint64(64 - bits), starts, slots)
        if second >= 0:
            raise ValueError(
                f"The id {ids[second]!r} occurs twice, at positions {first} and {second}; each id has one row. "
                "Remove the duplicates first."
            )
        arrays: dict[str, NDArray[Any]] = {"starts": starts, "keys": ids.keys[slots], "rows": slots}
        if ids.id_type == "string":
            lengths = (ids.offsets[1:] - ids.offsets[:-1])[slots]
            offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
            text = np.empty(int(offsets[-1]), np.uint8)
            _gather_text(ids.offsets, ids.text, slots, offsets, text)
            arrays |= {"offsets": offsets, "text": text}
        return cls(arrays)

    def save(self, path: Path) -> None:
        """Writes the arrays as one safetensors file; equal ids in equal order give equal bytes."""
        save_file(self.arrays, path)

    @classmethod
    def load(cls, path: Path, id_type: IdType) -> Self:
        """Maps saved arrays into memory; pages are read when a lookup touches them.

        Only shapes and dtypes are checked here: what guards the content is the sha256 of the artefact around it.

        Raises:
            ValueError: The file does not hold an index of this id type.
        """
        dtypes = _DTYPES | (_TEXT_DTYPES if id_type == "string" else {})
        arrays = map_tensors(path)
        found = {name: array.dtype for name, array in arrays.items() if array.ndim == 1}
        if found != dtypes:
            raise ValueError(f"{path} holds {found}; an index of {id_type} ids holds {dtypes}.")
        num_ids, num_buckets = len(arrays["keys"]), len(arrays["starts"]) - 1
        fits = len(arrays["rows"]) == num_ids and num_buckets >= 2 and num_buckets.bit_count() == 1
        if fits and id_type == "string":
            offsets = arrays["offsets"]
            fits = len(offsets) == num_ids + 1 and offsets[-1] == len(arrays["text"])
        if not fits or arrays["starts"][-1] != num_ids:
            raise ValueError(f"{path}: the lengths of the arrays do not belong together.")
        return cls(arrays)

    def lookup(self, ids: IdColumn, missing: int) -> NDArray[np.int32]:
        """Gives the row of each id, or `missing`: int32 [n]."""
        found = np.empty(len(ids), np.int32)
        empty_offsets, empty_text = np.zeros(0, np.int64), np.zeros(0, np.uint8)
        table = (
            self.arrays["starts"],
            self.arrays["keys"],
            self.arrays["rows"],
            self.arrays.get("offsets", empty_offsets),
            self.arrays.get("text", empty_text),
        )
        query = (ids.keys, ids.offsets, ids.text)
        shift = np.uint64(self.shift)
        run_ranges(
            lambda start, stop: _lookup(table, query, shift, missing, found, start, stop),
            len(ids),
            min_size=_MIN_IDS_PER_THREAD,
        )
        return found

    def invert(self, ids: IdColumn, num_rows: int) -> tuple[NDArray[np.int32], int]:
        """Give the position of each row among some distinct ids: `lookup` the other way round, for whole tables.

        Ids are dealt out by the leading bits of their hash, so that each part looks its own up where that part of the index
        is in the cache.

        Args:
            ids: [n], each once.
            num_rows: Rows of the table.

        Returns:
            int32 [num_rows], -1 where no id has the row; and how many ids have none.
        """
        positions = np.full(num_rows, -1, np.int32)
        if len(self) == 0 or len(ids) == 0:
            return positions, len(ids)
        if "text" in self.arrays:
            rows = self.lookup(ids, -1)
            known = rows >= 0
            positions[rows[known]] = np.flatnonzero(known)
            return positions, len(ids) - int(known.sum())
        arrays, shift = (self.arrays["starts"], self.arrays["keys"], self.arrays["rows"]), np.uint64(self.shift)
        num_parts = 1 << max(0, min((len(self) // _IDS_PER_PART).bit_length(), 64 - self.shift))
        part_shift = np.uint64(65 - num_parts.bit_length())
        num_missing = 0
        for begin in range(0, len(ids), _IDS_AT_ONCE):
            keys = ids.keys[begin : begin + _IDS_AT_ONCE]
            num_missing += _invert_some(arrays, shift, keys, begin, num_parts, part_shift, positions)
        return positions, num_missing

    def ids(self, slots: NDArray[np.int64]) -> NDArray[np.int64] | NDArray[np.object_]:
        """Give the ids of some slots: int64 [n], or object [n] of str."""
        if "text" not in self.arrays:
            keys: NDArray[np.int64] = self.arrays["keys"][slots]
            return keys
        offsets, text = self.arrays["offsets"], self.arrays["text"]
        return np.array([text[offsets[slot] : offsets[slot + 1]].tobytes().decode() for slot in slots], np.object_)

    def find(self, ids: NDArray[np.int64], missing: int, rows: NDArray[np.int32]) -> int:
        """Look int64 ids up on this thread, into memory that is there: for a server's many small requests.

        Args:
            ids: int64 [n], contiguous and read-only. The index is one of int64 ids: the caller has checked.
            missing: The row of an id that is not there.
            rows: int32 [n], written.

        Returns:
            How many ids are not there.
        """
        arrays = self.arrays
        num_missing: int = find_ids(arrays["starts"], arrays["keys"], arrays["rows"], np.uint64(self.shift), missing, ids, rows)
        return num_missing


def _invert_some(
    arrays: Any, shift: Any, keys: NDArray[np.int64], begin: int, num_parts: int, part_shift: Any, positions: NDArray[np.int32]
) -> int:
    """Fill the positions of some keys; gives how many the index lacks."""
    threads = num_ranges(len(keys), _MIN_IDS_PER_THREAD)
    bounds = [len(keys) * part // threads for part in range(threads + 1)]
    counts = np.zeros((threads, num_parts), np.int64)

    def count(start: int, stop: int) -> None:
        for thread in range(start, stop):
            _count_parts(keys, bounds[thread], bounds[thread + 1], part_shift, counts[thread])

    run_ranges(count, threads, min_size=1)
    places = np.cumsum(counts.T.reshape(-1)).reshape(num_parts, threads)
    begins = np.concatenate([np.zeros(1, np.int64), places[:, -1]])
    cursors = np.ascontiguousarray((places - counts.T).T)
    dealt_keys, dealt = np.empty(len(keys), np.int64), np.empty(len(keys), np.int32)

    def deal(start: int, stop: int) -> None:
        for thread in range(start, stop):
            _deal_keys(keys, bounds[thread], bounds[thread + 1], begin, part_shift, cursors[thread], dealt_keys, dealt)

    run_ranges(deal, threads, min_size=1)
    missing: list[int] = []

    def join(start: int, stop: int) -> None:
        missing.append(_join(arrays, shift, dealt_keys, dealt, positions, begins[start], begins[stop]))

    run_ranges(join, num_parts, min_size=1)
    return sum(missing)


@numba.njit(nogil=True, cache=True)
def _count_parts(keys: Any, start: int, stop: int, part_shift: Any, counts: Any) -> None:
    one_part = len(counts) == 1
    for position in range(start, stop):
        counts[0 if one_part else np.int64(mix64(np.uint64(keys[position])) >> part_shift)] += 1


@numba.njit(nogil=True, cache=True)
def _deal_keys(
    keys: Any, start: int, stop: int, begin: int, part_shift: Any, cursors: Any, dealt_keys: Any, dealt: Any
) -> None:
    one_part = len(cursors) == 1
    for position in range(start, stop):
        part = 0 if one_part else np.int64(mix64(np.uint64(keys[position])) >> part_shift)
        place = cursors[part]
        cursors[part] = place + 1
        dealt_keys[place] = keys[position]
        dealt[place] = begin + position


@numba.njit(nogil=True, cache=True)
def _join(arrays: Any, shift: Any, dealt_keys: Any, dealt: Any, positions: Any, start: int, stop: int) -> int:
    starts, keys, rows = arrays
    num_missing = 0
    for place in range(start, stop):
        key = dealt_keys[place]
        bucket = np.int64(mix64(np.uint64(key)) >> shift)
        slot = _find_key(keys, key, starts[bucket], starts[bucket + 1])
        if slot < 0:
            num_missing += 1
        else:
            positions[rows[slot]] = dealt[place]
    return num_missing


@numba.njit(nogil=True, cache=True, inline="always")
def _same_text(offsets: Any, text: Any, position: Any, other_offsets: Any, other_text: Any, other: Any) -> Any:
    at, other_at = offsets[position], other_offsets[other]
    length = offsets[position + 1] - at
    if other_offsets[other + 1] - other_at != length:
        return False
    if length < 8:
        for byte in range(length):  # noqa: SIM110  (numba has no generators)
            if text[at + byte] != other_text[other_at + byte]:
                return False
        return True
    last = length - 8  # the last word may overlap the one before it
    for byte in range(0, last, 8):
        if read_word(text, at + byte, 8) != read_word(other_text, other_at + byte, 8):
            return False
    return read_word(text, at + last, 8) == read_word(other_text, other_at + last, 8)


@numba.njit(nogil=True, cache=True)
def _fill(keys: Any, offsets: Any, text: Any, shift: Any, starts: Any, slots: Any) -> tuple[int, int]:
    """Fills `starts` and `slots` (slot -> position); gives the first repeated id's two positions, or (-1, -1)."""
    for key in keys:
        starts[np.int64(mix64(np.uint64(key)) >> shift) + 1] += 1
    for bucket in range(len(starts) - 1):
        starts[bucket + 1] += starts[bucket]
    used = np.zeros(len(starts) - 1, np.int32)
    for position in range(len(keys)):
        home = np.int64(mix64(np.uint64(keys[position])) >> shift)
        end = starts[home] + used[home]
        for slot in range(starts[home], end):
            other = slots[slot]
            if keys[other] == keys[position] and (
                len(offsets) == 0 or _same_text(offsets, text, position, offsets, text, other)
            ):
                return other, position
        slots[end] = position
        used[home] += 1
    return -1, -1


@numba.njit(nogil=True, cache=True)
def _gather_text(offsets: Any, text: Any, slots: Any, new_offsets: Any, new_text: Any) -> None:
    for slot in range(len(slots)):
        start = offsets[slots[slot]]
        for byte in range(new_offsets[slot + 1] - new_offsets[slot]):
            new_text[new_offsets[slot] + byte] = text[start + byte]


@numba.njit(nogil=True, cache=True)
def _lookup(table: Any, query: Any, shift: Any, missing: int, found: Any, start: int, stop: int) -> None:
    """Fills found[start:stop].

    Works in blocks and, within a block, array by array: each step asks for what the next one reads, so that the
    processor has many cache misses under way at once.
    """
    starts, keys, rows, offsets, text = table
    query_keys, query_offsets, query_text = query
    slots = np.empty(_BLOCK, np.int32)
    ends = np.empty(_BLOCK, np.int32)
    for first in range(start, stop, _BLOCK):
        size = min(_BLOCK, stop - first)
        for lane in range(size):
            ends[lane] = np.int64(mix64(np.uint64(query_keys[first + lane])) >> shift)
            prefetch(starts, np.intp(ends[lane]) * starts.itemsize)
        for lane in range(size):
            bucket = ends[lane]
            slots[lane] = starts[bucket]
            ends[lane] = starts[bucket + 1]
            prefetch(keys, np.intp(slots[lane]) * keys.itemsize)
            prefetch(rows, np.intp(slots[lane]) * rows.itemsize)
        for lane in range(size):
            slots[lane] = _find_key(keys, query_keys[first + lane], slots[lane], ends[lane])
        if len(offsets) > 0:
            for lane in range(size):
                # Another string with the same 64-bit hash may stand before the right one.
                while slots[lane] >= 0 and not _same_text(offsets, text, slots[lane], query_offsets, query_text, first + lane):
                    slots[lane] = _find_key(keys, query_keys[first + lane], slots[lane] + 1, ends[lane])
        for lane in range(size):
            found[first + lane] = rows[slots[lane]] if slots[lane] >= 0 else missing


@numba.njit(nogil=True, cache=True, inline="always")
def _find_key(keys: Any, key: Any, slot: Any, end: Any) -> Any:
    while slot < end and keys[slot] != key:
        slot += 1
    return slot if slot < end else -1


@numba.njit(nogil=True, cache=True)
def find_ids(starts: Any, keys: Any, rows: Any, shift: Any, missing: int, ids: Any, found: Any) -> int:
    """As `_lookup`, for int64 ids, in one thread."""
    slots = np.empty(_BLOCK, np.int32)
    ends = np.empty(_BLOCK, np.int32)
    num_missing = 0
    if len(keys) == 0:
        found[:] = missing
        return len(ids)
    for first in range(0, len(ids), _BLOCK):
        size = min(_BLOCK, len(ids) - first)
        for lane in range(size):
            ends[lane] = np.int64(mix64(np.uint64(ids[first + lane])) >> shift)
            prefetch(starts, np.intp(ends[lane]) * starts.itemsize)
        for lane in range(size):
            bucket = ends[lane]
            slots[lane] = starts[bucket]
            ends[lane] = starts[bucket + 1]
            prefetch(keys, np.intp(slots[lane]) * keys.itemsize)
            prefetch(keys, np.intp(slots[lane]) * keys.itemsize + 24)
        for lane in range(size):
            hit = _find_in_bucket(keys, ids[first + lane], slots[lane], ends[lane])
            slots[lane] = hit
            prefetch(rows, np.intp(max(hit, np.int32(0))) * rows.itemsize)
        for lane in range(size):
            hit = slots[lane]
            found[first + lane] = rows[hit] if hit >= 0 else missing
            num_missing += hit < 0
    return num_missing


@numba.njit(nogil=True, cache=True, inline="always")
def _find_in_bucket(keys: Any, key: Any, slot: Any, end: Any) -> Any:
    """The place of a key in keys[slot:end], or -1.

    Four keys are compared whatever the bucket's length is, since the processor cannot foretell it. Those beyond the end are of
    other buckets, which this key is not in.
    """
    last = np.int32(len(keys) - 1)
    hit = np.int32(-1)
    for step in range(4):
        place = min(slot + np.int32(step), last)
        hit = place if keys[place] == key else hit
    if hit < 0:
        for place in range(slot + 4, end):
            if keys[place] == key:
                hit = np.int32(place)
    return hit
