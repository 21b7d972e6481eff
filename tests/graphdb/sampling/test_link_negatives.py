"""Negatives of links: only what existed, never a known positive where that is asked for, and the right distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling

from multifacet.graphdb import GraphError
from multifacet.graphdb.sampling import Adjacency, MultifacetSampler, NegativeSampler, SamplerConfig, Topology
from multifacet.graphdb.sampling.topology import ALWAYS

LIKES = ("user", "likes", "pin")


@st.composite
def links(draw: st.DrawFn) -> dict[str, Any]:
    """Timed links of users and pins, some of both without any; and users who follow each other, without times or with."""
    num_nodes = {"user": draw(st.integers(1, 6)), "pin": draw(st.integers(1, 6))}
    edge = st.tuples(st.integers(0, num_nodes["user"] - 1), st.integers(0, num_nodes["pin"] - 1), st.integers(0, 9))
    follow = st.tuples(st.integers(0, num_nodes["user"] - 1), st.integers(0, num_nodes["user"] - 1), st.integers(0, 9))
    return {
        "num_nodes": num_nodes,
        "likes": draw(st.lists(edge, min_size=1, max_size=20)),
        "follows": draw(st.lists(follow, max_size=3)),
        "follows_timed": draw(st.booleans()),
    }


def topology_of(graph: dict[str, Any]) -> Topology:
    num_nodes = graph["num_nodes"]
    adjacencies = []
    for edge_type, timed in ((LIKES, True), (("user", "follows", "user"), graph["follows_timed"])):
        src, dst, time = np.array(graph[edge_type[1]], np.int64).reshape(-1, 3).T.copy()
        adjacencies.append(
            Adjacency.from_edges(
                edge_type,
                src.astype(np.int32),
                dst.astype(np.int32),
                num_src=num_nodes[edge_type[0]],
                num_dst=num_nodes[edge_type[2]],
                time=time if timed else None,
            )
        )
    return Topology(num_nodes, adjacencies)


def first_seen(graph: dict[str, Any]) -> dict[str, list[int]]:
    """By the book: a node's first time, or always."""
    first: dict[str, list[int]] = {}
    for name, count in graph["num_nodes"].items():
        times: list[list[int]] = [[] for _ in range(count)]
        for user, pin, time in graph["likes"]:
            times[user if name == "user" else pin].append(time)
        for one, other, time in graph["follows"] if name == "user" else ():
            for user in (one, other):
                times[user].append(time if graph["follows_timed"] else ALWAYS)
        first[name] = [min(found, default=ALWAYS) for found in times]
    return first


@given(graph=links(), mode=st.sampled_from(["binary", "triplet"]), alpha=st.sampled_from([0.0, 0.75]), exclude=st.booleans())
@settings(max_examples=150, deadline=None)
def test_negatives_existed_and_are_no_positives(graph: dict[str, Any], mode: str, alpha: float, exclude: bool) -> None:
    topology = topology_of(graph)
    first = first_seen(graph)
    for name, times in first.items():
        assert topology.first_seen(name).tolist() == times
    src, dst, time = (torch.tensor(column) for column in zip(*graph["likes"], strict=True))
    config = SamplerConfig(num_neighbors=[1], temporal="uniform", negative_alpha=alpha, exclude_positives=exclude)
    sampler = MultifacetSampler(topology, config)
    inputs = EdgeSamplerInput(torch.arange(len(src)), src, dst, time=time, input_type=LIKES)
    by_time = {t: {(user, pin) for user, pin, then in graph["likes"] if then <= t} for t in time.tolist()}
    try:
        output = sampler.sample_from_edges(inputs, NegativeSampling(mode, amount=3))
    except GraphError as error:
        assert exclude, error  # noqa: PT017
        assert "no negative is left for a link" in str(error)  # noqa: PT017 - whether it is raised hangs on the graph
        # It is true of some link: whoever could be its negative is its positive.
        degrees = {
            name: np.bincount([edge[place] for edge in graph["likes"]], minlength=count)
            for place, (name, count) in enumerate(graph["num_nodes"].items())
        }
        drawable = {
            name: lambda t, name=name: [
                node for node, seen in enumerate(first[name]) if seen <= t and (alpha == 0 or degrees[name][node])
            ]
            for name in first
        }
        assert any(
            all(
                (one, pin) in by_time[t]
                for one in (drawable["user"](t) if mode == "binary" else [user])
                for pin in drawable["pin"](t)
            )
            for user, t in zip(src.tolist(), time.tolist(), strict=True)
        )
        return
    if mode == "binary":
        places = output.metadata[1][:, len(src) :]
        pairs = zip(output.node["user"][places[0]].tolist(), output.node["pin"][places[1]].tolist(), strict=True)
    else:
        negatives = output.node["pin"][output.metadata[3].view(len(src), 3)]
        pairs = [(int(user), int(pin)) for pins in negatives.t() for user, pin in zip(src, pins, strict=True)]
    for number, (user, pin) in enumerate(pairs):
        then = int(time[number % len(src)])
        assert first["user"][user] <= then
        assert first["pin"][pin] <= then
        if exclude:
            assert (user, pin) not in by_time[then]


