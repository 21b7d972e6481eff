"""Neighbourhoods, walks and negatives drawn a second, beside vectorised torch (and pyg-lib where it is installed).

The graph is bipartite with power-law degrees: users click and buy pins, 7 clicks to 3 buys, and both relations are walked
both ways. A batch is 1024 users with 15 neighbours a relation at the first hop and 10 at the second; a sampled edge counts
once its ends have their local numbers in the batch's subgraph. Batches of the two sides alternate, so that whatever else
the machine does slows both.

The torch peer draws the same: without replacement by Floyd's algorithm over all nodes of a hop at once, and numbers nodes
through a dense table without sorting. It works on 64-bit indices, which is what torch indexes fastest with. It runs on one
thread as well as on all: where other work shares the cores, torch's threads wait for one another, and one is faster.

The rows of loaders are whole batches with the features of their nodes, beside PyG's NeighborLoader where pyg-lib is installed:
`PYTHONPATH=build/pyg-lib python -m benchmarks graph_sample` after `make test-pyg-lib`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch_geometric.typing
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.loader import NeighborLoader, NodeLoader
from torch_geometric.sampler import HeteroSamplerOutput, NodeSamplerInput

from benchmarks.harness import HIGHER, Metric, Peer, Row
from multifacet.graphdb import MetapathWalker, MultifacetSampler, NegativeSampler, SamplerConfig, Topology
from multifacet.graphdb.sampling import Adjacency

Batch = TypeVar("Batch")

EDGES_PER_S = Metric(name="edges_per_s", unit="1/s", better=HIGHER)
STEPS_PER_S = Metric(name="steps_per_s", unit="1/s", better=HIGHER)
DRAWS_PER_S = Metric(name="draws_per_s", unit="1/s", better=HIGHER)

FANOUTS = [15, 10]
BATCH_SIZE = 1024
ALPHA = 0.75
NUM_FEATURES = 64


def run(quick: bool) -> Iterator[Row]:
    """2M edges when quick, else 20M."""
    num_edges, num_batches = (2_000_000, 8) if quick else (20_000_000, 30)
    topology = _topology(num_edges, seed=0)
    weighted = _topology(num_edges // 4, seed=1, weighted=True)
    size = f"{num_edges // 1_000_000}M edges"
    config = {
        "edges": num_edges,
        "nodes": topology.num_nodes,
        "relations": ["clicks", "buys", "rev_clicks", "rev_buys"],
        "batch_size": BATCH_SIZE,
        "fanouts": FANOUTS,
        "batches": num_batches,
        "threads": torch.get_num_threads(),
    }
    batches = _batches(topology.num_nodes["user"], num_batches)
    for name, replace in (("without replacement", False), ("with replacement", True)):
        sampler = _sampler(topology, replace=replace)
        peers: dict[str, Callable[[Tensor], int]] = {"torch": TorchSampler(topology, FANOUTS, replace=replace).sample}
        if torch_geometric.typing.WITH_PYG_LIB:
            peers["pyg_lib"] = _draw(_sampler(topology, replace=replace, backend="pyg_lib"))
        for peer, sample in peers.items():
            value, peer_value = _contest(_draw(sampler), sample, batches)
            yield Row(
                case=f"uniform {name}, {size}",
                metric=EDGES_PER_S,
                value=value,
                peer=Peer(name=peer, value=peer_value),
                config=config,
            )
    for name, graph, settings in (
        ("disjoint", topology, {"disjoint": True}),
        ("temporal uniform", topology, {"temporal": "uniform"}),
        ("temporal last", topology, {"temporal": "last"}),
        ("weighted without replacement", weighted, {}),
    ):
        own_batches = _batches(graph.num_nodes["user"], num_batches)
        value, _ = _contest(_draw(_sampler(graph, **settings)), None, own_batches)
        edges = sum(len(adjacency) for adjacency in graph.relations.values()) // 2
        yield Row(case=f"{name}, {edges // 100_000 / 10:g}M edges", metric=EDGES_PER_S, value=value, config=config)
    yield from _loader_rows(num_edges // 4, num_batches)
    yield _walk_row(topology, size, num_batches)
    yield _negative_row(topology, size, num_batches)


def _topology(num_edges: int, *, seed: int, weighted: bool = False) -> Topology:
    """Users and pins with power-law degrees; edges of a relation have times, or weights."""
    generator = np.random.default_rng(seed)
    num_nodes = {"user": max(1, num_edges // 20), "pin": max(1, num_edges // 40)}
    adjacencies = []
    for name, share in (("clicks", 0.7), ("buys", 0.3)):
        count = int(num_edges * share)
        users = (num_nodes["user"] * generator.random(count) ** 2).astype(np.int32)
        pins = (num_nodes["pin"] * generator.random(count) ** 3).astype(np.int32)
        extra: dict[str, Any] = {"time": generator.integers(0, 1_000_000, count)}
        if weighted:
            extra = {"weight": generator.exponential(size=count).astype(np.float32)}
        for edge_type, ends in ((("user", name, "pin"), (users, pins)), (("pin", f"rev_{name}", "user"), (pins, users))):
            num_src, num_dst = num_nodes[edge_type[0]], num_nodes[edge_type[2]]
            adjacencies.append(Adjacency.from_edges(edge_type, *ends, num_src=num_src, num_dst=num_dst, **extra))
    return Topology(num_nodes, adjacencies)


def _batches(num_users: int, num_batches: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(num_users, (BATCH_SIZE,), generator=generator) for _ in range(num_batches)]


def _sampler(topology: Topology, **settings: Any) -> MultifacetSampler:
    return MultifacetSampler(topology, SamplerConfig.model_validate({"num_neighbors": FANOUTS, "backend": "numba"} | settings))


def _draw(sampler: MultifacetSampler) -> Callable[[Tensor], int]:
    """Samples a batch of users at the middle of the graph's time, and counts its edges."""

    def draw(users: Tensor) -> int:
        times = None if sampler.config.temporal is None else torch.full(users.shape, 500_000)
        output = sampler.sample_from_nodes(NodeSamplerInput(None, users, times, "user"))
        if not isinstance(output, HeteroSamplerOutput):
            raise TypeError(f"a graph with types should give a HeteroSamplerOutput, not {type(output)}")
        return sum(len(row) for row in output.row.values())

    return draw


