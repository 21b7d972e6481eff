"""Random bits by counter, inside kernels: a function of a seed and places, with no state that threads would have to share."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["random_bits", "random_stream"]


@numba.njit(nogil=True, cache=True)
def random_stream(seed: Any, number: Any) -> Any:
    """Give the key of one of a seed's streams, uint32 (the finaliser of SplitMix64, Steele et al., OOPSLA 2014)."""
    mixed = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * (np.uint64(number) + np.uint64(1))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.uint32((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32))


@numba.njit(nogil=True, cache=True)
def random_bits(stream: Any, place: Any) -> Any:
    """Give 32 uniform bits of a stream's place, uint32 (the finaliser of MurmurHash3 over a Weyl sequence)."""
    mixed = np.uint32(stream + np.uint32(place) * np.uint32(0x9E3779B9))
    mixed = np.uint32((mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    mixed = np.uint32((mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(mixed ^ (mixed >> np.uint32(16)))
