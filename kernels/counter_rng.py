"""Counter-based random numbers: a draw depends on what it is for, never on when or on which thread it is made.

A draw is `mix(key + counter * golden)`, SplitMix64's sequence (Steele et al. 2014) started at `key`; keys are derived from the
seed, a purpose and a position. Samplers draw by `draw_below` and `draw_unit`, which hand the next counter back; what draws a
known number of times names its counters itself.

The content of synthetic worlds hangs on these few lines: a change needs another `graphdb.world.config.FORMAT`. Numba keys the
cache of a kernel by the kernel's own file: after a change, remove the `__pycache__` of `graphdb/sampling` and `graphdb/world`.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Final

import numba
import numpy as np
from numpy.typing import NDArray

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)
_MASK: Final = (1 << 64) - 1
_LOW_32: Final = np.uint64(0xFFFFFFFF)
_TO_UNIT: Final = 1.0 / (1 << 52)
_TWO_PI: Final = 2 * math.pi


def derive_key(*parts: str | int) -> np.uint64:
    """The key of a seed and a purpose, such as `(seed, "clicks", month)`; each order and each length gives another one.

    Integers count by their lowest 64 bits.

    Example:
        >>> [int(derive_key(0, "clicks", month) == derive_key(0, "clicks", 3)) for month in (3, 4)]
        [1, 0]
    """
    words = (part if isinstance(part, str) else str(int(part) & _MASK) for part in parts)
    return np.uint64(int.from_bytes(hashlib.sha256("/".join(words).encode()).digest()[:8], "little"))


@numba.njit(nogil=True, cache=True)
def mix(value: Any) -> Any:
    """SplitMix64's finaliser of a uint64."""
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))


@numba.njit(nogil=True, cache=True)
def key_at(key: Any, position: int) -> Any:
    """The key (uint64) of one position below `key`."""
    return mix(key ^ mix(np.uint64(position) + _GOLDEN))


@numba.njit(nogil=True, cache=True)
def bits_at(key: Any, counter: int) -> Any:
    """The uint64 at a counter of `key`'s sequence."""
    return mix(key + np.uint64(counter) * _GOLDEN)


@numba.njit(nogil=True, cache=True)
def unit_at(key: Any, counter: int) -> Any:
    """The float64 of the open interval (0, 1) at a counter of `key`'s sequence."""
    return (np.float64(bits_at(key, counter) >> np.uint64(12)) + 0.5) * _TO_UNIT


@numba.njit(nogil=True, cache=True)
def below_at(key: Any, counter: int, bound: int) -> Any:
    """An integer below `bound` (at most 2^31) at a counter; uneven by at most `bound` / 2^32."""
    return np.int64(((bits_at(key, counter) >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@numba.njit(nogil=True, cache=True)
def draw_below(key: Any, counter: int, bound: int) -> Any:
    """A uniform integer below `bound` (at most 2^32), without bias, and the next counter (Lemire 2019)."""
    wide = np.uint64(bound)
    while True:
        counter += 1
        product = (bits_at(key, counter) >> np.uint64(32)) * wide
        low = product & _LOW_32
        if low >= wide or low >= (np.uint64(1 << 32) - wide) % wide:
            return np.int64(product >> np.uint64(32)), counter


@numba.njit(nogil=True, cache=True)
def draw_unit(key: Any, counter: int) -> Any:
    """A uniform float64 of the open interval (0, 1), and the next counter."""
    counter += 1
    return unit_at(key, counter), counter


@numba.njit(nogil=True, cache=True)
def alias_at(key: Any, counter: int, entries: NDArray[np.uint32]) -> Any:
    """An id drawn from an alias table (see `alias.build_alias`) at a counter."""
    bits = bits_at(key, counter)
    row = ((bits >> np.uint64(32)) * np.uint64(entries.shape[0])) >> np.uint64(32)
    if (bits & _LOW_32) < np.uint64(entries[row, 0]):
        return np.int64(entries[row, 1])
    return np.int64(entries[row, 2])


@numba.njit(nogil=True, cache=True)
def fill_normal(key: Any, out: NDArray[np.float64]) -> None:
    """Fills a vector with independent standard normals (Box and Muller)."""
    for pair in range((len(out) + 1) // 2):
        radius = math.sqrt(-2 * math.log(unit_at(key, 2 * pair)))
        angle = _TWO_PI * unit_at(key, 2 * pair + 1)
        out[2 * pair] = radius * math.cos(angle)
        if 2 * pair + 1 < len(out):
            out[2 * pair + 1] = radius * math.sin(angle)


@numba.njit(nogil=True, cache=True)
def fill_units(key: Any, out: NDArray[np.float64]) -> None:
    """Fills a vector with one uniform of (0, 1) a position."""
    for position in range(len(out)):
        out[position] = unit_at(key, position)
