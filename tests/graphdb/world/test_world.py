"""What a world answers, and the store that is built from it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pydantic
import pytest

from multifacet.graphdb import GraphError, GraphStore
from multifacet.graphdb.world import World, WorldConfig
from multifacet.ranking import FeatureConfig, build_examples


@pytest.fixture(scope="module")
def store(small: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphStore]:
    path = tmp_path_factory.mktemp("store") / "world.duckdb"
    reports = small.build_store(path)
    assert all(report.loaded == report.read for report in reports)
    with GraphStore.open(path, read_only=True) as store:
        yield store


def test_the_store_holds_every_edge_and_node(small: World, store: GraphStore) -> None:
    counts = store.counts()
    assert counts["nodes"] == {"user": small.num_users, "pin": small.num_pins, "advertiser": 20, "category": 5}
    assert counts["edges"] == {"clicks": 18_000, "converts": 2000, "made_by": small.num_pins, "in": small.num_pins}
    assert store.view(surface="offsite").num_edges["converts"] == 2000
    view = store.view(as_of=small.config.start + dt.timedelta(days=28), relations=["clicks"])
    assert view.num_edges["clicks"] == pq.read_metadata(small.edge_files("clicks")[0]).num_rows


def test_a_store_is_not_overwritten(small: World, store: GraphStore) -> None:
    with pytest.raises(GraphError, match="exists; remove it"):
        small.build_store(store.path)


def test_responses_come_with_the_true_probabilities(small: World, store: GraphStore) -> None:
    shown = store.sql("""
        SELECT "user", pin, epoch_us(start_time) AS start_us, r.pin IS NOT NULL AS responded,
               r.bought_again_at IS NOT NULL AS bought,
               r.time + INTERVAL 28 DAY <= (SELECT max(end_time) FROM periods) AS is_over
        FROM visits JOIN placements USING (context, period) JOIN periods USING (period)
        LEFT JOIN responses r USING ("user", context, period, pin)
    """)
    users, pins, start_us, responded = (shown[name].to_numpy() for name in ("user", "pin", "start_us", "responded"))
    for surface, rows, label in (
        ("onsite", np.ones(len(users), dtype=bool), responded),
        ("offsite", responded & shown["is_over"].fill_null(False).to_numpy(), shown["bought"].to_numpy()),
    ):
        truth = small.affinity(users[rows], pins[rows], start_us[rows], surface)
        assert truth.min() > 0, "who visits and what is placed lives"
        outcome = label[rows]
        for quarter in np.array_split(np.argsort(truth, kind="stable"), 4):
            error = outcome[quarter].sum() - truth[quarter].sum()
            assert abs(error) < 4 * np.sqrt((truth[quarter] * (1 - truth[quarter])).sum()), surface


def test_the_tables_keep_what_the_ranking_task_relies_on(small: World, store: GraphStore) -> None:
    config = small.config
    assert store.sql("SELECT * FROM periods ORDER BY period").to_pylist() == [
        {
            "period": week,
            "start_time": config.start + dt.timedelta(days=7 * (week - 1)),
            "end_time": min(config.start + dt.timedelta(days=7 * week), config.start + dt.timedelta(days=config.days)),
        }
        for week in range(1, 15)
    ]
    for table, key in (
        ("placements", "context, pin"),
        ("visits", '"user", context'),
        ("responses", '"user", context, pin'),
        ("purchases", '"user", pin, period'),
    ):
        (row,) = store.sql(f"SELECT count(*) AS rows, count(DISTINCT ({key})) AS keys FROM {table}").to_pylist()
        assert row["rows"] == row["keys"] > 100, table
    (row,) = store.sql("""
        SELECT bool_and(r.time >= start_time AND r.time < end_time) AS in_period,
               bool_and(bought_again_at > r.time AND bought_again_at <= r.time + INTERVAL 28 DAY
                        AND bought_again_at < (SELECT max(end_time) FROM periods)) AS bought_after,
               count(bought_again_at) AS num_bought
        FROM responses r JOIN periods USING (period)
    """).to_pylist()
    assert row["in_period"]
    assert row["bought_after"]
    assert row["num_bought"] > 50


def test_the_ranking_room_makes_examples_of_it(small: World, store: GraphStore) -> None:
    splits = small.config.splits
    features = FeatureConfig(purchase_relations=("clicks", "converts"))
    examples = build_examples(store, range(splits.training[0], splits.training[1] + 1), features=features)
    positives = examples.ctr_label == 1
    assert positives.sum() > 50
    assert (examples.advertiser_id >= 0).all()
    assert np.isfinite(examples.dense).all()
    start = small.config.period_us(splits.training[0])[0]
    truth = small.affinity(examples.user_id, examples.pin_id, np.full(len(positives), start))
    # A negative may be of a pin that died at a month's turn within the periods, and then has probability 0.
    assert truth[positives].mean() > 1.3 * truth[~positives].mean()


def test_affinity_broadcasts_and_knows_who_lives(small: World) -> None:
    start = small.config.start
    table = small.affinity(np.arange(20)[:, None], np.arange(30), start)
    assert table.shape == (20, 30)
    assert table[3, 4] == small.affinity(3, 4, start)
    assert small.affinity(3, 4, np.datetime64(start)) == small.affinity(3, 4, start.replace(tzinfo=dt.UTC)) == table[3, 4]
    last = small.num_users - 1
    assert small.affinity(last, 0, start) == 0, "not born yet"
    dead = int(np.flatnonzero(small.truth["pin_died"] == 2)[0])
    times = start + dt.timedelta(days=28) * np.arange(3)
    assert (small.affinity(int(np.flatnonzero(small.truth["user_died"] > 2)[0]), dead, times) > 0).tolist() == [
        True,
        True,
        False,
    ]
    assert not np.allclose(table, small.affinity(np.arange(20)[:, None], np.arange(30), start, "offsite"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 0.0), "user ids lie between -1 and -1; the world has ids 0 to"),
        ((0, 10**6, 0.0), "pin ids lie between 1000000"),
        ((0, 0, -0.1), "time 2024-12-31T21:36:00.000000 is outside the world, which lasts from 2025-01-01"),
        ((0, 0, 94.0), "outside the world"),
        ((0, 0, 0.0, "sideways"), "surface is 'sideways'; expected one of onsite, offsite"),
    ],
)
def test_questions_about_what_is_not_there_are_refused(small: World, arguments: tuple[Any, ...], message: str) -> None:
    user, pin, days, *surface = arguments
    with pytest.raises(ValueError, match=message):
        small.affinity(user, pin, small.config.start + dt.timedelta(days=days), *surface)
    with pytest.raises(ValueError, match="month 4 is not in the world, which has months 0 to 3"):
        small.interests(4)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_edges": 0},
        {"conversion_share": 1.0},
        {"days": 1},
        {"num_users": 1, "num_pins": 1, "num_advertisers": 1, "num_categories": 1},
        {"user_churn_per_month": 1.0, "pin_churn_per_month": 1.0, "days": 60},
        {"dim": 2, "interest_strength": 20.0, "drift_per_month": 1.0, "surface_correlation": -1.0, "days": 60},
        {"advertiser_coherence": 1.0, "noise_share": 1.0},
        {"activity_exponent": 1.01, "popularity_exponent": 20.0},
    ],
    ids=",".join,
)
def test_edge_cases_still_give_a_store(tmp_path: Path, settings: dict[str, Any]) -> None:
    few = {"num_users": 5, "num_pins": 6, "num_advertisers": 2, "num_edges": 40, "days": 28, "num_visits": 4}
    config = WorldConfig.model_validate({**few, **settings})
    world = World.generate(config, tmp_path / "world", num_threads=1)
    world.build_store(tmp_path / "world.duckdb")
    with GraphStore.open(tmp_path / "world.duckdb") as store:
        edges = store.counts()["edges"]
        assert edges["clicks"] + edges["converts"] == config.num_edges
        assert store.sql("SELECT count(*) AS n FROM periods").to_pylist() == [{"n": config.num_periods}]


def test_nothing_happens_in_a_world_without_visits(tmp_path: Path) -> None:
    world = World.generate(WorldConfig(num_users=5, num_pins=5, num_edges=10, days=10, num_visits=0), tmp_path / "world")
    world.build_store(tmp_path / "world.duckdb")
    with GraphStore.open(tmp_path / "world.duckdb") as store:
        assert store.sql("SELECT * FROM responses").num_rows == store.sql("SELECT * FROM purchases").num_rows == 0


@pytest.mark.parametrize(
    "settings",
    [{"num_user": 3}, {"num_users": 0}, {"noise_share": 1.1}, {"activity_exponent": 1.0}, {"dim": 1}, {"click_rate": 0.0}],
)
def test_senseless_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(settings))):
        WorldConfig.model_validate(settings)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in WorldConfig.model_fields.values())


def test_splits_part_the_periods_in_order() -> None:
    assert WorldConfig(days=371).splits.model_dump() == {
        "pretraining": (1, 36),
        "training": (37, 46),
        "validation": (47, 48),
        "test": (49, 53),
    }
    for days in range(56, 400, 7):
        splits = WorldConfig(days=days).splits
        spans = [splits.pretraining, splits.training, splits.validation, splits.test]
        assert [first for first, _ in spans] == [1, *(last + 1 for _, last in spans[:-1])]
        assert all(first <= last for first, last in spans)
        assert spans[-1][1] == days // 7
    with pytest.raises(ValueError, match="a ranking task needs 8, which are 56 days"):
        _ = WorldConfig(days=49).splits
