"""Negatives come in proportion to degree^alpha, of the right range, and repeat by their seed."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from graphdb import GraphError
from graphdb.sampling import NegativeSampler


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.75, 1.0, 2.0])
def test_draws_follow_degree_to_the_alpha(alpha: float):
    degrees = torch.tensor([3, 1, 8, 2, 5, 13, 1])
    counts = torch.bincount(NegativeSampler(degrees, alpha=alpha, seed=1).sample(50_000), minlength=7)
    expected = degrees.double() ** alpha
    assert chisquare(counts, expected / expected.sum() * 50_000).pvalue > 1e-4


def test_nodes_without_an_edge_are_drawn_by_the_uniform_only():
    degrees = torch.tensor([0, 4, 0, 1])
    assert NegativeSampler(degrees, alpha=0.75).sample(1000).unique().tolist() == [1, 3]
    assert NegativeSampler(degrees, alpha=0.0).sample(1000).unique().tolist() == [0, 1, 2, 3]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50).filter(any), st.integers(0, 2**32))
def test_no_node_of_probability_zero_is_drawn(degrees: list[float], seed: int):
    negatives = NegativeSampler(torch.tensor(degrees, dtype=torch.float64), alpha=1.0, seed=seed)
    assert negatives.probabilities.sum().item() == pytest.approx(1.0)
    assert (negatives.probabilities[negatives.sample(300).long()] > 0).all()


def test_the_alias_table_holds_the_probabilities():
    degrees = torch.from_numpy(np.random.default_rng(0).pareto(1.0, 1000))
    negatives = NegativeSampler(degrees, alpha=0.75)
    held = np.bincount(np.arange(1000), weights=negatives._threshold, minlength=1000)
    held += np.bincount(negatives._alias, weights=1 - negatives._threshold, minlength=1000)
    assert np.allclose(held / 1000, negatives.probabilities, rtol=0, atol=1e-12)


def test_draws_have_the_shape_and_repeat_on_any_threads(threads: Callable[[int], None]):
    degrees = torch.arange(1, 100)
    draws = []
    for num_threads in (1, 3):
        threads(num_threads)
        negatives = NegativeSampler(degrees, seed=4)
        draws.append([negatives.sample((300, 200)), negatives.sample(7)])
    assert draws[0][0].shape == (300, 200)
    assert draws[0][0].dtype == torch.int32
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][0], NegativeSampler(degrees, seed=5).sample((300, 200)))


@pytest.mark.parametrize(
    ("degrees", "alpha", "message"),
    [
        ([1, float("nan")], 1.0, "the degree of node 1 is nan"),
        ([-1.0, 2.0], 1.0, "the degree of node 0 is -1"),
        ([0.0, 0.0], 0.75, "alpha=0 draws uniformly"),
        ([], 0.0, "no node can be drawn"),
        ([1.0], -0.5, "alpha=-0.5"),
    ],
)
def test_degrees_that_make_no_distribution_are_refused(degrees: list[float], alpha: float, message: str):
    with pytest.raises(GraphError, match=message):
        NegativeSampler(torch.tensor(degrees), alpha=alpha)
