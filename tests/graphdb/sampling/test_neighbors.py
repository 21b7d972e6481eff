"""What is drawn has exactly the distribution that it should: checked against enumeration."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from multifacet.graphdb.sampling import Adjacency
from multifacet.graphdb.sampling.neighbors import draw_neighbors

Star = Callable[..., Adjacency]
DRAWS = 40_000
P_VALUE = 1e-4  # the keys are fixed, so a test that passes passes always


def draw(
    adjacency: Adjacency, fanout: int, *, draws: int = DRAWS, time: int | None = None, key: int = 1, **options: object
) -> list[tuple[int, ...]]:
    """The src of each of many independent draws at the one pin."""
    times = None if time is None else np.full(draws, time)
    centers = np.zeros(draws, np.int64)
    drawn = draw_neighbors(adjacency, centers, first_center=0, fanout=fanout, key=key, times=times, **options)
    assert np.array_equal(drawn.center, np.sort(drawn.center))
    assert np.array_equal(adjacency.row[drawn.edge], drawn.node)
    counts = np.bincount(drawn.center, minlength=draws)
    return [tuple(part.tolist()) for part in np.split(drawn.node, np.cumsum(counts)[:-1])]


def assert_distribution(draws: Sequence[object], probabilities: dict[object, float]) -> None:
    counts = Counter(draws)
    assert set(counts) <= set(probabilities), "something was drawn that cannot be"
    observed = [counts[outcome] for outcome in probabilities]
    expected = np.array(list(probabilities.values())) * len(draws)
    assert expected.min() > 5
    assert chisquare(observed, expected).pvalue > P_VALUE


def successive(weights: Sequence[float], count: int) -> dict[frozenset[int], float]:
    """Probability of each set: the next item in proportion to its weight among those that are left."""
    probabilities: Counter[frozenset[int]] = Counter()
    for order in itertools.permutations(range(len(weights)), count):
        probability, left = 1.0, sum(weights)
        for item in order:
            probability *= weights[item] / left
            left -= weights[item]
        probabilities[frozenset(order)] += probability
    return dict(probabilities)


def test_uniform_with_replacement_draws_each_pair_alike(star: Star):
    outcomes = dict.fromkeys(itertools.product(range(5), repeat=2), 1 / 25)
    assert_distribution(draw(star(5), 2, replace=True), outcomes)


@pytest.mark.parametrize(("num_users", "fanout"), [(6, 3), (5, 4), (9, 1)])
def test_uniform_without_replacement_draws_each_set_alike(star: Star, num_users: int, fanout: int):
    sets = [frozenset(chosen) for chosen in itertools.combinations(range(num_users), fanout)]
    draws = draw(star(num_users), fanout)
    assert all(len(drawn) == fanout for drawn in draws)
    assert_distribution([frozenset(drawn) for drawn in draws], dict.fromkeys(sets, 1 / len(sets)))


def test_a_large_fanout_draws_each_neighbour_alike(star: Star):
    draws = draw(star(300), 120, draws=2000)
    assert all(len(set(drawn)) == 120 for drawn in draws)
    # Inclusions are not independent, but their sum is fixed: under- or over-drawn places would still stand out.
    observed = np.bincount(np.concatenate(draws), minlength=300)
    assert np.abs(observed / 2000 - 0.4).max() < 5 * np.sqrt(0.24 / 2000)


def test_weighted_with_replacement_draws_by_weight(star: Star):
    weights = np.array([1, 2, 3, 10]) / 16
    pairs = {pair: weights[pair[0]] * weights[pair[1]] for pair in itertools.product(range(4), repeat=2)}
    assert_distribution(draw(star(4, weights=[1, 2, 3, 10]), 2, replace=True), pairs)


@pytest.mark.parametrize(
    ("weights", "fanout"),
    [
        ([1, 2, 3, 4, 5], 2),
        ([1, 1, 1, 1], 3),
        # One edge has all but 1e-4 of the weight: most draws repeat it, and one pass over the rest completes them.
        ([50_000, 1, 2, 2], 3),
        ([1_000_000, 1, 2, 3, 4, 5], 4),
    ],
)
def test_weighted_without_replacement_is_the_successive_draw(star: Star, weights: list[float], fanout: int):
    draws = [frozenset(drawn) for drawn in draw(star(len(weights), weights=weights), fanout)]
    assert all(len(drawn) == fanout for drawn in draws)
    probabilities = successive(weights, fanout)
    likely = {chosen: probability for chosen, probability in probabilities.items() if probability * DRAWS > 6}
    rest = 1 - sum(likely.values())
    if rest * DRAWS > 6:
        likely["rest"] = rest
        draws = [chosen if chosen in likely else "rest" for chosen in draws]
    else:
        draws = [chosen for chosen in draws if chosen in likely]
        likely = {chosen: probability / (1 - rest) for chosen, probability in likely.items()}
    assert_distribution(draws, likely)


def test_an_edge_of_zero_weight_is_never_drawn(star: Star):
    zeros = star(5, weights=[0, 1, 0, 1, 0])
    assert {user for drawn in draw(zeros, 3, draws=1000) for user in drawn} == {1, 3}
    assert {user for drawn in draw(zeros, 3, draws=1000, replace=True) for user in drawn} == {1, 3}
    assert all(drawn == (1, 3) for drawn in draw(zeros, -1, draws=1000))
    assert all(drawn == () for drawn in draw(star(3, weights=[0, 0, 0]), 2, draws=10, replace=True))


def test_a_weight_that_vanishes_in_the_sum_is_still_drawn_when_it_must_be(star: Star):
    draws = draw(star(3, weights=[1e30, 1e-30, 1e-30]), 2)
    assert all(len(set(drawn)) == 2 and 0 in drawn for drawn in draws)
    assert_distribution(draws, {(0, 1): 0.5, (0, 2): 0.5})


def test_temporal_uniform_draws_alike_among_the_past(star: Star):
    past = star(6, times=[5, 1, 9, 3, 7, 5])  # before 7: users 0, 1, 3, 5
    pairs = [frozenset(pair) for pair in itertools.combinations([0, 1, 3, 5], 2)]
    assert_distribution([frozenset(drawn) for drawn in draw(past, 2, time=7)], dict.fromkeys(pairs, 1 / 6))


def test_temporal_weighted_draws_by_weight_among_the_past(star: Star):
    past = star(4, times=[1, 2, 3, 4], weights=[1, 3, 6, 1000])
    draws = [frozenset(drawn) for drawn in draw(past, 2, time=4)]
    assert_distribution(draws, successive([1, 3, 6], 2))
    assert_distribution(draw(past, 1, time=4, replace=True), {(0,): 0.1, (1,): 0.3, (2,): 0.6})


@pytest.mark.parametrize(("time", "expected"), [(7, (0, 5)), (6, (0, 5)), (5, (1, 3)), (3, (1,)), (1, ()), (100, (4, 2))])
def test_latest_takes_the_last_before_the_time(star: Star, time: int, expected: tuple[int, ...]):
    past = star(6, times=[5, 1, 9, 3, 7, 5])
    assert set(draw(past, 2, draws=10, time=time, latest=True)) == {expected}


def test_latest_of_a_weighted_relation_takes_the_last_whatever_their_weight(star: Star):
    past = star(4, times=[1, 2, 3, 4], weights=[1000, 1, 2, 5])
    assert set(draw(past, 2, draws=10, time=4, latest=True)) == {(1, 2)}


@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=30),
    st.integers(-25, 25),
    st.integers(-1, 8),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**64 - 1),
)
def test_no_edge_at_or_after_the_time_is_ever_drawn(
    times: list[int], time: int, fanout: int, replace: bool, weighted: bool, latest: bool, key: int
):
    count = len(times)
    adjacency = Adjacency.from_edges(
        ("user", "clicks", "pin"),
        np.arange(count, dtype=np.int32),
        np.zeros(count, np.int32),
        num_src=count,
        num_dst=1,
        time=np.array(times),
        weight=np.arange(1, count + 1).astype(np.float32) if weighted else None,
    )
    options = {"latest": latest, "replace": replace and not latest}
    drawn = draw_neighbors(
        adjacency, np.zeros(3, np.int64), first_center=0, fanout=fanout, key=key, times=np.full(3, time), **options
    )
    assert (adjacency.time[drawn.edge] < time).all()
    eligible = sum(edge_time < time for edge_time in times)
    wanted = eligible if fanout < 0 else (fanout if options["replace"] and eligible else min(fanout, eligible))
    assert np.bincount(drawn.center, minlength=3).tolist() == [wanted] * 3


@pytest.mark.parametrize("fanout", [4, 5, -1])
def test_all_neighbours_come_once_and_in_order(star: Star, fanout: int):
    assert set(draw(star(4), fanout, draws=100)) == {(0, 1, 2, 3)}
    assert set(draw(star(4, weights=[4, 1, 1, 9]), fanout, draws=100)) == {(0, 1, 2, 3)}


def test_positions_and_keys_draw_independently(star: Star):
    first, second = draw(star(3), 1, key=1), draw(star(3), 1, key=2)
    pairs = dict.fromkeys(itertools.product(range(3), repeat=2), 1 / 9)
    assert_distribution([(a[0], b[0]) for a, b in zip(first, second, strict=True)], pairs)
    assert_distribution([(a[0], b[0]) for a, b in itertools.pairwise(first)], pairs)
    assert first == draw(star(3), 1, key=1)
