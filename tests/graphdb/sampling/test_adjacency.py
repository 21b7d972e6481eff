"""Edges in any order become columns, oldest first, and find their way back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data, HeteroData

from multifacet.graphdb import GraphError
from multifacet.graphdb.sampling import Adjacency, Topology

CLICKS = ("user", "clicks", "pin")


@given(st.data(), st.integers(0, 300), st.booleans(), st.booleans())
def test_columns_hold_each_edge_once_by_time(data: st.DataObject, num_edges: int, timed: bool, weighted: bool):
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    num_dst = data.draw(st.integers(1, 4))  # few, so that some columns are long
    src = generator.integers(0, 9, num_edges, dtype=np.int32)
    dst = generator.integers(0, num_dst, num_edges, dtype=np.int32)
    time = generator.integers(-5, 5, num_edges) if timed else None
    weight = generator.integers(0, 3, num_edges).astype(np.float32) if weighted else None
    adjacency = Adjacency.from_edges(CLICKS, src, dst, num_src=9, num_dst=num_dst, time=time, weight=weight)

    order = np.arange(num_edges) if adjacency.permutation is None else adjacency.permutation
    kept = np.arange(num_edges) if weight is None else np.flatnonzero(weight)
    assert sorted(order) == kept.tolist()
    column = np.repeat(np.arange(num_dst), adjacency.degrees)
    assert np.array_equal(dst[order], column)
    assert np.array_equal(src[order], adjacency.row)
    # A stable sort by (dst, time): equal times stay in the order in which the edges were given.
    expected = np.lexsort((kept, dst[kept]) if time is None else (kept, time[kept], dst[kept]))
    assert np.array_equal(order, kept[expected])
    if time is not None:
        assert np.array_equal(adjacency.time, time[order])
    if weight is not None:
        assert np.array_equal(adjacency.weight, weight[order])
        for first, end in zip(adjacency.colptr[:-1], adjacency.colptr[1:], strict=True):
            assert np.allclose(adjacency.cumulative[first:end], np.cumsum(weight[order][first:end]))


def test_clustered_edges_are_not_copied():
    src, dst, time = np.array([3, 1, 2], np.int32), np.array([0, 0, 2], np.int32), np.array([5, 7, 1])
    adjacency = Adjacency.from_edges(CLICKS, src, dst, num_src=4, num_dst=3, time=time)
    assert adjacency.permutation is None
    assert adjacency.row is src
    assert adjacency.colptr.tolist() == [0, 2, 2, 3]


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_a_weight_that_is_none_is_refused_by_its_edge(weight: float):
    ends = np.zeros(3, np.int32)
    weights = np.array([1, weight, 1], np.float32)
    with pytest.raises(GraphError, match=r"\('user', 'clicks', 'pin'\): the weight of edge 1 is .*weighted=False"):
        Adjacency.from_edges(CLICKS, ends, ends, num_src=1, num_dst=1, weight=weights)


@pytest.mark.parametrize(
    ("src", "dst", "end"), [([0, 9], [0, 0], "src of edge 1 is 9"), ([0, 0], [-1, 0], "dst of edge 0 is -1")]
)
def test_an_idx_out_of_range_is_refused_by_its_edge(src: list[int], dst: list[int], end: str):
    with pytest.raises(GraphError, match=end):
        Adjacency.from_edges(CLICKS, np.array(src, np.int32), np.array(dst, np.int32), num_src=9, num_dst=2)


def test_a_hetero_graph_keeps_types_times_and_isolated_types():
    data = HeteroData()
    data["user"].num_nodes, data["pin"].x, data["topic"].num_nodes = 3, torch.ones(2, 4), 5
    data["user", "clicks", "pin"].edge_index = torch.tensor([[2, 0, 1], [1, 0, 1]])
    data["user", "clicks", "pin"].time = torch.tensor([9, 5, 4])
    topology = Topology.from_data(data)
    assert topology.num_nodes == {"user": 3, "pin": 2, "topic": 5}
    adjacency = topology.relation("clicks")
    assert adjacency.row.tolist() == [0, 1, 2]
    assert adjacency.permutation.tolist() == [1, 2, 0]
    assert adjacency.time.tolist() == [5, 4, 9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": torch.rand(2)}, "times are torch.float32"),
        ({"num_nodes": 1}, "expected 0 to 0"),
        ({"edge_index": None}, "has no edge_index"),
        ({"edge_index": torch.tensor([[0, 2**40], [1, 0]])}, "does not fit 32 bits"),
    ],
)
def test_a_graph_that_does_not_fit_is_refused(change: dict[str, object], message: str):
    data = Data(**({"edge_index": torch.tensor([[0, 1], [1, 0]]), "num_nodes": 2} | change))
    with pytest.raises(GraphError, match=message):
        Topology.from_data(data)


def test_weights_that_no_edge_type_has_are_refused():
    with pytest.raises(GraphError, match="no edge type has the weights 'score'"):
        Topology.from_data(Data(edge_index=torch.tensor([[0], [1]]), num_nodes=2), weight_attr="score")


def test_an_unknown_relation_names_the_known_ones():
    topology = Topology.from_data(Data(edge_index=torch.tensor([[0], [1]]), num_nodes=2))
    with pytest.raises(GraphError, match=r"no relation is called 'likes'; .*'node', 'to', 'node'"):
        topology.relation("likes")