def _contest(
    ours: Callable[[Batch], int], peer: Callable[[Batch], int] | None, batches: Sequence[Batch]
) -> tuple[float, float]:
    """What each side makes a second: all work on each batch in turn, after one to warm up; the peer's better setting counts."""
    num_threads = torch.get_num_threads()
    sides = [(ours, num_threads)]
    if peer is not None:
        sides += [(peer, num_threads), (peer, 1)]
    made, seconds = [0] * len(sides), [0.0] * len(sides)
    for side, _ in sides:
        side(batches[0])
    for batch in batches:
        for index, (side, threads) in enumerate(sides):
            torch.set_num_threads(threads)
            start = time.perf_counter()
            made[index] += side(batch)
            seconds[index] += time.perf_counter() - start
    torch.set_num_threads(num_threads)
    rates = [count / spent for count, spent in zip(made, seconds, strict=True)]
    return rates[0], max(rates[1:], default=rates[0])


class TorchSampler:
    """The same subgraphs by torch's own operators, vectorised over all nodes of a hop."""

    def __init__(self, topology: Topology, fanouts: Sequence[int], *, replace: bool) -> None:
        self._relations = {
            edge_type: (torch.from_numpy(adjacency.colptr), torch.from_numpy(adjacency.row).long())
            for edge_type, adjacency in topology.relations.items()
        }
        self._local = {name: torch.full((count,), -1) for name, count in topology.num_nodes.items()}
        self._fanouts = fanouts
        self._draw = self._with_replacement if replace else self._without_replacement

    def sample(self, users: Tensor) -> int:
        """Samples around users, and counts the edges."""
        users = torch.unique(users)
        nodes = {name: [torch.empty(0, dtype=torch.int64)] for name in self._local}
        nodes["user"].append(users)
        self._local["user"][users] = torch.arange(len(users))
        sizes = {name: len(part[-1]) for name, part in nodes.items()}
        begins = dict.fromkeys(nodes, 0)
        frontiers = {name: part[-1] for name, part in nodes.items()}
        rows: list[Tensor] = []
        for fanout in self._fanouts:
            found: dict[str, list[Tensor]] = {name: [] for name in nodes}
            ends = dict(sizes)
            for (src, _, dst), (colptr, row) in self._relations.items():
                edge, position = self._draw(colptr, frontiers[dst], fanout)
                neighbors = row[edge]
                new = self._number(src, neighbors, sizes)
                found[src].append(new)
                rows.append(torch.stack([self._local[src][neighbors], begins[dst] + position]))
            for name, parts in found.items():
                frontiers[name] = torch.cat(parts) if parts else frontiers[name][:0]
                nodes[name].append(frontiers[name])
            begins = ends
        for name, parts in nodes.items():
            self._local[name][torch.cat(parts)] = -1
        return sum(row.size(1) for row in rows)

    def _number(self, node_type: str, neighbors: Tensor, sizes: dict[str, int]) -> Tensor:
        """Numbers the nodes that are new; of equal ones, the one that is written last stands for all."""
        local = self._local[node_type]
        unseen = neighbors[local[neighbors] < 0]
        places = torch.arange(len(unseen))
        local[unseen] = places
        new = unseen[local[unseen] == places]
        local[new] = sizes[node_type] + torch.arange(len(new))
        sizes[node_type] += len(new)
        return new

    @staticmethod
    def _with_replacement(colptr: Tensor, nodes: Tensor, fanout: int) -> tuple[Tensor, Tensor]:
        begin = colptr[nodes]
        degree = colptr[nodes + 1] - begin
        position = (degree > 0).nonzero().squeeze(1)
        drawn = (torch.rand(len(position), fanout) * degree[position, None]).long()
        return (begin[position, None] + drawn).flatten(), position.repeat_interleave(fanout)

    @staticmethod
    def _without_replacement(colptr: Tensor, nodes: Tensor, fanout: int) -> tuple[Tensor, Tensor]:
        begin = colptr[nodes]
        degree = colptr[nodes + 1] - begin
        chosen = torch.arange(fanout).repeat(len(nodes), 1)
        many = (degree > fanout).nonzero().squeeze(1)
        largest = degree[many] - fanout
        drawn = torch.empty(len(many), fanout, dtype=torch.int64)
        for column in range(fanout):
            candidate = (torch.rand(len(many)) * (largest + 1)).long()
            repeated = (drawn[:, :column] == candidate[:, None]).any(1)
            drawn[:, column] = torch.where(repeated, largest, candidate)
            largest = largest + 1
        chosen[many] = drawn
        taken = torch.arange(fanout) < degree[:, None]
        position = torch.arange(len(nodes))[:, None].expand(-1, fanout)
        return (begin[:, None] + chosen)[taken], position[taken]


