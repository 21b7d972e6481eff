"""Weighted draws of negatives from a context's placements, never of a bought pin."""

from __future__ import annotations

from dataclasses import dataclass
from logging import getLogger
from typing import TYPE_CHECKING, Any, Literal, get_args

import numba
import numpy as np

from multifacet.kernels.threads import run_ranges
from multifacet.ranking.examples.examples import column

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from multifacet.ranking.examples.features import QueryableStore

logger = getLogger(__name__)

Weighting = Literal["demand", "uniform"]
_MIN_GROUPS_PER_THREAD = 256
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """Drawn negatives.

    Attributes:
        keys: user_id, pin_id, context and period of each negative, [m] each.
        rate: Expected draws of each negative's exposure, float32 [m].
        positive_rate: Expected draws that each positive's exposure would have had as a negative, float32 [n].
    """

    keys: Mapping[str, NDArray[Any]]
    rate: NDArray[np.float32]
    positive_rate: NDArray[np.float32]


def sample_negatives(
    store: QueryableStore,
    positives: Mapping[str, NDArray[Any]],
    *,
    weighting: Weighting,
    negatives: int,
    seed: int,
) -> Negatives:
    """Draw negatives for positives from the placements of each positive's context.

    Args:
        store: Store with the tables placements, purchases and responses.
        positives: context, user_id, pin_id and period [n], ordered by (context, user_id).
        weighting: `demand` (a pin's responses in the period) or `uniform`.
        negatives: Draws a positive.
        seed: Seed of the draws.

    Returns:
        The negatives; none for a user and context in which nothing is left to draw.
    """
    context, user, period = (positives[name] for name in ("context", "user_id", "period"))
    chosen = np.unique(period).tolist()
    # A group is a user in a context: as the positives are ordered by (context, user), groups are runs.
    first, counts = _runs(context, user)
    num_draws = counts * negatives

    placements = store.sql(_placements_query(chosen, weighting))
    placed_context, placed_pin, weight = (column(placements, name) for name in ("context", "pin", "weight"))
    placed_offsets = np.stack([np.searchsorted(placed_context, context[first], side) for side in ("left", "right")], axis=1)
    bought = store.sql(_bought_query(chosen))
    _, bought_counts = _runs(column(bought, "context"), column(bought, "user_id"))

    draw_offsets = _offsets(num_draws)
    positions, available = draw_negatives(
        placed_pin,
        _offsets(weight),
        placed_offsets,
        column(bought, "pin"),
        _offsets(bought_counts),
        draw_offsets,
        np.random.default_rng(seed).random(int(draw_offsets[-1])),
    )
    draws_per_weight = np.where(available > 0, num_draws / np.maximum(available, 1), 0.0)
    drawn = positions >= 0
    if not drawn.all():
        logger.warning("%d of %d negatives could not be drawn: the user bought all that could be", (~drawn).sum(), len(drawn))
    group = np.repeat(np.arange(len(first)), num_draws)[drawn]
    placement = positions[drawn]
    row = first[group]
    return Negatives(
        keys={
            "user_id": user[row],
            "pin_id": placed_pin[placement],
            "context": context[row],
            "period": period[row],
        },
        rate=(draws_per_weight[group] * weight[placement]).astype(np.float32),
        positive_rate=_positive_rate(num_draws, available, counts, positives["demand"] if weighting == "demand" else None),
    )


def _positive_rate(
    num_draws: NDArray[np.int64], available: NDArray[Any], counts: NDArray[np.int64], demand: NDArray[Any] | None
) -> NDArray[np.float32]:
    """Give the draws that each positive would get, were it a negative: by its weight in what its group draws from.

    Where the user bought all that could be drawn, it would be the only one there, and get all draws.
    """
    nothing = np.repeat(available == 0, counts)
    per_weight = np.repeat(num_draws / np.maximum(available, 1), counts)
    rate: NDArray[np.float32] = np.where(nothing, np.repeat(num_draws, counts), per_weight * (1 if demand is None else demand))
    return rate.astype(np.float32)


def listed(periods: Iterable[int]) -> str:
    """Write periods as the inside of a SQL list.

    Example:
        >>> listed([37, 38])
        '37, 38'
    """
    return ", ".join(str(int(period)) for period in periods)


def _placements_query(chosen: Iterable[int], weighting: Weighting) -> str:
    """Write the query for the placements of contexts with a response, with their weights, in kernel order."""
    demand = f"""
        LEFT JOIN (SELECT period, pin, count(*) AS demand FROM responses
                   WHERE period IN ({listed(chosen)}) GROUP BY ALL) d
        ON p.period = d.period AND p.pin = d.pin
    """
    weight, join = ("coalesce(demand, 0)", demand) if weighting == "demand" else ("1", "")
    return f"""
        SELECT p.context, p.pin::BIGINT AS pin, ({weight})::BIGINT AS weight
        FROM placements p
        SEMI JOIN (SELECT context FROM responses WHERE period IN ({listed(chosen)})) r ON p.context = r.context
        {join}
        WHERE p.period IN ({listed(chosen)})
        ORDER BY p.context, p.pin
    """


