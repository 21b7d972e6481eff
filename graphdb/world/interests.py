"""Latent vectors: what users are interested in, how that drifts, and how pins appeal on each surface."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from multifacet.graphdb.counter import alias_at, derive_key, fill_normal, key_at
from multifacet.graphdb.threads import Workers
from multifacet.graphdb.world.alias import build_alias
from multifacet.graphdb.world.config import WorldConfig
from multifacet.graphdb.world.population import pareto


def directions(config: WorldConfig, name: str, total: int, workers: Workers) -> NDArray[np.float32]:
    """Draws vectors of length 1, uniform over the sphere, float32 [total, dim]."""
    vectors = np.empty((total, config.dim), dtype=np.float32)
    key = derive_key(config.seed, name)
    workers.run_ranges(lambda start, stop: _fill_directions(key, start, stop, vectors), total)
    return vectors


def drift(config: WorldConfig, interests: NDArray[np.float32], month: int, workers: Workers) -> None:
    """Turns every user's interests, in place, from the month before into those of `month`.

    Each vector turns towards a random direction at right angles to itself, by the angle whose cosine is 1 - drift: so the
    cosine with the month before is exactly that, and the expected cosine with n months before its n-th power. Lengths stay 1.
    """
    if config.drift_per_month == 0:
        return
    key = derive_key(config.seed, "drift", month)
    cosine = 1 - config.drift_per_month
    workers.run_ranges(lambda start, stop: _turn(key, start, stop, cosine, interests, interests), len(interests))


def draw_advertisers(config: WorldConfig, num_pins: int) -> NDArray[np.int64]:
    """Draws each pin's advertiser, in proportion to sizes that follow a power law, int64 [num_pins]."""
    count = config.num_advertisers
    sizes = pareto(derive_key(config.seed, "advertiser", "weight"), count, config.advertiser_exponent, count)
    advertiser = np.empty(num_pins, dtype=np.int64)
    _draw_all(derive_key(config.seed, "made_by"), build_alias(sizes, np.arange(count)), advertiser)
    return advertiser


def draw_appeals(
    config: WorldConfig, advertiser: NDArray[np.int64], advertisers: NDArray[np.float32], workers: Workers
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draws how pins appeal onsite and offsite.

    The onsite appeal is the direction of sqrt(coherence * dim) * a + sqrt(1 - coherence) * g, with a the advertiser's direction
    and g standard normal. The offsite appeal has a cosine of exactly `surface_correlation` with it. As users' directions are
    uniform, that is also the correlation of the two affinities.

    Args:
        config: The world's settings.
        advertiser: Each pin's advertiser, int64 [pins].
        advertisers: The advertisers' directions, float32 [advertisers, dim].
        workers: Threads.

    Returns:
        Onsite and offsite appeals, vectors of length 1, float32 [pins, dim] each.
    """
    onsite = np.empty((len(advertiser), config.dim), dtype=np.float32)
    offsite = np.empty_like(onsite)
    own_key, offsite_key = derive_key(config.seed, "onsite appeal"), derive_key(config.seed, "offsite appeal")
    shared, own = math.sqrt(config.advertiser_coherence * config.dim), math.sqrt(1 - config.advertiser_coherence)

    def fill(start: int, stop: int) -> None:
        _fill_appeals(own_key, start, stop, shared, own, advertiser, advertisers, onsite)
        _turn(offsite_key, start, stop, config.surface_correlation, onsite, offsite)

    workers.run_ranges(fill, len(advertiser))
    return onsite, offsite


def nearest(vectors: NDArray[np.float32], centres: NDArray[np.float32], workers: Workers) -> NDArray[np.int64]:
    """The centre at the smallest angle to each vector, int64 [vectors]."""
    category = np.empty(len(vectors), dtype=np.int64)
    workers.run_ranges(lambda start, stop: _fill_nearest(start, stop, vectors, centres, category), len(vectors))
    return category


@numba.njit(nogil=True, cache=True)
def _normalise(vector: NDArray[np.float64]) -> None:
    vector /= math.sqrt((vector * vector).sum())


@numba.njit(nogil=True, cache=True)
def _fill_directions(key: Any, start: int, stop: int, vectors: NDArray[np.float32]) -> None:
    draw = np.empty(vectors.shape[1])
    for row in range(start, stop):
        fill_normal(key_at(key, row), draw)
        _normalise(draw)
        vectors[row] = draw


@numba.njit(nogil=True, cache=True)
def _turn(key: Any, start: int, stop: int, cosine: float, vectors: NDArray[np.float32], turned: NDArray[np.float32]) -> None:
    draw = np.empty(vectors.shape[1])
    vector = np.empty(vectors.shape[1])
    sine = math.sqrt(max(0.0, 1 - cosine * cosine))
    for row in range(start, stop):
        fill_normal(key_at(key, row), draw)
        vector[:] = vectors[row]
        draw -= vector * ((draw * vector).sum() / (vector * vector).sum())
        _normalise(draw)
        vector *= cosine
        vector += sine * draw
        _normalise(vector)
        turned[row] = vector


@numba.njit(nogil=True, cache=True)
def _fill_appeals(
    key: Any,
    start: int,
    stop: int,
    shared: float,
    own: float,
    advertiser: NDArray[np.int64],
    advertisers: NDArray[np.float32],
    appeals: NDArray[np.float32],
) -> None:
    draw = np.empty(appeals.shape[1])
    for row in range(start, stop):
        fill_normal(key_at(key, row), draw)
        draw *= own
        draw += shared * advertisers[advertiser[row]]
        _normalise(draw)
        appeals[row] = draw


@numba.njit(nogil=True, cache=True)
def _fill_nearest(
    start: int, stop: int, vectors: NDArray[np.float32], centres: NDArray[np.float32], nearest: NDArray[np.int64]
) -> None:
    for row in range(start, stop):
        best, best_cosine = 0, -np.inf
        for centre in range(len(centres)):
            cosine = 0.0
            for axis in range(vectors.shape[1]):
                cosine += vectors[row, axis] * centres[centre, axis]
            if cosine > best_cosine:
                best, best_cosine = centre, cosine
        nearest[row] = best


@numba.njit(nogil=True, cache=True)
def _draw_all(key: Any, entries: NDArray[np.uint32], out: NDArray[np.int64]) -> None:
    for position in range(len(out)):
        out[position] = alias_at(key, position, entries)