def _loader_rows(num_edges: int, num_batches: int) -> Iterator[Row]:
    """Whole batches of PyG's loaders, with the features of their nodes; the peer samples by pyg-lib where it is installed."""
    topology = _topology(num_edges, seed=4)
    data = HeteroData()
    generator = torch.Generator().manual_seed(5)
    for name, count in topology.num_nodes.items():
        data[name].x = torch.rand(count, NUM_FEATURES, generator=generator)
    for edge_type, adjacency in topology.relations.items():
        dst = np.repeat(np.arange(len(adjacency.colptr) - 1), adjacency.degrees)
        data[edge_type].edge_index = torch.from_numpy(np.stack([adjacency.row.astype(np.int64), dst]))
    for name, replace in (("without replacement", False), ("with replacement", True)):
        settings: dict[str, Any] = {"input_nodes": "user", "batch_size": BATCH_SIZE}
        ours: Callable[[Tensor], int] = _load(NodeLoader(data, _sampler(Topology.from_data(data), replace=replace), **settings))
        peer = None
        if torch_geometric.typing.WITH_PYG_LIB:
            peer = _load(NeighborLoader(data, FANOUTS, replace=replace, **settings))
        value, peer_value = _contest(ours, peer, _batches(topology.num_nodes["user"], num_batches))
        yield Row(
            case=f"loader {name}, {num_edges // 100_000 / 10:g}M edges",
            metric=EDGES_PER_S,
            value=value,
            peer=None if peer is None else Peer(name="NeighborLoader, pyg_lib", value=peer_value),
            config={"edges": num_edges, "features": NUM_FEATURES, "batch_size": BATCH_SIZE, "threads": torch.get_num_threads()},
        )


