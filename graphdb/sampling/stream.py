"""Counter-based random numbers: a draw depends on where in the sample it stands, never on when or on which thread.

A draw is `mix(key + (counter + 1) * golden)`, SplitMix64's sequence (Steele et al. 2014) started at `key`; keys are derived
from (seed, call, hop, relation, position) by the same mixer.

Numba keys the cache of a kernel by the kernel's own file: after a change here, remove `graphdb/sampling/__pycache__`.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import numba
import numpy as np
import torch.utils.data

_GOLDEN: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1
_LOW_32: Final = np.uint64(0xFFFFFFFF)
_GOLDEN_U64: Final = np.uint64(_GOLDEN)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)


class Stream:
    """The keys of a sampler's successive calls.

    The n-th call in the main process has the key of (seed, n). A data loader's workers hold copies of the sampler: there the
    worker's own seed, which torch draws anew each epoch from the loader's generator, enters the key, so that workers and
    epochs differ and a seeded loader repeats.

    Args:
        seed: Any integer.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._calls = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[int, int]:
        return self.seed, self._calls

    def __setstate__(self, state: tuple[int, int]) -> None:
        self.seed, self._calls = state
        self._lock = threading.Lock()

    def next_key(self) -> int:
        """The key of one more call."""
        with self._lock:
            call = self._calls
            self._calls += 1
        worker = torch.utils.data.get_worker_info()
        return derive_key(self.seed, call) if worker is None else derive_key(self.seed, call, worker.seed)


def derive_key(*parts: int) -> int:
    """A 64-bit key of several integers; each order and each length gives another one.

    Example:
        >>> derive_key(1, 2) == derive_key(1, 2), derive_key(1, 2) == derive_key(2, 1)
        (True, False)
    """
    key = len(parts)
    for part in parts:
        key = _mix_int((key + _GOLDEN + _mix_int(part & _MASK)) & _MASK)
    return key


def _mix_int(value: int) -> int:
    value = ((value ^ (value >> 30)) * int(_FIRST)) & _MASK
    value = ((value ^ (value >> 27)) * int(_SECOND)) & _MASK
    return value ^ (value >> 31)


@numba.njit(nogil=True, cache=True)
def mix(value: Any) -> Any:
    """SplitMix64's finaliser of a uint64."""
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))


@numba.njit(nogil=True, cache=True)
def key_at(key: Any, position: int) -> Any:
    """The key (uint64) of one position below `key`."""
    return mix(key ^ mix(np.uint64(position) + _GOLDEN_U64))


@numba.njit(nogil=True, cache=True)
def draw_below(key: Any, counter: int, bound: int) -> Any:
    """A uniform integer below `bound` (at most 2^32), without bias, and the next counter (Lemire 2019)."""
    wide = np.uint64(bound)
    while True:
        counter += 1
        product = (mix(key + np.uint64(counter) * _GOLDEN_U64) >> np.uint64(32)) * wide
        low = product & _LOW_32
        if low >= wide or low >= (np.uint64(1 << 32) - wide) % wide:
            return np.int64(product >> np.uint64(32)), counter


@numba.njit(nogil=True, cache=True)
def draw_unit(key: Any, counter: int) -> Any:
    """A uniform float64 of the open interval (0, 1), and the next counter."""
    counter += 1
    bits = mix(key + np.uint64(counter) * _GOLDEN_U64) >> np.uint64(12)
    return (np.float64(bits) + 0.5) * (1.0 / (1 << 52)), counter