@pytest.mark.parametrize("alpha", [0.0, 0.75])
def test_draws_at_a_time_keep_to_the_weights(alpha: float) -> None:
    degrees = torch.tensor([3, 0, 1, 8, 5, 2])
    since = np.array([ALWAYS, 0, 4, 2, 9, 2])
    sampler = NegativeSampler(degrees, alpha=alpha, first_seen=since)
    for time, seen in ((2, [0, 1, 3, 5]), (4, [0, 1, 2, 3, 5]), (100, [0, 1, 2, 3, 4, 5])):
        drawn = sampler.draw(20_000, key=7, times=np.full(20_000, time)).numpy()
        weights = np.where(np.isin(np.arange(6), seen), degrees.numpy() ** alpha, 0.0)
        counts = np.bincount(drawn, minlength=6)
        assert (counts[weights == 0] == 0).all()
        kept = weights > 0
        assert chisquare(counts[kept], weights[kept] / weights.sum() * 20_000).pvalue > 1e-4


def test_a_link_from_before_everything_is_refused() -> None:
    sampler = NegativeSampler(torch.tensor([1, 1]), alpha=0, first_seen=np.array([5, 6]))
    assert sampler.draw(4, key=0, times=np.full(4, 5)).tolist() == [0, 0, 0, 0]
    with pytest.raises(GraphError, match=r"no node that can be drawn had been seen at the time 4"):
        sampler.draw(3, key=0, times=np.array([5, 4, 6]))
    with pytest.raises(GraphError, match="give NegativeSampler first_seen"):
        NegativeSampler(torch.tensor([1, 1])).draw(1, key=0, times=np.array([5]))


def test_positives_are_excluded_evenly() -> None:
    """What is left after exclusion is as likely as it was: user 0 likes pins 0 to 5 of 8."""
    edges = np.zeros(6, np.int32), np.arange(6, dtype=np.int32)
    topology = Topology({"user": 2, "pin": 8}, [Adjacency.from_edges(LIKES, *edges, num_src=2, num_dst=8)])
    sampler = MultifacetSampler(topology, SamplerConfig(num_neighbors=[1], exclude_positives=True))
    inputs = EdgeSamplerInput(None, torch.tensor([0]), torch.tensor([0]), input_type=LIKES)
    output = sampler.sample_from_edges(inputs, NegativeSampling("triplet", amount=4000))
    counts = torch.bincount(output.node["pin"][output.metadata[3]].flatten(), minlength=8)
    assert counts[:6].sum() == 0
    assert chisquare(counts[6:]).pvalue > 1e-4
    everything = Adjacency.from_edges(LIKES, np.zeros(8, np.int32), np.arange(8, dtype=np.int32), num_src=2, num_dst=8)
    saturated = MultifacetSampler(Topology({"user": 2, "pin": 8}, [everything]), sampler.config)
    with pytest.raises(GraphError, match=r"no negative is left for a link .* of user 0: it is linked to every pin"):
        saturated.sample_from_edges(inputs, NegativeSampling("triplet", amount=1))
    # A pair of another user is left.
    output = saturated.sample_from_edges(inputs, NegativeSampling("binary", amount=50))
    assert set(output.node["user"][output.metadata[1][0, 1:]].tolist()) == {1}
