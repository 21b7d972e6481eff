from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.graphdb import GraphStore
from multifacet.ranking import FeatureConfig, build_examples
from multifacet.ranking.features import dense_feature_names, dense_features

from .conftest import World, period_start

CONFIG = FeatureConfig(recent_periods=2, max_periods_since=5)
NUM_PERIODS = 7
CATEGORIES = {0: "a", 1: "a", 2: "b"}
ADVERTISERS = {0: 10, 1: 11, 3: 11}

Event = tuple[int, int, dt.datetime]


def compute(events: list[Event], exposures: list[tuple[int, int, int]]) -> np.ndarray:
    pins = sorted({*CATEGORIES, *ADVERTISERS})
    return dense_features(
        pa.table(
            {
                "user_id": pa.array([event[0] for event in events], pa.int64()),
                "pin_id": pa.array([event[1] for event in events], pa.int64()),
                "time": pa.array([event[2] for event in events], pa.timestamp("us")),
            }
        ),
        pa.table(
            {
                "period": list(range(1, NUM_PERIODS + 1)),
                "start_time": [period_start(period) for period in range(1, NUM_PERIODS + 1)],
            }
        ),
        pa.table(
            {
                "pin_id": pins,
                "category_id": [CATEGORIES.get(pin) for pin in pins],
                "advertiser_id": [ADVERTISERS.get(pin) for pin in pins],
            }
        ),
        pa.table(
            {
                "user_id": [exposure[0] for exposure in exposures],
                "pin_id": [exposure[1] for exposure in exposures],
                "period": [exposure[2] for exposure in exposures],
            }
        ),
        CONFIG,
    )


def oracle(events: list[Event], exposure: tuple[int, int, int]) -> list[float]:
    """The features of one exposure, by their definition."""
    user, pin, period = exposure
    past = [event for event in events if event[2] < period_start(period)]
    # All that came before the first period counts as one period before it.
    periods = [max((p for p in range(1, period) if event[2] >= period_start(p)), default=0) for event in past]
    recent = {id(e) for e, p in zip(past, periods, strict=True) if p >= period - CONFIG.recent_periods}

    def same(mapping: dict[int, str] | dict[int, int], event: Event) -> bool:
        return event[0] == user and pin in mapping and mapping.get(event[1]) == mapping[pin]

    kinds = [
        [event for event in past if event[:2] == (user, pin)],
        [event for event in past if same(CATEGORIES, event)],
        [event for event in past if same(ADVERTISERS, event)],
        [event for event in past if event[1] == pin],
        [event for event in past if event[0] == user],
    ]
    features = []
    for kind in kinds:
        features += [len(kind), sum(id(event) in recent for event in kind)]
    since = [period - p for event, p in zip(past, periods, strict=True) if event[:2] == (user, pin)]
    return [float(np.log1p(count)) for count in [*features, min([*since, CONFIG.max_periods_since])]]


times = st.integers(-10, 7 * NUM_PERIODS).map(lambda days: period_start(1) + dt.timedelta(days=days))
events_strategy = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), times), max_size=40)
ALL_EXPOSURES = [(u, p, period) for u in range(4) for p in range(5) for period in range(1, NUM_PERIODS + 1)]


@settings(max_examples=10)
@given(events=events_strategy)
def test_features_are_what_a_scan_of_the_past_counts(events: list[Event]) -> None:
    expected = np.array([oracle(events, exposure) for exposure in ALL_EXPOSURES])
    np.testing.assert_allclose(compute(events, ALL_EXPOSURES), expected, rtol=1e-6)


@settings(max_examples=10)
@given(events=events_strategy, later=events_strategy, period=st.integers(1, NUM_PERIODS))
def test_no_event_at_or_after_the_start_of_the_period_changes_a_feature(
    events: list[Event], later: list[Event], period: int
) -> None:
    start = period_start(period)
    future = [(user, pin, start + abs(time - start)) for user, pin, time in later]
    exposures = [exposure for exposure in ALL_EXPOSURES if exposure[2] <= period]
    assert (compute(events, exposures) == compute(events + future, exposures)).all()


def test_an_event_at_the_very_start_of_a_period_belongs_to_it() -> None:
    events = [(0, 0, period_start(3))]
    unseen, seen = compute(events, [(0, 0, 3), (0, 0, 4)])
    assert unseen[0] == 0
    assert seen[0] == pytest.approx(np.log(2))


def test_examples_carry_the_features_of_the_stores_edges(store: GraphStore, world: World) -> None:
    examples = build_examples(store, [8], seed=1)
    assert examples.dense_names == dense_feature_names(FeatureConfig())
    past = {(u, p, t) for u, _, p, t in world.purchases if t < period_start(8)}
    user_pin = [
        sum((u, p) == key for u, p, _ in past) for key in zip(examples.user_id.tolist(), examples.pin_id.tolist(), strict=True)
    ]
    np.testing.assert_allclose(examples.dense[:, 0], np.log1p(user_pin), rtol=1e-6)
    assert max(user_pin) > 1


def test_relations_are_chosen_by_name(store: GraphStore, world: World) -> None:
    only_buys = FeatureConfig(purchase_relations=("buys",))
    examples = build_examples(store, [8], seed=1, features=only_buys)
    promoted = set(world.responses())
    past = {(u, p, t) for u, c, p, t in world.purchases if t < period_start(8) and (u, c, p) not in promoted}
    pin_total = [sum(p == pin for _, p, _ in past) for pin in examples.pin_id.tolist()]
    column = examples.dense_names.index("log_pin_total")
    np.testing.assert_allclose(examples.dense[:, column], np.log1p(pin_total), rtol=1e-6)


def test_an_unknown_period_is_refused() -> None:
    with pytest.raises(ValueError, match="1 exposures became 0"):
        compute([], [(0, 0, 99)])
