"""Timed edges between users and pins: who clicked or converted on what, and when."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Final

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from multifacet.graphdb.counter import alias_at, derive_key, key_at, unit_at
from multifacet.graphdb.threads import Workers, ranges
from multifacet.graphdb.world.config import INTERACTIONS, InteractionName, WorldConfig
from multifacet.graphdb.world.month import Month
from multifacet.graphdb.world.response import Response

#: Columns of an interaction's files.
SCHEMA: Final = pa.schema(
    [
        pa.field("src", pa.int64(), nullable=False),
        pa.field("dst", pa.int64(), nullable=False),
        pa.field("time", pa.timestamp("us"), nullable=False),
    ]
)
_FIRST_TRIAL: Final = 4
_SHOWN_AT_ONCE: Final = 8
#: Pins shown to a user before the last one is taken, whatever its probability; a multiple of those shown at once.
MAX_TRIALS: Final = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """Successive edges of one relation.

    Attributes:
        batch: Columns src, dst and time, ascending in time.
        is_noise: Whether interests played no part, bool [n].
    """

    batch: pa.RecordBatch
    is_noise: NDArray[np.bool_]


def stream(
    config: WorldConfig, relation: InteractionName, month: Month, *, workers: Workers, chunk_size: int
) -> Iterator[Chunk]:
    """Generates a month's edges of one relation in the order of time, at most `chunk_size` at once.

    The n edges of a month are spread evenly over its time, each at random within its own n-th. An edge's user is drawn from the
    living in proportion to their activity. Then pins are shown to the user, drawn from the living in proportion to their
    popularity, until one is responded to. With probability `noise_share` the edge is noise, and its pin the first one shown.
    So, given its user and time, an edge's pin is p with probability

        noise * q(p) + (1 - noise) * q(p) * sigmoid(...) / (mean of sigmoid(...) over q)

    where q is the popularity among the living, and sigmoid(...) as in `Response`.

    Each edge has its own counter: neither threads nor chunks change what is drawn.

    Args:
        config: The world's settings.
        relation: `clicks` or `converts`.
        month: Who lives, and with which interests.
        workers: Threads.
        chunk_size: Edges of a chunk.
    """
    start_us, end_us = config.month_us(month.number)
    all_edges = config.num_interactions(relation)
    total = config.share_until(all_edges, end_us) - config.share_until(all_edges, start_us)
    key = derive_key(config.seed, relation, month.number)
    surface = INTERACTIONS[relation]
    law = Response.of(config, surface).parameters
    appeals = month.appeals[surface]

    def generate(bounds: tuple[int, int]) -> Chunk:
        size = bounds[1] - bounds[0]
        src, dst, time_us = (np.empty(size, dtype=np.int64) for _ in range(3))
        is_noise = np.empty(size, dtype=np.bool_)
        _fill_edges(
            key, bounds[0], total, start_us, end_us, law, month.users, month.pins, month.interests, appeals,
            src, dst, time_us, is_noise,
        )  # fmt: skip
        batch = pa.record_batch([pa.array(src), pa.array(dst), pa.array(time_us).cast(pa.timestamp("us"))], schema=SCHEMA)
        return Chunk(batch=batch, is_noise=is_noise)

    return workers.map(generate, ranges(total, chunk_size))


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def cosine_of(interests: NDArray[np.float32], user: int, appeals: NDArray[np.float32], pin: int) -> Any:
    """The scalar product of a row of interests and a row of appeals, all of length 1."""
    interest, appeal = interests[user], appeals[pin]
    product = np.float32(0)
    for axis in range(len(interest)):
        product += interest[axis] * appeal[axis]
    return product


@numba.njit(nogil=True, cache=True)
def _fill_edges(
    key: Any,
    first: int,
    total: int,
    start_us: int,
    end_us: int,
    law: tuple[float, float, float, float],
    users: NDArray[np.uint32],
    pins: NDArray[np.uint32],
    interests: NDArray[np.float32],
    appeals: NDArray[np.float32],
    src: NDArray[np.int64],
    dst: NDArray[np.int64],
    time_us: NDArray[np.int64],
    is_noise: NDArray[np.bool_],
) -> None:
    noise = law[2]
    shown = np.empty(_SHOWN_AT_ONCE, dtype=np.int64)
    cosines = np.empty(_SHOWN_AT_ONCE)
    for row in range(len(src)):
        edge = first + row
        edge_key = key_at(key, edge)
        time_us[row] = start_us + np.int64((edge + unit_at(edge_key, 1)) / total * (end_us - start_us))
        user = alias_at(edge_key, 2, users)
        src[row] = user
        is_noise[row] = unit_at(edge_key, 3) < noise
        if is_noise[row]:
            dst[row] = alias_at(edge_key, _FIRST_TRIAL, pins)
        else:
            dst[row] = _choose(edge_key, user, law, pins, interests, appeals, shown, cosines)


@numba.njit(nogil=True, cache=True)
def _choose(
    key: Any,
    user: int,
    law: tuple[float, float, float, float],
    pins: NDArray[np.uint32],
    interests: NDArray[np.float32],
    appeals: NDArray[np.float32],
    shown: NDArray[np.int64],
    cosines: NDArray[np.float64],
) -> Any:
    bias, slope = law[0], law[1]
    for first in range(_FIRST_TRIAL, _FIRST_TRIAL + 2 * MAX_TRIALS, 2 * _SHOWN_AT_ONCE):
        # Drawn ahead of what the first response needs, so that many cache misses are under way at once: 3 times faster.
        for ahead in range(_SHOWN_AT_ONCE):
            shown[ahead] = alias_at(key, first + 2 * ahead, pins)
        for ahead in range(_SHOWN_AT_ONCE):
            cosines[ahead] = cosine_of(interests, user, appeals, shown[ahead])
        for ahead in range(_SHOWN_AT_ONCE):
            inverse = 1 + math.exp(-(bias + slope * cosines[ahead]))
            if unit_at(key, first + 2 * ahead + 1) * inverse < 1:
                return shown[ahead]
    return shown[_SHOWN_AT_ONCE - 1]
