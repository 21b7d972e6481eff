"""Labelled examples from a graph store: promoted responses and sampled negatives.

An exposure is a (user, context, pin): the user visited the context (a store in a week) and the pin was promoted
there. It is a positive if the user responded. There are far too many exposures to write down; negatives are
drawn from the placements of each positive's own context.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from logging import getLogger
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multifacet.ranking.examples import Examples, column
from multifacet.ranking.features import (
    FeatureConfig,
    dense_feature_names,
    dense_features,
    load_events,
    load_pins,
)
from multifacet.ranking.negatives import WEIGHTINGS, listed, sample_negatives
from multifacet.ranking.recent import recent_pins
from multifacet.tables.boundary import expect_attributes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from multifacet.ranking.features import QueryableStore
    from multifacet.ranking.negatives import Weighting

logger = getLogger(__name__)

CONVERSION_WINDOW = timedelta(days=28)


def build_examples(
    store: QueryableStore,
    periods: Iterable[int],
    *,
    weighting: Weighting = "demand",
    negatives: int = 4,
    seed: int = 0,
    labels_known_before: datetime | None = None,
    features: FeatureConfig | None = None,
) -> Examples:
    """Build labelled examples of a range of periods: the positives first, then their negatives.

    Negatives are drawn with replacement from the placements of the positive's context, never a pin that the
    user bought in that period. With `demand` a pin is drawn in proportion to its promoted purchases in the whole
    chain in that period, so that popularity alone cannot tell positives from negatives (pins that nobody bought
    are never drawn); with `uniform` each placement counts the same.

    Args:
        store: Store with the plain tables periods, placements, responses, visits and purchases.
        periods: Periods of the exposures.
        weighting: How negatives are drawn.
        negatives: Negatives a positive.
        seed: Seed of the draws; the same seed gives the same examples.
        labels_known_before: Conversion labels whose window ends after this time are left out (for training
            examples: the start of the test periods). None: the end of the data.
        features: Which edges the dense features count.

    Returns:
        The examples with their dense features.

    Raises:
        ValueError: If a period is unknown, nothing was responded to in the periods, or a response is not an
            exposure (no such visit or no such placement).
    """
    started = time.perf_counter()
    expect_attributes("store", store, ("sql",), "a graph store, or what answers SQL as one")
    if negatives < 1:
        raise ValueError(f"negatives is {negatives}; expected at least 1 a positive")
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}; expected one of {', '.join(WEIGHTINGS)}")
    feature_config = features or FeatureConfig()
    chosen = sorted({int(period) for period in periods})
    period_table = load_periods(store)
    _check_periods(store, chosen, period_table)

    positives = _load_positives(store, chosen)
    conversions = _conversion_labels(positives, period_table, labels_known_before)
    drawn = sample_negatives(store, positives, weighting=weighting, negatives=negatives, seed=seed)
    keys = {name: np.concatenate([positives[name], drawn.keys[name]]) for name in drawn.keys}
    labels = np.zeros(len(keys["pin_id"]), dtype=np.float32)
    labels[: len(conversions)] = 1
    cvr_label = np.full(len(labels), np.nan, dtype=np.float32)
    cvr_label[: len(conversions)] = conversions
    rates = np.concatenate([drawn.positive_rate, drawn.rate])

    pins = load_pins(store, feature_config)
    exposures = pa.table({name: keys[name] for name in ("user_id", "pin_id", "period")})
    events = load_events(store, feature_config)
    dense = dense_features(events, period_table, pins, exposures, feature_config)
    length = feature_config.recent_pins
    recent = recent_pins(events, period_table, keys["user_id"], keys["period"], length=length) if length else None
    examples = Examples(
        user_id=keys["user_id"],
        pin_id=keys["pin_id"],
        advertiser_id=_advertisers(pins, keys["pin_id"]),
        context=keys["context"],
        period=keys["period"],
        dense=dense,
        ctr_label=labels,
        cvr_label=cvr_label,
        sampling_rate=np.where(labels > 0, np.float32(1), rates),
        negative_rate=rates,
        dense_names=dense_feature_names(feature_config),
        metadata={
            "periods": chosen,
            "weighting": weighting,
            "negatives": negatives,
            "seed": seed,
            "labels_known_before": labels_known_before and labels_known_before.isoformat(),
            "features": feature_config.model_dump(mode="json"),
        },
        recent=recent,
    )
    logger.info("%r of periods %s in %.1f s", examples, chosen, time.perf_counter() - started)
    return examples


def load_periods(store: QueryableStore) -> pa.Table:
    """Read a store's periods: period, start_time, end_time, in order.

    Raises:
        ValueError: If the store has no such table.
    """
    try:
        return store.sql("SELECT period, start_time, end_time FROM periods ORDER BY period")
    except Exception as error:
        # The store's own class of errors is no part of what is asked of a store.
        if "periods" not in str(error):
            raise
        raise ValueError(
            "the store has no table `periods`: a ranking task out of a store needs the plain tables periods, "
            "placements, responses, "
            "visits and purchases. Labelled rows of your own are read by read_examples (`multifacet train "
            "--examples`), or out of a "
            "store by a query (--query)"
        ) from error


def _check_periods(store: QueryableStore, chosen: list[int], period_table: pa.Table) -> None:
    unknown = set(chosen) - set(period_table["period"].to_pylist())
    if not chosen or unknown:
        raise ValueError(f"periods {sorted(unknown) or 'none'} given; the store's table periods has none such")
    stray = store.sql(
        f"""
        SELECT count(*) FILTER (v.context IS NULL) AS unvisited, count(*) FILTER (p.context IS NULL) AS unplaced
        FROM responses r
        LEFT JOIN visits v ON r."user" = v."user" AND r.context = v.context
        LEFT JOIN placements p ON r.context = p.context AND r.pin = p.pin
        WHERE r.period IN ({listed(chosen)})
        """
    ).to_pylist()[0]
    if stray["unvisited"] or stray["unplaced"]:
        raise ValueError(
            f"table responses: {stray['unvisited']} rows without a row in visits and {stray['unplaced']} without "
            "one in placements; a response must be to a pin promoted in a context that its user visited"
        )


def _load_positives(store: QueryableStore, chosen: list[int]) -> dict[str, NDArray[Any]]:
    table = store.sql(
        f"""
        SELECT context::INTEGER AS context, "user"::BIGINT AS user_id, pin::BIGINT AS pin_id,
               period::INTEGER AS period, epoch_us("time") AS time_us,
               coalesce(epoch_us(bought_again_at), {np.iinfo(np.int64).max}) AS bought_again_us,
               count(*) OVER (PARTITION BY period, pin) AS demand
        FROM responses WHERE period IN ({listed(chosen)})
        ORDER BY context, user_id, pin_id
        """
    )
    if table.num_rows == 0:
        raise ValueError(f"table responses has no row in periods {chosen}; choose other periods")
    return {name: column(table, name) for name in table.column_names}


def _conversion_labels(
    positives: dict[str, NDArray[Any]], period_table: pa.Table, labels_known_before: datetime | None
) -> NDArray[np.float32]:
    """Label a positive 1 if bought again within the window, 0 if not, NaN if the window is not over."""
    window_us = CONVERSION_WINDOW // timedelta(microseconds=1)
    horizon = max(period_table["end_time"].to_pylist())
    if labels_known_before is not None:
        horizon = min(horizon, labels_known_before)
    horizon_us = (horizon - datetime(1970, 1, 1)) // timedelta(microseconds=1)
    window_end_us = positives["time_us"] + window_us
    again = (positives["bought_again_us"] <= window_end_us).astype(np.float32)
    return np.where(window_end_us <= horizon_us, again, np.float32(np.nan))


def _advertisers(pins: pa.Table, pin_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each pin's advertiser, -1 where it has none."""
    known = pins.filter(pc.is_valid(pins["advertiser_id"])).sort_by("pin_id")
    known_pins, advertisers = column(known, "pin_id"), column(known, "advertiser_id")
    if len(known_pins) == 0:
        return np.full(len(pin_ids), -1, dtype=np.int64)
    position = np.minimum(np.searchsorted(known_pins, pin_ids), len(known_pins) - 1)
    return np.where(known_pins[position] == pin_ids, advertisers[position], -1).astype(np.int64)