def _load(loader: NodeLoader) -> Callable[[Tensor], int]:
    """Makes a batch around users, and counts its edges."""

    def load(users: Tensor) -> int:
        batch = loader(users)
        return sum(batch[edge_type].edge_index.size(1) for edge_type in batch.edge_types)

    return load


def _walk_row(topology: Topology, size: str, num_batches: int) -> Row:
    length, num_walks = 8, 100_000
    walker = MetapathWalker(topology, ["clicks", "clicks^-1"])
    relations = [topology.relation("rev_clicks"), topology.relation("clicks")]
    tensors = [(torch.from_numpy(part.colptr), torch.from_numpy(part.row).long()) for part in relations]

    def ours(starts: Tensor) -> int:
        return int((walker.walk(starts, length=length)[:, 1:] >= 0).sum())

    def peer(starts: Tensor) -> int:
        walks = torch.full((length + 1, num_walks), -1)
        walks[0] = starts
        for step in range(length):
            colptr, row = tensors[step % 2]
            walking = (walks[step] >= 0).nonzero().squeeze(1)
            begin = colptr[walks[step, walking]]
            degree = colptr[walks[step, walking] + 1] - begin
            alive = degree > 0
            edge = (begin + (torch.rand(len(begin)) * degree).long())[alive]
            walks[step + 1, walking[alive]] = row[edge]
        return int((walks[1:] >= 0).sum())

    generator = torch.Generator().manual_seed(3)
    batches = [torch.randint(topology.num_nodes["user"], (num_walks,), generator=generator) for _ in range(num_batches)]
    value, peer_value = _contest(ours, peer, batches)
    return Row(
        case=f"metapath walks, {size}",
        metric=STEPS_PER_S,
        value=value,
        peer=Peer(name="torch", value=peer_value),
        config={"walks": num_walks, "length": length, "metapath": walker.metapath, "threads": torch.get_num_threads()},
    )


def _negative_row(topology: Topology, size: str, num_batches: int) -> Row:
    num_draws = 1_000_000
    degrees = torch.from_numpy(topology.relation("clicks").degrees)
    negatives = NegativeSampler(degrees, alpha=ALPHA)
    weights = degrees.double() ** ALPHA

    value, peer_value = _contest(
        lambda count: negatives.sample(count).numel(),
        lambda count: torch.multinomial(weights, count, replacement=True).numel(),
        [num_draws] * num_batches,
    )
    config: Mapping[str, Any] = {"draws": num_draws, "alpha": ALPHA, "nodes": len(degrees), "threads": torch.get_num_threads()}
    return Row(
        case=f"negatives by degree, {size}",
        metric=DRAWS_PER_S,
        value=value,
        peer=Peer(name="torch.multinomial", value=peer_value),
        config=config,
    )
