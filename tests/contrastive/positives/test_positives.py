"""Which pairs are positives, how much they weigh, and which are held out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.contrastive import ComposedTower, ContrastiveConfig, ContrastiveValidation, Positives
from multifacet.contrastive.positives.merging import EdgeColumns, merge_edges
from multifacet.contrastive.positives.positives import compose, hold_out_latest, read_positives
from multifacet.graphdb import GraphView

DAY_US = 86_400_000_000


def test_weights_sum_over_the_edges_of_a_pair(view: GraphView) -> None:
    positives = read_positives(view, ContrastiveConfig(relation_weights={"clicks": 1.0, "buys": 3.0}))

    assert len(positives) == 72 * 12
    assert sorted(set(positives.weights)) == [1.0, 4.0]
    assert (positives.weights == 4.0).sum() == 72 * 4
    assert positives.item_weights().sum() == pytest.approx(positives.weights.sum())


def test_a_half_life_halves_old_edges(view: GraphView) -> None:
    config = ContrastiveConfig(relation_weights={"clicks": 2.0}, half_life_days=3.0)
    positives = read_positives(view, config)

    newest = positives.first_times.max()
    age_days = (newest - positives.first_times) / DAY_US
    np.testing.assert_allclose(positives.weights, 2.0 * 0.5 ** (age_days / 3.0), rtol=1e-6)


def test_composed_positives_carry_a_users_weight_to_the_pins_advertiser(view: GraphView) -> None:
    positives = read_positives(view, ContrastiveConfig())
    composed = compose(positives, view, "pin", ComposedTower(node_type="advertiser", through="made_by"))

    advertisers = view.node_ids("advertiser").to_pylist()
    expected: dict[tuple[int, str], float] = {}
    for user, pin, weight in zip(positives.queries, positives.items, positives.weights, strict=True):
        key = int(user), f"adv-{pin // 20}-{pin % 2}"
        expected[key] = expected.get(key, 0.0) + weight
    found = {
        (int(user), advertisers[row]): weight
        for user, row, weight in zip(composed.queries, composed.items, composed.weights, strict=True)
    }
    assert found == expected


def test_a_relation_that_does_not_lead_to_the_tower_is_refused(view: GraphView) -> None:
    positives = read_positives(view, ContrastiveConfig())
    with pytest.raises(ValueError, match=r"goes through 'clicks'.*relations of this view that do: \['made_by'\]"):
        compose(positives, view, "pin", ComposedTower(node_type="advertiser", through="clicks"))


def test_unknown_types_and_relations_are_refused_by_name(view: GraphView) -> None:
    with pytest.raises(ValueError, match=r"item_type is 'ad', but the view has the node types"):
        read_positives(view, ContrastiveConfig(item_type="ad"))
    with pytest.raises(ValueError, match=r"relation_weights names \['made_by'\]; from 'user' to 'pin' this view has"):
        read_positives(view, ContrastiveConfig(relation_weights={"made_by": 1.0}))
    with pytest.raises(ValueError, match="there are no positives from 'user' to 'pin'"):
        read_positives(view, ContrastiveConfig(relation_weights={"clicks": 0.0}))


def test_held_out_items_are_the_last_that_a_query_came_to(view: GraphView) -> None:
    positives = read_positives(view, ContrastiveConfig())
    validation = ContrastiveValidation(num_queries=30, num_latest=3)

    train, held_out = hold_out_latest(positives, validation, np.random.default_rng(0))

    assert len(train) + len(held_out) == len(positives)
    assert len(set(held_out.queries)) == 30
    for query in set(held_out.queries):
        assert (held_out.queries == query).sum() == 3
        newest_kept = train.first_times[train.queries == query].max()
        assert held_out.first_times[held_out.queries == query].min() > newest_kept


@given(seed=st.integers(0, 2**32 - 1), with_times=st.booleans())
@settings(max_examples=30, deadline=None)
def test_edges_merge_to_the_pairs_that_a_dictionary_makes_of_them(seed: int, with_times: bool) -> None:
    generator = np.random.default_rng(seed)
    parts, expected = [], {}
    for _ in range(generator.integers(1, 4)):
        num_edges = int(generator.integers(0, 60))
        queries, items = generator.integers(0, 5, num_edges), generator.integers(0, 7, num_edges)
        weights = generator.random(num_edges if generator.random() < 0.5 else 1)
        times = generator.integers(0, 100, num_edges if generator.random() < 0.5 else 1)
        parts.append(EdgeColumns(queries=queries.astype(np.int32), items=items.astype(np.int32), weights=weights, times=times))
        columns = (queries, items, np.broadcast_to(weights, num_edges), np.broadcast_to(times, num_edges))
        for query, item, weight, time in zip(*columns, strict=True):
            before, first = expected.get((query, item), (0.0, 1000))
            expected[query, item] = before + weight, min(first, time)

    indptr, items, weights, times = merge_edges(parts, num_queries=5, with_times=with_times)

    pairs = sorted(expected)
    assert list(zip(np.repeat(np.arange(5), np.diff(indptr)), items, strict=True)) == pairs
    np.testing.assert_allclose(weights, [expected[pair][0] for pair in pairs], rtol=1e-6)
    if with_times:
        np.testing.assert_array_equal(times, [expected[pair][1] for pair in pairs])
    else:
        assert times is None


def test_items_are_not_held_out_without_times(view: GraphView) -> None:
    nothing_held_out = ContrastiveValidation(num_queries=0)
    positives = read_positives(view, ContrastiveConfig(validation=nothing_held_out))

    train, held_out = hold_out_latest(positives, nothing_held_out, np.random.default_rng(0))
    assert (len(train), len(held_out)) == (len(positives), 0)
    with pytest.raises(ValueError, match="items are held out by their times"):
        hold_out_latest(positives, ContrastiveValidation(), np.random.default_rng(0))


def test_queries_with_too_few_items_are_not_held_out() -> None:
    edges = EdgeColumns(
        queries=np.int32([0, 0, 0, 1, 1, 1, 1]),
        items=np.int32([0, 1, 2, 0, 1, 2, 3]),
        weights=np.ones(1),
        times=np.arange(7),
    )
    positives = Positives.merge([edges], num_queries=2, num_items=4)
    validation = ContrastiveValidation(num_queries=10, num_latest=2, min_remaining=2)

    _, held_out = hold_out_latest(positives, validation, np.random.default_rng(0))

    assert held_out.queries.tolist() == [1, 1]
    assert held_out.items.tolist() == [2, 3]
