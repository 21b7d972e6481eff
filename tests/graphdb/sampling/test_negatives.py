"""Negatives come in proportion to degree^alpha, of the right range, and repeat by their seed."""

import datetime as dt
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling

from multifacet.graphdb import GraphError, GraphSchema, GraphStore, NodeType, Relation
from multifacet.graphdb.sampling import NegativeSampler


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


def test_a_views_negatives_are_nodes_of_the_view(
    create: Callable[[GraphSchema], GraphStore], at: Callable[[float], dt.datetime]
):
    """Neither forgotten nodes nor those of the window's future; before and after a later load."""
    clicks = Relation(src="user", name="clicks", dst="pin")
    store = create(GraphSchema(nodes=(NodeType(name="user"), NodeType(name="pin")), relations=(clicks,)))
    store.load_edges("clicks", pa.table({"src": [1, 2, 3, 4], "dst": [1, 2, 3, 4], "time": [at(0), at(1), at(2), at(9)]}))
    store.forget("pin", 2)

    def drawn(alpha: float) -> list[int]:
        view = store.view(as_of=at(5))
        ids = view.node_ids("pin").to_pylist()
        return [ids[row] for row in NegativeSampler.from_view(view, "pin", alpha=alpha).sample(900).tolist()]

    before = [drawn(alpha) for alpha in (0.0, 0.75)]
    assert [set(pins) for pins in before] == [{1, 3}, {1, 3}]
    store.load_edges("clicks", pa.table({"src": [1, 7], "dst": [8, 9], "time": [at(6), at(7)]}))
    assert [drawn(alpha) for alpha in (0.0, 0.75)] == before


def test_a_links_negatives_had_been_seen(create: Callable[[GraphSchema], GraphStore], at: Callable[[float], dt.datetime]):
    """A node is drawn from its first event, or the time that its load gives, whichever is first."""
    clicks = Relation(src="user", name="clicks", dst="pin")
    store = create(GraphSchema(nodes=(NodeType(name="user"), NodeType(name="pin")), relations=(clicks,)))
    store.load_nodes("pin", pa.table({"id": [10, 11, 12], "since": [at(0), at(2), at(8)]}), time="since")
    store.load_edges("clicks", pa.table({"src": [1, 1, 2], "dst": [10, 12, 13], "time": [at(1), at(3), at(5)]}))
    view = store.view()
    pins = view.node_ids("pin").to_pylist()
    edges = view.edges("clicks")
    inputs = EdgeSamplerInput(
        torch.arange(3), edges.src.long(), edges.dst.long(), time=edges.time, input_type=("user", "clicks", "pin")
    )
    output = view.sampler([1], temporal="uniform").sample_from_edges(inputs, NegativeSampling("triplet", amount=200))
    seen = {1: {10}, 3: {10, 11, 12}, 5: {10, 11, 12, 13}}
    for link, time in enumerate(edges.time.tolist()):
        day = round((time - (at(0) - dt.datetime(1970, 1, 1)).total_seconds() * 1e6) / 86_400e6)
        drawn = {pins[row] for row in output.node["pin"][output.metadata[3][link]].tolist()}
        assert drawn == seen[day]
