"""Samplers reach every row, in the right proportion, and follow their seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.tables.negatives import AliasSampler, UniformSampler, degree_weights


def test_uniform_draws_reach_odd_rows_beyond_those_that_a_float32_can_name() -> None:
    rows = UniformSampler(2**25).draw(4000, np.random.default_rng(0))

    large = rows[rows > 2**24]
    assert 1800 < len(large) < 2200
    assert 0.45 < (large % 2).mean() < 0.55
    assert rows.min() < 2**16


@pytest.mark.parametrize("sampler", [UniformSampler(50), AliasSampler(np.arange(1, 51))])
def test_every_row_is_reached_and_the_seed_decides(sampler: UniformSampler | AliasSampler) -> None:
    first, second = (sampler.draw(20_000, np.random.default_rng(seed)) for seed in (1, 1))
    other = sampler.draw(20_000, np.random.default_rng(2))

    assert set(first) == set(range(50))
    assert first.dtype == np.int32
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    frequencies = np.bincount(first, minlength=50) / len(first)
    np.testing.assert_allclose(frequencies, sampler.probability(np.arange(50, dtype=np.int32)), atol=5e-3)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.just(0.0), st.floats(min_value=1e-6, max_value=1e6)), min_size=1, max_size=30).filter(any))
def test_the_alias_table_holds_exactly_the_weights(weights: list[float]) -> None:
    sampler = AliasSampler(np.array(weights))

    mass = sampler._threshold.copy()
    np.add.at(mass, sampler._alias, 1.0 - sampler._threshold)

    np.testing.assert_allclose(mass / len(weights), np.array(weights) / sum(weights), atol=1e-12)
    drawn = sampler.draw(500, np.random.default_rng(0))
    assert all(weights[row] > 0 for row in drawn)


def test_degree_weights_leave_rows_without_edges_out() -> None:
    np.testing.assert_allclose(degree_weights(np.array([0, 1, 16]), 0.75), [0.0, 1.0, 8.0])
    np.testing.assert_allclose(degree_weights(np.array([0, 1, 16]), 0.0), [0.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -2.0], "row 1 has -2.0"),
        ([np.nan, 1.0], "row 0 has nan"),
        ([0.0, 0.0], "all 2 sampling weights are zero"),
        ([], "at least one row"),
    ],
)
def test_impossible_weights_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AliasSampler(np.array(weights))
    with pytest.raises(ValueError, match="num_rows=0"):
        UniformSampler(0)
