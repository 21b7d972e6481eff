from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from multifacet.graphdb import GraphStore
from multifacet.ranking import Examples, Weighting, build_examples, evaluate
from multifacet.ranking.examples.examples import concatenate
from tests.ranking.conftest import World, period_start, random_world

PERIODS = (5, 6, 7)


def keys(examples: Examples, label: int) -> list[tuple[int, int, int]]:
    chosen = examples.take(examples.ctr_label == label)
    return list(zip(chosen.user_id.tolist(), chosen.context.tolist(), chosen.pin_id.tolist(), strict=True))


def expected_rates(world: World, weighting: Weighting, negatives: int) -> dict[tuple[int, int, int], float]:
    """Rates of all (user, context, pin) that may be drawn, by the definition."""
    positives = [key for key in world.responses() if world.period(key[1]) in PERIODS]
    demand = Counter((world.period(context), pin) for _, context, pin in positives)
    rates: dict[tuple[int, int, int], float] = {}
    for (user, context), num_positives in Counter((user, context) for user, context, _ in positives).items():
        period = world.period(context)
        bought = {p for u, c, p, _ in world.purchases if u == user and world.period(c) == period}
        weights = {
            pin: 1 if weighting == "uniform" else demand[period, pin]
            for placed, pin in world.placements
            if placed == context and pin not in bought
        }
        for pin, weight in weights.items():
            if weight:
                rates[user, context, pin] = negatives * num_positives * weight / sum(weights.values())
    return rates


