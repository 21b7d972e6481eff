"""Hashes that give the same rows in every process, version and machine: SplitMix64's mixer and XXH64.

Both are fixed by their published definitions (Steele, Lea and Flood 2014; the xxHash specification), so rows computed
in training hold in serving. Python's own ``hash`` does not: it is salted per process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
_PRIME_1: Final = np.uint64(0x9E3779B185EBCA87)
_PRIME_2: Final = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME_3: Final = np.uint64(0x165667B19E3779F9)
_PRIME_4: Final = np.uint64(0x85EBCA77C2B2AE63)
_PRIME_5: Final = np.uint64(0x27D4EB2F165667C5)
_LOW_32: Final = np.uint64(0xFFFFFFFF)
_32: Final = np.uint64(32)


@numba.njit(nogil=True, cache=True, inline="always")
def mix64(value: Any) -> Any:
    """SplitMix64's finaliser: a bijection of uint64 whose every output bit depends on every input bit."""
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


@numba.njit(nogil=True, cache=True, inline="always")
def reduce_range(value: Any, size: Any) -> Any:
    """floor(value * size / 2**64): maps a uniform uint64 to 0..size-1 without a division; size < 2**32."""
    high = (value >> _32) * size
    low = ((value & _LOW_32) * size) >> _32
    return (high + low) >> _32


@numba.njit(nogil=True, cache=True, inline="always")
def read_word(text: Any, at: Any, num_bytes: int) -> Any:
    """Reads up to 8 bytes as a little-endian uint64; one load, since an unsigned index needs no check of its sign."""
    value = np.uint64(0)
    for byte in range(num_bytes):
        value |= np.uint64(text[np.uint64(at) + np.uint64(byte)]) << np.uint64(8 * byte)
    return value


@numba.njit(nogil=True, cache=True)
def hash_rows(keys: Any, seeds: Any, num_rows: Any, rows: Any, start: int, stop: int) -> None:
    """Fills rows[start:stop] (int32 [n, num_hashes]): column k is mix64(mix64(key) + seeds[k]) cut to num_rows."""
    size = np.uint64(num_rows)
    for position in range(start, stop):
        base = mix64(np.uint64(keys[position]))
        for column in range(len(seeds)):
            rows[position, column] = np.int32(reduce_range(mix64(base + seeds[column]), size))


@numba.njit(nogil=True, cache=True)
def hash_strings(offsets: Any, text: Any, keys: Any, start: int, stop: int) -> None:
    """Fills keys[start:stop] (int64) with XXH64 (seed 0) of text[offsets[i]:offsets[i + 1]]."""
    for position in range(start, stop):
        keys[position] = np.int64(_xxh64(text, offsets[position], offsets[position + 1]))


def seed_stream(seed: int, count: int) -> NDArray[np.uint64]:
    """Gives the first numbers of SplitMix64's stream for a seed.

    Args:
        seed: Any integer; taken modulo 2**64.
        count: How many numbers.

    Returns:
        uint64 [count].
    """
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    state = np.uint64(seed % (1 << 64)) + steps
    return np.array([mix64(value) for value in state], dtype=np.uint64)


@numba.njit(nogil=True, cache=True, inline="always")
def _rotate(value: Any, bits: int) -> Any:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@numba.njit(nogil=True, cache=True, inline="always")
def _round(lane: Any, value: Any) -> Any:
    return _rotate(lane + value * _PRIME_2, 31) * _PRIME_1


@numba.njit(nogil=True, cache=True)
def _xxh64(text: Any, at: int, end: int) -> Any:
    length = end - at
    if length >= 32:
        lane_1 = _PRIME_1 + _PRIME_2
        lane_2 = _PRIME_2
        lane_3 = np.uint64(0)
        lane_4 = np.uint64(0) - _PRIME_1
        while end - at >= 32:
            lane_1 = _round(lane_1, read_word(text, at, 8))
            lane_2 = _round(lane_2, read_word(text, at + 8, 8))
            lane_3 = _round(lane_3, read_word(text, at + 16, 8))
            lane_4 = _round(lane_4, read_word(text, at + 24, 8))
            at += 32
        value = _rotate(lane_1, 1) + _rotate(lane_2, 7) + _rotate(lane_3, 12) + _rotate(lane_4, 18)
        for lane in (lane_1, lane_2, lane_3, lane_4):
            value = (value ^ _round(np.uint64(0), lane)) * _PRIME_1 + _PRIME_4
    else:
        value = _PRIME_5
    value += np.uint64(length)
    while end - at >= 8:
        value ^= _round(np.uint64(0), read_word(text, at, 8))
        value = _rotate(value, 27) * _PRIME_1 + _PRIME_4
        at += 8
    if end - at >= 4:
        value ^= read_word(text, at, 4) * _PRIME_1
        value = _rotate(value, 23) * _PRIME_2 + _PRIME_3
        at += 4
    while at < end:
        value ^= np.uint64(text[at]) * _PRIME_5
        value = _rotate(value, 11) * _PRIME_1
        at += 1
    value = (value ^ (value >> np.uint64(33))) * _PRIME_2
    value = (value ^ (value >> np.uint64(29))) * _PRIME_3
    return value ^ (value >> _32)
