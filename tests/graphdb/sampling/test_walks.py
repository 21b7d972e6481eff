"""Walks go along edges, in the metapath's order, and end in -1."""

import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from multifacet.graphdb import GraphError
from multifacet.graphdb.sampling import Adjacency, MetapathWalker, Topology


def two_way(
    src: list[int],
    dst: list[int],
    *,
    num_src: int,
    num_dst: int,
    time: list[int] | None = None,
    weight: list[float] | None = None,
) -> Topology:
    """Users who click pins, with the reversed relation."""
    options = {
        "time": None if time is None else np.array(time, np.int64),
        "weight": None if weight is None else np.array(weight, np.float32),
    }
    users, pins = np.array(src, np.int32), np.array(dst, np.int32)
    forward = Adjacency.from_edges(("user", "clicks", "pin"), users, pins, num_src=num_src, num_dst=num_dst, **options)
    reverse = Adjacency.from_edges(("pin", "rev_clicks", "user"), pins, users, num_src=num_dst, num_dst=num_src, **options)
    return Topology({"user": num_src, "pin": num_dst}, [forward, reverse])


def test_every_step_is_an_edge_of_its_relation(random_topology: Topology):
    walker = MetapathWalker(random_topology, ["clicks", "buys^-1", "buys", "clicks^-1"])
    assert walker.node_types == ("user", "pin", "user", "pin", "user")
    walks = walker.walk(torch.arange(60), length=8)
    assert walks.dtype == torch.int32
    assert walks.shape == (60, 9)
    edges = {}
    for name in ("clicks", "buys"):
        adjacency = random_topology.relation(name)
        edges[name] = set(zip(adjacency.row.tolist(), np.repeat(np.arange(40), adjacency.degrees).tolist(), strict=True))
    steps = list(itertools.islice(itertools.cycle(walker.metapath), 8))
    num_steps = 0
    for walk in walks.tolist():
        for (start, end), step in zip(itertools.pairwise(walk), steps, strict=True):
            if end < 0:
                continue
            assert start >= 0, "nobody comes back from a dead end"
            pair = (end, start) if step.endswith("^-1") else (start, end)
            assert pair in edges[step.removesuffix("^-1")]
            num_steps += 1
    assert num_steps > 300
    assert (walks[50:, 1:] == -1).all(), "these users have no edge"


def test_steps_are_uniform_over_edges():
    topology = two_way([0, 0, 0, 1], [0, 1, 1, 0], num_src=2, num_dst=2)  # user 0 clicked pin 1 twice
    walks = MetapathWalker(topology, ["clicks", "clicks^-1"], seed=2).walk(torch.zeros(30_000, dtype=torch.int64))
    counts = Counter(map(tuple, walks.tolist()))
    expected = {(0, 0, 0): 1 / 6, (0, 0, 1): 1 / 6, (0, 1, 0): 2 / 3}
    assert set(counts) == set(expected)
    assert chisquare([counts[walk] for walk in expected], [30_000 * p for p in expected.values()]).pvalue > 1e-4


def test_steps_of_weighted_relations_go_by_weight():
    topology = two_way([0, 0, 0], [0, 1, 2], num_src=1, num_dst=3, weight=[1, 0, 3])
    pins = MetapathWalker(topology, ["clicks"]).walk(torch.zeros(30_000, dtype=torch.int32))[:, 1]
    counts = torch.bincount(pins, minlength=3)
    assert counts[1] == 0
    assert chisquare(counts[[0, 2]], [7500, 22_500]).pvalue > 1e-4


def test_steps_are_before_the_walks_time():
    topology = two_way([0, 0, 1, 1], [0, 1, 1, 2], num_src=2, num_dst=3, time=[1, 5, 7, 9])
    walker = MetapathWalker(topology, ["clicks", "clicks^-1"])
    times = torch.tensor([1, 5, 6, 8, 10]).repeat_interleave(500)
    walks = walker.walk(torch.zeros(2500, dtype=torch.int64), times=times)
    reached = {time: {tuple(walk[1:]) for walk in walks[times == time].tolist()} for time in (1, 5, 6, 8, 10)}
    assert reached[1] == {(-1, -1)}
    assert reached[5] == {(0, 0)}
    assert reached[6] == {(0, 0), (1, 0)}
    assert reached[8] == reached[10] == {(0, 0), (1, 0), (1, 1)}


def test_walks_repeat_on_any_threads(random_topology: Topology, threads: Callable[[int], None]):
    walks = []
    for num_threads in (1, 3):
        threads(num_threads)
        walker = MetapathWalker(random_topology, ["clicks", "clicks^-1"], seed=9)
        starts = torch.arange(20_000) % 60
        walks.append((walker.walk(starts, length=4), walker.walk(starts, length=4)))
    assert torch.equal(walks[0][0], walks[1][0])
    assert torch.equal(walks[0][1], walks[1][1])
    assert not torch.equal(walks[0][0], walks[0][1])


@pytest.mark.parametrize(
    ("metapath", "message"),
    [
        ([], "at least one step"),
        (["clicks", "clicks"], "step 'clicks' ends at 'pin', but the next, 'clicks', begins at 'user'"),
        (["likes"], "step 'likes' needs the relation's reverse: no relation is called 'rev_likes'"),
        (["made_by"], "build the topology with reverse=True"),
    ],
)
def test_metapaths_that_lead_nowhere_are_refused(random_topology: Topology, metapath: list[str], message: str):
    with pytest.raises(GraphError, match=message):
        MetapathWalker(random_topology, metapath)


@pytest.mark.parametrize(
    ("starts", "options", "message"),
    [
        (torch.tensor([0, 60]), {}, r"starts\[1\] is 60; 'user' has nodes 0 to 59"),
        (torch.tensor([0.5]), {}, "expected integers"),
        (torch.tensor([0]), {"length": 2}, "ends at 'pin'; it can be repeated only if it ends at 'user'"),
        (torch.tensor([0]), {"times": torch.tensor([1, 2])}, "one for each start"),
    ],
)
def test_walks_that_cannot_be_are_refused(
    random_topology: Topology, starts: torch.Tensor, options: dict[str, object], message: str
):
    with pytest.raises(GraphError, match=message):
        MetapathWalker(random_topology, ["clicks"]).walk(starts, **options)