def test_positives_are_the_responses_of_the_periods(store: GraphStore, world: World) -> None:
    examples = build_examples(store, PERIODS, seed=3)
    positives = [key for key in world.responses() if world.period(key[1]) in PERIODS]
    assert sorted(keys(examples, 1)) == sorted(positives)
    assert len(keys(examples, 0)) == 4 * len(positives)
    assert (examples.period == examples.context // 100).all()
    advertisers = [world.advertisers.get(pin, -1) for pin in examples.pin_id.tolist()]
    assert examples.advertiser_id.tolist() == advertisers
    assert -1 in advertisers


@pytest.mark.parametrize("weighting", ["demand", "uniform"])
def test_negatives_are_drawn_as_often_as_their_rate_says(store: GraphStore, world: World, weighting: Weighting) -> None:
    negatives = 400
    examples = build_examples(store, PERIODS, weighting=weighting, negatives=negatives, seed=5)
    expected = expected_rates(world, weighting, negatives)
    counts = Counter(keys(examples, 0))
    assert set(counts) <= set(expected)
    sampled = examples.take(examples.ctr_label == 0)
    assert sampled.sampling_rate == pytest.approx([expected[key] for key in keys(examples, 0)], rel=1e-6)
    # Draws of one group are multinomial, so every count's variance is below its mean.
    z = np.array([(counts[key] - mean) / mean**0.5 for key, mean in expected.items()])
    assert np.abs(z).max() < 6
    assert 0.8 < z.std() < 1.1


def test_positives_have_rate_one_and_know_their_rate_as_a_negative(store: GraphStore, world: World) -> None:
    examples = build_examples(store, PERIODS, weighting="uniform", seed=3)
    positive = examples.ctr_label == 1
    assert (examples.sampling_rate[positive] == 1).all()
    assert (examples.negative_rate[~positive] == examples.sampling_rate[~positive]).all()
    # With equal weights, a positive would be drawn as often as any negative of its user and context.
    groups = dict(
        zip(
            zip(examples.user_id[~positive].tolist(), examples.context[~positive].tolist(), strict=True),
            examples.negative_rate[~positive].tolist(),
            strict=True,
        )
    )
    chosen = examples.take(positive)
    group_keys = zip(chosen.user_id.tolist(), chosen.context.tolist(), strict=True)
    assert chosen.negative_rate.tolist() == [groups[key] for key in group_keys]


def test_equal_seeds_give_equal_examples(store: GraphStore) -> None:
    first, again, other = (build_examples(store, PERIODS, seed=seed) for seed in (1, 1, 2))
    assert first.pin_id.tolist() == again.pin_id.tolist()
    assert (first.dense == again.dense).all()
    assert first.pin_id.tolist() != other.pin_id.tolist()


@pytest.mark.parametrize("known_before", [None, period_start(10)])
def test_conversion_labels_are_known_once_their_window_is_over(
    store: GraphStore, world: World, known_before: dt.datetime | None
) -> None:
    examples = build_examples(store, PERIODS, labels_known_before=known_before)
    horizon = known_before or period_start(world.num_periods + 1)
    labels = dict(zip(keys(examples, 1), examples.cvr_label[examples.ctr_label == 1].tolist(), strict=True))
    responses = world.responses()
    for key, label in labels.items():
        time = responses[key]
        window_end = time + dt.timedelta(days=28)
        again = world.bought_again_at(key[0], key[2], time)
        if window_end > horizon:
            assert np.isnan(label)
        else:
            assert label == float(again is not None and again <= window_end)
    counted = Counter("unknown" if np.isnan(label) else int(label) for label in labels.values())
    assert min(counted["unknown"], counted[0], counted[1]) > 0
    assert np.isnan(examples.cvr_label[examples.ctr_label == 0]).all()


def test_a_user_who_bought_everything_gets_no_negatives(
    write_store: Callable[[World], GraphStore], caplog: pytest.LogCaptureFixture
) -> None:
    world = World(categories={1: "a"}, placements={(101, 1), (101, 2), (102, 1), (102, 2)})
    world.purchases = [(7, 101, pin, period_start(1)) for pin in (1, 2)] + [(8, 102, 1, period_start(1))]
    examples = build_examples(write_store(world), [1])
    assert sorted(keys(examples, 1)) == [(7, 101, 1), (7, 101, 2), (8, 102, 1)]
    assert keys(examples, 0) == [(8, 102, 2)] * 4
    assert "8 of 12 negatives could not be drawn" in caplog.text
    # Were one of them a negative, all of the user's draws would fall on it.
    rates = dict(zip(keys(examples, 1), examples.negative_rate[examples.ctr_label == 1].tolist(), strict=True))
    assert rates[7, 101, 1] == rates[7, 101, 2] == 8.0
    metrics = evaluate(np.full((len(examples), 2), 0.3, np.float32), examples, num_resamples=20)
    assert np.isfinite(metrics["ctr"]["log_loss"])


def test_a_response_outside_the_placements_is_refused(
    write_store: Callable[[World], GraphStore],
) -> None:
    store = write_store(random_world(2, num_purchases=100))
    placements = store.sql("SELECT * FROM placements WHERE context % 2 = 0")
    store.load_table("placements", placements)
    with pytest.raises(ValueError, match=r"table responses: 0 rows without a row in visits and \d+ without"):
        build_examples(store, range(1, 11))


def test_wrong_arguments_are_refused(store: GraphStore) -> None:
    with pytest.raises(ValueError, match=r"periods \[77\] given"):
        build_examples(store, [5, 77])
    with pytest.raises(ValueError, match="periods none given"):
        build_examples(store, [])
    with pytest.raises(ValueError, match="negatives is 0"):
        build_examples(store, PERIODS, negatives=0)
    with pytest.raises(ValueError, match="expected one of demand, uniform"):
        build_examples(store, PERIODS, weighting="popular")  # type: ignore[arg-type]


def test_examples_survive_their_file(store: GraphStore, tmp_path: Path) -> None:
    examples = build_examples(store, PERIODS, seed=3, labels_known_before=period_start(9))
    examples.save(tmp_path / "examples.parquet")
    loaded = Examples.load(tmp_path / "examples.parquet")
    for name in ("user_id", "pin_id", "advertiser_id", "context", "period", "dense", "ctr_label", "sampling_rate"):
        assert getattr(loaded, name).dtype == getattr(examples, name).dtype
        assert (getattr(loaded, name) == getattr(examples, name)).all()
    np.testing.assert_array_equal(loaded.cvr_label, examples.cvr_label)
    assert loaded.dense_names == examples.dense_names
    assert loaded.metadata == examples.metadata


def test_concatenated_examples_are_all_rows_in_order(planted_parts: tuple[Examples, Examples]) -> None:
    first, second = planted_parts
    joined = concatenate([first, second])
    assert joined.user_id.tolist() == first.user_id.tolist() + second.user_id.tolist()
    with pytest.raises(ValueError, match="at least one"):
        concatenate([])


@pytest.fixture
def planted_parts(store: GraphStore) -> tuple[Examples, Examples]:
    return build_examples(store, [5]), build_examples(store, [6])