def _bought_query(chosen: Iterable[int]) -> str:
    """Write the query for what each group's user bought in the period; at least the group's own positives."""
    return f"""
        SELECT r.context, r."user" AS user_id, p.pin::BIGINT AS pin
        FROM (SELECT DISTINCT context, "user", period FROM responses WHERE period IN ({listed(chosen)})) r
        JOIN (SELECT "user", pin, period FROM purchases WHERE period IN ({listed(chosen)})
              UNION SELECT "user", pin, period FROM responses WHERE period IN ({listed(chosen)})) p
        ON r."user" = p."user" AND r.period = p.period
        ORDER BY r.context, user_id, p.pin
    """


def _runs(*columns: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first row and the length of each run of equal values."""
    starts = np.ones(len(columns[0]), dtype=np.bool_)
    starts[1:] = np.any([values[1:] != values[:-1] for values in columns], axis=0)
    first = np.flatnonzero(starts)
    return first, np.diff(np.append(first, len(starts)))


def _offsets(counts: NDArray[Any]) -> NDArray[np.int64]:
    """Return the running sum before each count, and the total at the end."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


@numba.njit(nogil=True, cache=True)
def _last_at_most(values: NDArray[np.int64], start: int, stop: int, target: int) -> int:
    """Return the last position in [start, stop) whose value is at most the target."""
    low, high = start, stop
    while low < high:
        middle = (low + high) // 2
        if values[middle] <= target:
            low = middle + 1
        else:
            high = middle
    return low - 1


def draw_negatives(
    placed_pins: NDArray[np.int64],
    weight_before: NDArray[np.int64],
    placed_offsets: NDArray[np.int64],
    bought_pins: NDArray[np.int64],
    bought_offsets: NDArray[np.int64],
    draw_offsets: NDArray[np.int64],
    uniforms: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw placements for each group (a user in a context), with replacement, by integer weights.

    The bought pins' weight is cut out of the group's range before a draw is looked up, so nothing is rejected
    and drawn again: one uniform number is one draw, and the same numbers give the same draws whatever the
    number of threads.

    Args:
        placed_pins: Pins placed, ascending within a context, [P].
        weight_before: Sum of the weights of all placements before each, [P + 1].
        placed_offsets: First and last + 1 placement of each group's context, [G, 2].
        bought_pins: Pins that the group's user bought in the period, ascending within a group.
        bought_offsets: First bought pin of each group, [G + 1].
        draw_offsets: First draw of each group, [G + 1].
        uniforms: One number in [0, 1) a draw, [draw_offsets[-1]].

    Returns:
        The placement of each draw, int64 [draws] (-1 where the group has nothing left to draw), and each
        group's total weight that can be drawn, int64 [G].
    """
    positions = np.full(len(uniforms), -1, dtype=np.int64)
    available = np.zeros(len(draw_offsets) - 1, dtype=np.int64)
    arrays = (placed_pins, weight_before, placed_offsets, bought_pins, bought_offsets, draw_offsets, uniforms)
    run_ranges(
        lambda start, stop: _draw_groups(*arrays, positions, available, start, stop),
        len(available),
        min_size=_MIN_GROUPS_PER_THREAD,
    )
    return positions, available


@numba.njit(nogil=True, cache=True)
def _draw_groups(
    placed_pins: NDArray[np.int64],
    weight_before: NDArray[np.int64],
    placed_offsets: NDArray[np.int64],
    bought_pins: NDArray[np.int64],
    bought_offsets: NDArray[np.int64],
    draw_offsets: NDArray[np.int64],
    uniforms: NDArray[np.float64],
    positions: NDArray[np.int64],
    available: NDArray[np.int64],
    first_group: int,
    last_group: int,
) -> None:
    for group in range(first_group, last_group):
        start, stop = placed_offsets[group, 0], placed_offsets[group, 1]
        first_bought, last_bought = bought_offsets[group], bought_offsets[group + 1]
        excluded = np.empty(last_bought - first_bought, dtype=np.int64)
        num_excluded = 0
        left = weight_before[stop] - weight_before[start]
        for bought in range(first_bought, last_bought):
            position = _last_at_most(placed_pins, start, stop, bought_pins[bought])
            if position >= start and placed_pins[position] == bought_pins[bought]:
                excluded[num_excluded] = position
                num_excluded += 1
                left -= weight_before[position + 1] - weight_before[position]
        available[group] = left
        if left <= 0:
            continue
        for draw in range(draw_offsets[group], draw_offsets[group + 1]):
            target = weight_before[start] + min(np.int64(uniforms[draw] * left), left - 1)
            for index in range(num_excluded):
                position = excluded[index]
                if weight_before[position] > target:
                    break
                target += weight_before[position + 1] - weight_before[position]
            positions[draw] = _last_at_most(weight_before, start, stop, target)
