"""Recent pins: right at each point in time, and what a ranker with a sequence makes of them."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.graphdb import GraphStore
from multifacet.ranking import (
    Examples,
    FeatureConfig,
    RankingResult,
    arm_config,
    build_examples,
    evaluate,
    export_model,
    load_model,
    train,
)
from multifacet.ranking.examples.recent import RecentPins, recent_pins
from tests.ranking.conftest import START, WEEK, Planted, World, period_start
from tests.ranking.training.test_training import SMALL

LENGTH = 3
PERIODS = pa.table({"period": [7, 3, 5], "start_time": [START + WEEK * week for week in (4, 0, 2)]})
EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(-40, 40)), max_size=30)
EXPOSED = st.lists(st.tuples(st.integers(0, 4), st.sampled_from([3, 5, 7])), min_size=1, max_size=8)


def events_table(events: list[tuple[int, int, int]]) -> pa.Table:
    times = [START + dt.timedelta(days=day) for _, _, day in events]
    return pa.table(
        {
            "user_id": pa.array([user for user, _, _ in events], pa.int64()),
            "pin_id": pa.array([pin for _, pin, _ in events], pa.int64()),
            "time": pa.array(times, pa.timestamp("us")),
        }
    )


def find(events: list[tuple[int, int, int]], exposed: list[tuple[int, int]]) -> list[list[int]]:
    users, periods = (np.array(column) for column in zip(*exposed, strict=True))
    found = recent_pins(events_table(events), PERIODS, users, periods.astype(np.int32), length=LENGTH)
    return [row[:count].tolist() for row, count in zip(found.pin_ids, found.num_recent, strict=True)]


@given(events=EVENTS, exposed=EXPOSED)
@settings(deadline=None, max_examples=60)
def test_they_are_the_latest_before_the_exposures_period(
    events: list[tuple[int, int, int]], exposed: list[tuple[int, int]]
) -> None:
    starts = dict(zip(PERIODS["period"].to_pylist(), PERIODS["start_time"].to_pylist(), strict=True))
    expected = []
    for user, period in exposed:
        before = [(day, pin) for other, pin, day in events if other == user and START + dt.timedelta(days=day) < starts[period]]
        expected.append([pin for _, pin in sorted(before, reverse=True)[:LENGTH]])
    assert find(events, exposed) == expected


@given(events=EVENTS, exposed=EXPOSED, later=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(28, 90))))
@settings(deadline=None, max_examples=40)
def test_nothing_at_or_after_the_period_changes_them(
    events: list[tuple[int, int, int]], exposed: list[tuple[int, int]], later: list[tuple[int, int, int]]
) -> None:
    assert find([*events, *later], exposed) == find(events, exposed)


def test_examples_keep_them_in_files_and_parts(store: GraphStore, world: World, tmp_path: Path) -> None:
    examples = build_examples(store, [8, 9], features=FeatureConfig(recent_pins=4))
    plain = build_examples(store, [8, 9])
    assert plain.recent is None
    assert (plain.dense == examples.dense).all()
    recent = examples.recent
    assert recent is not None
    assert recent.num_recent.max() == 4
    for number in range(0, len(examples), 97):
        begin = period_start(int(examples.period[number]))
        bought = {(time, pin) for user, _, pin, time in world.purchases if user == examples.user_id[number] and time < begin}
        expected = [pin for _, pin in sorted(bought, reverse=True)[:4]]
        assert recent.pin_ids[number, : recent.num_recent[number]].tolist() == expected
    examples.save(tmp_path / "examples.parquet")
    loaded = Examples.load(tmp_path / "examples.parquet")
    assert loaded.fingerprint() == examples.fingerprint() != plain.fingerprint()
    assert loaded.take(np.arange(5)).recent.num_recent.tolist() == recent.num_recent[:5].tolist()


def test_a_view_gives_what_its_window_holds(store: GraphStore) -> None:
    config = FeatureConfig(recent_pins=4)
    whole = build_examples(store, [6], features=config)
    with_view = store.view(as_of=period_start(6))
    windowed = build_examples(with_view, [6], features=config)
    with_view.close()
    assert windowed.recent is not None
    assert whole.recent is not None
    assert (windowed.recent.pin_ids == whole.recent.pin_ids).all()


def test_lists_are_cut_and_nulls_refused() -> None:
    lists = pa.chunked_array([[[1, 2, 3], []], [[4]]], type=pa.list_(pa.int64()))
    recent = RecentPins.from_arrow(lists, length=2)
    assert recent.pin_ids.tolist() == [[1, 2], [0, 0], [4, 0]]
    assert recent.num_recent.tolist() == [2, 0, 1]
    assert recent.to_arrow().to_pylist() == [[1, 2], [], [4]]
    with pytest.raises(ValueError, match="1 null lists and 1 null ids"):
        RecentPins.from_arrow(pa.chunked_array([[None, [1, None]]], type=pa.list_(pa.int64())), length=2)


def with_history(examples: Examples, generator: np.random.Generator) -> Examples:
    """Clicks that only the recent pins tell: the candidate or its neighbour was among them."""
    num_rows = len(examples)
    pin_ids = 1000 + generator.integers(0, 30, (num_rows, LENGTH))
    candidate = 1000 + generator.integers(0, 30, num_rows)
    counts = generator.integers(0, LENGTH + 1, num_rows).astype(np.int32)
    seen = ((pin_ids == candidate[:, None]) & (np.arange(LENGTH) < counts[:, None])).any(1)
    planted = generator.random(num_rows) < 0.5
    pin_ids[planted & ~seen, 0] = candidate[planted & ~seen]
    seen = ((pin_ids == candidate[:, None]) & (np.arange(LENGTH) < counts[:, None])).any(1)
    clicked = generator.random(num_rows) < np.where(seen, 0.8, 0.2)
    return replace(
        examples,
        user_id=generator.integers(0, 400, num_rows),
        pin_id=candidate,
        ctr_label=clicked.astype(np.float32),
        cvr_label=np.where(clicked, 1, np.nan).astype(np.float32),
        recent=RecentPins(pin_ids=pin_ids, num_recent=counts),
    )


def nothing(length: int) -> RecentPins:
    return RecentPins(pin_ids=np.zeros((2000, length), np.int64), num_recent=np.zeros(2000, np.int32))


@pytest.fixture(scope="module")
def history(planted: Planted) -> tuple[Examples, Examples]:
    generator = np.random.default_rng(2)
    return with_history(planted.train, generator), with_history(planted.valid, generator)


def fit(history: tuple[Examples, Examples], planted: Planted, **fields: object) -> RankingResult:
    settings = SMALL | {"max_epochs": 3, "validations_per_epoch": 1, "num_attention_heads": 2, **fields}
    if settings["sequence"] != "transformer":
        del settings["num_attention_heads"]
    return train(*history, arm_config("pretrained", **settings), snapshots=planted.snapshots)


@pytest.mark.slow
@pytest.mark.parametrize(("sequence", "table"), [("attention", "separate"), ("transformer", "shared")])
def test_the_ranker_learns_what_only_they_tell_and_is_exported_with_them(
    history: tuple[Examples, Examples], planted: Planted, sequence: str, table: str, tmp_path: Path
) -> None:
    result = fit(history, planted, sequence=sequence, sequence_table=table)
    scores = result.score(history[1])
    assert evaluate(scores, history[1])["ctr"]["roc_auc"] > 0.65
    names = {spec.name for spec in result.model.specs}
    assert ("recent_pins_kge" in names) == (table == "separate")
    export_model(tmp_path / "model", result)
    np.testing.assert_allclose(load_model(tmp_path / "model").score(history[1]), scores, rtol=1e-4, atol=1e-6)
    blind = replace(
        history[1], recent=RecentPins(pin_ids=np.zeros((2000, LENGTH), np.int64), num_recent=np.zeros(2000, np.int32))
    )
    assert evaluate(result.score(blind), blind)["ctr"]["roc_auc"] < 0.56


def test_examples_without_them_are_refused(history: tuple[Examples, Examples], planted: Planted) -> None:
    plain = tuple(replace(examples, recent=None) for examples in history)
    with pytest.raises(ValueError, match="the examples have no recent pins"):
        fit(plain, planted, sequence="attention")
    longer = replace(history[1], recent=nothing(9))
    with pytest.raises(ValueError, match="reads 3 recent pins, the examples have 9"):
        fit((history[0], longer), planted, sequence="attention")
