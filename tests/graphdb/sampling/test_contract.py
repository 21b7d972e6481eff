"""What every backend promises: PyG's conventions, right edges, disjointness, the past only, and repeatability."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch_geometric.data import Data
from torch_geometric.sampler import HeteroSamplerOutput, NodeSamplerInput, SamplerOutput

from multifacet.graphdb.sampling import Adjacency, MultifacetSampler, SamplerConfig, Topology


def seeds_of(node_type: str | None, nodes: list[int], times: list[int] | None = None) -> NodeSamplerInput:
    return NodeSamplerInput(
        input_id=torch.arange(len(nodes)),
        node=torch.tensor(nodes),
        time=None if times is None else torch.tensor(times),
        input_type=node_type,
    )


def assert_conventions(topology: Topology, output: HeteroSamplerOutput, fanouts: list[int], *, replace: bool = False) -> None:
    """Everything that holds of any output."""
    assert set(output.node) == set(topology.num_nodes)
    assert set(output.row) == set(output.col) == set(output.edge) == set(topology.relations)
    for name, node in output.node.items():
        assert node.dtype == torch.int64
        assert sum(output.num_sampled_nodes[name]) == len(node)
        assert len(output.num_sampled_nodes[name]) == len(fanouts) + 1
    hop_end = {name: np.cumsum([0, *counts]) for name, counts in output.num_sampled_nodes.items()}
    for edge_type, adjacency in topology.relations.items():
        row, col, edge = (part[edge_type] for part in (output.row, output.col, output.edge))
        assert row.dtype == col.dtype == edge.dtype == torch.int64
        assert sum(output.num_sampled_edges[edge_type]) == len(row) == len(col) == len(edge)
        src, dst = output.node[edge_type[0]][row].numpy(), output.node[edge_type[2]][col].numpy()
        edge = edge.numpy()
        assert np.array_equal(adjacency.row[edge], src)
        assert (adjacency.colptr[dst] <= edge).all()
        assert (edge < adjacency.colptr[dst + 1]).all()
        if output.batch is not None:
            assert torch.equal(output.batch[edge_type[0]][row], output.batch[edge_type[2]][col])
        first = 0
        for hop, (fanout, count) in enumerate(zip(fanouts, output.num_sampled_edges[edge_type], strict=True)):
            centers = col[first : first + count].numpy()
            edges = edge[first : first + count]
            first += count
            begin, end = hop_end[edge_type[2]][hop : hop + 2]
            assert ((centers >= begin) & (centers < end)).all(), "a hop goes on from the nodes of the hop before"
            per_center = np.bincount(centers - begin, minlength=end - begin)
            if fanout >= 0:
                assert (per_center <= fanout).all()
            if not replace:
                assert len(set(zip(centers.tolist(), edges.tolist(), strict=True))) == count


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("disjoint", [False, True])
def test_outputs_keep_to_the_conventions(random_topology: Topology, backend: str, replace: bool, disjoint: bool):
    fanouts = [4, 3, 2]
    config = SamplerConfig(num_neighbors=fanouts, replace=replace, disjoint=disjoint, seed=5, backend=backend)
    sampler = MultifacetSampler(random_topology, config)
    seeds = [3, 55, 0, 17]
    for _ in range(5):
        output = sampler.sample_from_nodes(seeds_of("user", seeds))
        assert_conventions(random_topology, output, fanouts, replace=replace)
        assert output.node["user"][:4].tolist() == seeds
        assert output.metadata[0].tolist() == [0, 1, 2, 3]
        assert (output.batch is not None) == disjoint
        for name, node in output.node.items():
            places = node if output.batch is None else torch.stack([output.batch[name], node])
            assert places.unique(dim=-1).size(-1) == len(node), "a node has one place in its subgraph"
        assert output.node["topic"].numel() == 0
        if disjoint:
            assert output.batch["user"][:4].tolist() == [0, 1, 2, 3]


def test_a_known_graph_gives_its_known_subgraph(backend: str):
    data = Data(edge_index=torch.tensor([[3, 2, 4, 1, 3], [1, 0, 2, 0, 2]]), num_nodes=6)
    sampler = MultifacetSampler(Topology.from_data(data), SamplerConfig(num_neighbors=[-1, -1], backend=backend))
    output = sampler.sample_from_nodes(seeds_of(None, [0]))
    assert isinstance(output, SamplerOutput)
    assert output.node.tolist() == [0, 2, 1, 4, 3]
    assert output.row.tolist() == [1, 2, 3, 4, 4]
    assert output.col.tolist() == [0, 0, 1, 1, 2]
    assert output.num_sampled_nodes == [1, 2, 2]
    assert output.num_sampled_edges == [2, 3]
    assert sampler.edge_permutation[output.edge].tolist() == [1, 3, 2, 4, 0]


def test_all_neighbours_are_the_breadth_first_neighbourhood(random_topology: Topology, backend: str):
    sampler = MultifacetSampler(random_topology, SamplerConfig(num_neighbors=[-1, -1], backend=backend))
    output = sampler.sample_from_nodes(seeds_of("user", [3, 20]))
    assert_conventions(random_topology, output, [-1, -1])
    reached = {("user", 3), ("user", 20)}
    frontier = set(reached)
    for _ in range(2):
        found = {
            (edge_type[0], int(src))
            for edge_type, adjacency in random_topology.relations.items()
            for name, dst in frontier
            if name == edge_type[2]
            for src in adjacency.row[adjacency.colptr[dst] : adjacency.colptr[dst + 1]]
        }
        frontier = found - reached
        reached |= found
    assert {(name, int(node)) for name, nodes in output.node.items() for node in nodes} == reached


@pytest.mark.parametrize("strategy", ["uniform", "last"])
def test_temporal_sampling_sees_only_the_past_at_every_hop(random_topology: Topology, backend: str, strategy: str):
    config = SamplerConfig(num_neighbors=[5, 5, 5], temporal=strategy, backend=backend)
    sampler = MultifacetSampler(random_topology, config)
    times = torch.tensor([0, 1, 250, 500, 999, 5000])
    output = sampler.sample_from_nodes(seeds_of("pin", [0, 0, 0, 1, 2, 3], times.tolist()))
    assert_conventions(random_topology, output, [5, 5, 5])
    num_timed = 0
    for edge_type, adjacency in random_topology.relations.items():
        if adjacency.time is None:
            continue
        edge_time = torch.from_numpy(adjacency.time)[output.edge[edge_type]]
        assert (edge_time < times[output.batch[edge_type[2]][output.col[edge_type]]]).all()
        num_timed += len(edge_time)
    assert num_timed > 100
    assert not (output.batch["user"] == 0).any(), "nothing is before time 0"


def test_untimed_relations_are_of_every_time(random_topology: Topology, backend: str):
    sampler = MultifacetSampler(random_topology, SamplerConfig(num_neighbors=[3], temporal="uniform", backend=backend))
    output = sampler.sample_from_nodes(seeds_of("advertiser", [0], [-1]))
    assert output.num_sampled_edges["pin", "made_by", "advertiser"] == [3]


def test_equal_seeds_repeat_and_others_do_not(random_topology: Topology, backend: str):
    def outputs(seed: int) -> list[list[int]]:
        sampler = MultifacetSampler(random_topology, SamplerConfig(num_neighbors=[3, 3], seed=seed, backend=backend))
        calls = [sampler.sample_from_nodes(seeds_of("user", [1, 2, 3])) for _ in range(3)]
        return [call.edge["pin", "rev_clicks", "user"].tolist() for call in calls]

    assert outputs(7) == outputs(7)
    assert outputs(7) != outputs(8)
    assert len({tuple(call) for call in outputs(7)}) == 3, "each call draws anew"


def test_hops_and_relations_draw_independently(backend: str):
    # Pins 0 and 1 lead to pins 2 and 3 by two relations, and 2 and 3 to 0 and 1: each draw is the toss of a coin.
    ends = np.array([2, 3, 2, 3, 0, 1, 0, 1], np.int32), np.array([0, 0, 1, 1, 2, 2, 3, 3], np.int32)
    relations = [Adjacency.from_edges(("pin", name, "pin"), *ends, num_src=4, num_dst=4) for name in ("near", "like")]
    config = SamplerConfig(num_neighbors=[1, 1], disjoint=True, seed=3, backend=backend)
    output = MultifacetSampler(Topology({"pin": 4}, relations), config).sample_from_nodes(seeds_of("pin", [0] * 4000))
    tosses = {}
    for name in ("near", "like"):
        key = ("pin", name, "pin")
        src, dst = output.row[key], output.col[key]
        for hop, drawn in enumerate((src[:4000], src[4000:])):
            owner = output.batch["pin"][dst[:4000] if hop == 0 else dst[4000:]]
            # Where a hop draws twice for a seed, the first of them. (Torch writes to an index that comes twice in any order.)
            owners, place = np.unique(owner, return_index=True)
            first = np.zeros(4000, np.int64)
            first[owners] = output.node["pin"][drawn][place] % 2
            tosses[name, hop] = first
    for one, other in itertools.combinations(tosses.values(), 2):
        assert chisquare(np.bincount(2 * one + other, minlength=4)).pvalue > 1e-4


def test_torchs_global_generator_is_left_alone(random_topology: Topology, backend: str):
    sampler = MultifacetSampler(random_topology, SamplerConfig(num_neighbors=[3], backend=backend))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    sampler.sample_from_nodes(seeds_of("user", [1, 2]))
    assert torch.equal(torch.rand(3), expected)


def test_seeds_without_an_edge_come_back_alone(random_topology: Topology, backend: str):
    for config in (
        SamplerConfig(num_neighbors=[3, 3], backend=backend),
        SamplerConfig(num_neighbors=[3, 3], replace=True, backend=backend),
        SamplerConfig(num_neighbors=[-1, -1], disjoint=True, backend=backend),
    ):
        sampler = MultifacetSampler(random_topology, config)
        for name, nodes in (("user", [59, 51]), ("topic", [4])):
            output = sampler.sample_from_nodes(seeds_of(name, nodes))
            assert_conventions(random_topology, output, list(config.num_neighbors), replace=config.replace)
            assert output.node[name].tolist() == nodes
            assert output.num_sampled_nodes[name] == [len(nodes), 0, 0]
            assert all(len(edge) == 0 for edge in output.edge.values())


def test_a_seed_twice_keeps_both_places(random_topology: Topology, backend: str):
    sampler = MultifacetSampler(random_topology, SamplerConfig(num_neighbors=[2, 2], backend=backend))
    for seeds in ([4, 4, 9], [9, 4, 9, 3, 4, 9], [3, 3, 3]):
        output = sampler.sample_from_nodes(seeds_of("user", seeds))
        assert_conventions(random_topology, output, [2, 2])
        assert output.node["user"][: len(seeds)].tolist() == seeds
        assert not np.isin(output.node["user"][len(seeds) :], seeds).any()
        for edge_type, adjacency in random_topology.relations.items():
            if edge_type[2] == "user":
                # Every place has a draw of its own, or the same.
                drawn = np.bincount(output.col[edge_type][: output.num_sampled_edges[edge_type][0]], minlength=len(seeds))
                assert drawn.tolist() == np.minimum(2, adjacency.degrees[seeds]).tolist()
            if edge_type[0] == "user":
                first = output.row[edge_type][output.row[edge_type] < len(seeds)]
                assert {seeds.index(seeds[place]) for place in first.tolist()} == set(first.tolist())


def test_names_that_hold_pyg_libs_separator_are_told_apart(backend: str):
    ends = [np.array([idx], np.int32) for idx in range(4)]
    kinds = ("a__b", "c", "d"), ("a", "b__c", "d")
    edges = [Adjacency.from_edges(kind, ends[place], ends[place + 2], num_src=4, num_dst=4) for place, kind in enumerate(kinds)]
    topology = Topology({"a__b": 4, "a": 4, "d": 4}, edges)
    output = MultifacetSampler(topology, SamplerConfig(num_neighbors=[-1], backend=backend)).sample_from_nodes(
        seeds_of("d", [2, 3])
    )
    assert output.node["a__b"].tolist() == [0]
    assert output.node["a"].tolist() == [1]


def test_only_named_relations_are_walked(random_topology: Topology, backend: str):
    config = SamplerConfig(num_neighbors={"clicks": [2, 0], ("pin", "rev_clicks", "user"): [0, 3]}, backend=backend)
    output = MultifacetSampler(random_topology, config).sample_from_nodes(seeds_of("pin", [0, 1]))
    assert output.num_sampled_edges["user", "clicks", "pin"][1] == 0
    assert output.num_sampled_edges["pin", "rev_clicks", "user"][0] == 0
    assert output.num_sampled_edges["pin", "rev_clicks", "user"][1] > 0
    assert len(output.edge["user", "buys", "pin"]) == 0
