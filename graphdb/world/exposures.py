"""Tables of a ranking task: contexts with placed pins, users' visits to them, and their responses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Final

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from multifacet.graphdb.counter import alias_at, below_at, derive_key, key_at, unit_at
from multifacet.graphdb.threads import Workers, ranges
from multifacet.graphdb.world.config import DAY_US, MONTH_DAYS, PERIOD_DAYS, WorldConfig
from multifacet.graphdb.world.interactions import cosine_of
from multifacet.graphdb.world.month import Month
from multifacet.graphdb.world.response import Response

_REQUIRED: Final = {"nullable": False}
_KEYS: Final = [pa.field("context", pa.int32(), **_REQUIRED), pa.field("period", pa.int32(), **_REQUIRED)]
_USER: Final = pa.field("user", pa.int64(), **_REQUIRED)
_PIN: Final = pa.field("pin", pa.int64(), **_REQUIRED)
_TIME: Final = pa.timestamp("us")

#: Table -> its columns, as in the store of The Complete Journey.
SCHEMAS: Final = {
    "placements": pa.schema([*_KEYS, _PIN]),
    "visits": pa.schema([_USER, *_KEYS]),
    "responses": pa.schema([_USER, *_KEYS, _PIN, pa.field("time", _TIME, **_REQUIRED), pa.field("bought_again_at", _TIME)]),
}
PERIODS_SCHEMA: Final = pa.schema(
    [
        pa.field("period", pa.int32(), **_REQUIRED),
        pa.field("start_time", _TIME, **_REQUIRED),
        pa.field("end_time", _TIME, **_REQUIRED),
    ]
)
#: A conversion comes within as many days of the response.
_CONVERSION_US: Final = 28 * DAY_US
_VISITS_PER_CHUNK: Final = 16_384
_FIRST_DRAW: Final = 4


def periods(config: WorldConfig) -> pa.Table:
    """The table `periods`: number, start and end of each."""
    numbers = range(1, config.num_periods + 1)
    starts, ends = zip(*(config.period_us(number) for number in numbers), strict=True)
    return pa.table([pa.array(numbers, pa.int32()), pa.array(starts, _TIME), pa.array(ends, _TIME)], schema=PERIODS_SCHEMA)


def stream(config: WorldConfig, month: Month, workers: Workers) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Generates a month's ranking tables piece by piece.

    Each period has its contexts, each with pins placed there that are drawn by popularity. A visit is of a user drawn by
    activity to a context drawn evenly; all the pins placed there are shown, at one time. A shown pin is responded to with the
    click probability of `Response`, and one that is responded to is bought again, at some time within 28 days, with the
    conversion probability; `bought_again_at` is null if it is not, or after the world's end. Responses are not edges too.

    Yields:
        Name of the table and rows of it; the rows of a table's pieces are distinct.
    """
    first = month.number * (MONTH_DAYS // PERIOD_DAYS) + 1
    for number in range(first, min(first + MONTH_DAYS // PERIOD_DAYS, config.num_periods + 1)):
        yield from _Period(config, month, number).stream(workers)


@dataclasses.dataclass(frozen=True)
class _Period:
    config: WorldConfig
    month: Month
    number: int

    def stream(self, workers: Workers) -> Iterator[tuple[str, pa.RecordBatch]]:
        config, number = self.config, self.number
        placed, offsets = self._placements()
        contexts = number * config.contexts_per_period + np.arange(config.contexts_per_period)
        yield "placements", self._batch("placements", {"context": np.repeat(contexts, np.diff(offsets)), "pin": placed})
        cell, user = self._visits()
        yield "visits", self._batch("visits", {"context": contexts[cell], "user": user})
        key = derive_key(config.seed, "exposure", number)
        laws = (Response.of(config, "onsite").parameters, Response.of(config, "offsite").parameters)
        times_us = (*config.period_us(number), config.end_us)
        appeals = (self.month.appeals["onsite"], self.month.appeals["offsite"])

        def respond(bounds: tuple[int, int]) -> tuple[NDArray[np.int64], ...]:
            first, stop = bounds
            capacity = int((offsets[cell[first:stop] + 1] - offsets[cell[first:stop]]).sum())
            out = np.empty((4, capacity), dtype=np.int64)
            count = _respond(key, first, stop, laws, times_us, cell, user, placed, offsets, self.month.interests, appeals, out)
            return tuple(column[:count].copy() for column in out)

        for visit, pin, time_us, again_us in workers.map(respond, ranges(len(user), _VISITS_PER_CHUNK)):
            again = pa.array(again_us, mask=again_us < 0).cast(_TIME)
            columns = {"user": user[visit], "context": contexts[cell[visit]], "pin": pin, "time": time_us}
            yield "responses", self._batch("responses", {**columns, "bought_again_at": again})

    def _placements(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pins placed in each context, ascending, and the first one of each context."""
        config = self.config
        drawn = np.empty((config.contexts_per_period, config.placements_per_context), dtype=np.int64)
        _draw_rows(derive_key(config.seed, "placement", self.number), self.month.pins, drawn)
        distinct = [np.unique(row) for row in drawn]
        return np.concatenate(distinct), np.cumsum([0, *map(len, distinct)])

    def _visits(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Context (from 0) and user of each visit, distinct."""
        config = self.config
        start_us, end_us = config.period_us(self.number)
        count = config.share_until(config.num_visits, end_us) - config.share_until(config.num_visits, start_us)
        visits = np.empty((2, count), dtype=np.int64)
        _draw_visits(derive_key(config.seed, "visit", self.number), self.month.users, config.contexts_per_period, visits)
        pairs = np.unique((visits[0] << 32) | visits[1])
        return pairs >> 32, pairs & 0xFFFFFFFF

    def _batch(self, table: str, columns: dict[str, Any]) -> pa.RecordBatch:
        schema = SCHEMAS[table]
        size = len(columns["pin"] if "pin" in columns else columns["user"])
        columns["period"] = np.full(size, self.number)
        return pa.record_batch([pa.array(columns[field.name]).cast(field.type) for field in schema], schema=schema)


@numba.njit(nogil=True, cache=True)
def _draw_rows(key: Any, entries: NDArray[np.uint32], out: NDArray[np.int64]) -> None:
    for row in range(out.shape[0]):
        row_key = key_at(key, row)
        for position in range(out.shape[1]):
            out[row, position] = alias_at(row_key, position, entries)


@numba.njit(nogil=True, cache=True)
def _draw_visits(key: Any, users: NDArray[np.uint32], num_contexts: int, out: NDArray[np.int64]) -> None:
    for visit in range(out.shape[1]):
        visit_key = key_at(key, visit)
        out[0, visit] = below_at(visit_key, 0, num_contexts)
        out[1, visit] = alias_at(visit_key, 1, users)


@numba.njit(nogil=True, cache=True)
def _probability(law: tuple[float, float, float, float], cosine: float) -> Any:
    bias, slope, noise, rate = law
    return (1 - noise) / (1 + math.exp(-(bias + slope * cosine))) + noise * rate


@numba.njit(nogil=True, cache=True)
def _respond(
    key: Any,
    first: int,
    stop: int,
    laws: tuple[tuple[float, float, float, float], tuple[float, float, float, float]],
    times_us: tuple[int, int, int],
    cell: NDArray[np.int64],
    user: NDArray[np.int64],
    placed: NDArray[np.int64],
    offsets: NDArray[np.int64],
    interests: NDArray[np.float32],
    appeals: tuple[NDArray[np.float32], NDArray[np.float32]],
    out: NDArray[np.int64],
) -> int:
    start_us, end_us, world_end_us = times_us
    onsite, offsite = appeals
    count = 0
    for visit in range(first, stop):
        visit_key = key_at(key, visit)
        time_us = start_us + np.int64(unit_at(visit_key, 1) * (end_us - start_us))
        for position in range(offsets[cell[visit]], offsets[cell[visit] + 1]):
            pin = placed[position]
            draw = _FIRST_DRAW + 3 * (position - offsets[cell[visit]])
            if unit_at(visit_key, draw) >= _probability(laws[0], cosine_of(interests, user[visit], onsite, pin)):
                continue
            again_us = np.int64(-1)
            if unit_at(visit_key, draw + 1) < _probability(laws[1], cosine_of(interests, user[visit], offsite, pin)):
                again_us = time_us + 1 + np.int64(unit_at(visit_key, draw + 2) * (_CONVERSION_US - 1))
                if again_us >= world_end_us:
                    again_us = np.int64(-1)
            out[0, count], out[1, count], out[2, count], out[3, count] = visit, pin, time_us, again_us
            count += 1
    return count
