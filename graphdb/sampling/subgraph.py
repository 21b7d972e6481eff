"""Sampled subgraphs: hop by hop, relation by relation, from seeds of any types."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch_geometric.sampler import HeteroSamplerOutput

from multifacet.graphdb.counter import derive_key
from multifacet.graphdb.sampling.neighbors import Neighbors, draw_neighbors
from multifacet.graphdb.sampling.numbering import DisjointNumbering, Frontier, Numbering, ScratchPool, SharedNumbering
from multifacet.graphdb.threads import run_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from multifacet.graphdb.reverse import EdgeType
    from multifacet.graphdb.sampling.config import SamplerConfig
    from multifacet.graphdb.sampling.topology import Topology


_MIN_EDGES_AT_ONCE: Final = 1 << 14


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Seeds:
    """The seeds of one sampled subgraph; each has a number, counted through the types in their order.

    Attributes:
        nodes: Node type -> int64 [n], idx, all in range.
        times: Node type -> int64 [n], or None where the sampling is not temporal.
    """

    nodes: Mapping[str, NDArray[np.int64]]
    times: Mapping[str, NDArray[np.int64]] | None = None

    def numbers(self) -> dict[str, NDArray[np.int64]]:
        """Node type -> number of each seed."""
        first = 0
        numbers = {}
        for name, nodes in self.nodes.items():
            numbers[name] = np.arange(first, first + len(nodes))
            first += len(nodes)
        return numbers

    def time_by_number(self) -> NDArray[np.int64] | None:
        """Time of each seed by its number, int64."""
        if self.times is None:
            return None
        return np.concatenate([self.times[name] for name in self.nodes])


class SubgraphSampler:
    """Samples subgraphs in PyG's conventions, with this package's own kernels.

    `node` holds the seeds first, then the nodes of each hop in the order in which they were reached; `row` and `col` are
    local numbers of an edge's src and dst; `edge` is its position in the adjacency; `batch` the number of the seed that a
    node was reached from, where subgraphs are disjoint.

    Args:
        topology: The graph.
        config: What to draw.
    """

    def __init__(self, topology: Topology, config: SamplerConfig) -> None:
        self.topology = topology
        self.config = config
        self._fanouts = config.fanouts(topology.relations)
        self._pool = ScratchPool()
        by_src_type: dict[str, list[EdgeType]] = {}
        for edge_type in topology.relations:
            by_src_type.setdefault(edge_type[0], []).append(edge_type)
        self._by_src_type = list(by_src_type.values())

    def sample(self, seeds: Seeds, key: int) -> HeteroSamplerOutput:
        """One subgraph; equal keys give equal subgraphs, on any number of threads."""
        numberings = {name: self._numbering(num_nodes) for name, num_nodes in self.topology.num_nodes.items()}
        for name, numbers in seeds.numbers().items():
            numberings[name].add_seeds(seeds.nodes[name], numbers)
        drawn: dict[EdgeType, list[Neighbors]] = {edge_type: [] for edge_type in self.topology.relations}
        rows: dict[EdgeType, list[NDArray[np.int64]]] = {edge_type: [] for edge_type in self.topology.relations}
        num_nodes = {name: [len(numbering)] for name, numbering in numberings.items()}
        times = seeds.time_by_number()
        for hop in range(self.config.num_hops):
            frontiers = {name: numbering.take_frontier() for name, numbering in numberings.items()}
            for index, (edge_type, adjacency) in enumerate(self.topology.relations.items()):
                frontier = frontiers[edge_type[2]]
                fanout = self._fanouts[edge_type][hop]
                neighbors = draw_neighbors(
                    adjacency,
                    frontier.nodes if fanout else frontier.nodes[:0],
                    first_center=frontier.first,
                    fanout=fanout,
                    key=int(derive_key(key, hop, index)),
                    replace=self.config.replace,
                    times=None if times is None else times[frontier.subgraphs],
                    latest=self.config.temporal == "last",
                )
                drawn[edge_type].append(neighbors)
            self._number(hop, numberings, frontiers, drawn, rows)
            for name, numbering in numberings.items():
                num_nodes[name].append(len(numbering) - sum(num_nodes[name]))
        output = HeteroSamplerOutput(
            node={name: torch.from_numpy(numbering.nodes) for name, numbering in numberings.items()},
            row={edge_type: _joined(parts) for edge_type, parts in rows.items()},
            col={edge_type: _joined([part.center for part in parts]) for edge_type, parts in drawn.items()},
            edge={edge_type: _joined([part.edge for part in parts]) for edge_type, parts in drawn.items()},
            batch={name: torch.from_numpy(numbering.subgraphs) for name, numbering in numberings.items()}
            if self.config.is_disjoint
            else None,
            num_sampled_nodes=num_nodes,
            num_sampled_edges={edge_type: [len(part) for part in parts] for edge_type, parts in rows.items()},
        )
        # Only here: after an error the borrowed scratch is not clean, and is left to the garbage collector.
        for numbering in numberings.values():
            numbering.close()
        return output

    def _number(
        self,
        hop: int,
        numberings: Mapping[str, Numbering],
        frontiers: Mapping[str, Frontier],
        drawn: Mapping[EdgeType, Sequence[Neighbors]],
        rows: Mapping[EdgeType, list[NDArray[np.int64]]],
    ) -> None:
        """Numbers the nodes that a hop has reached: those of one type relation by relation, the types at once."""

        def number(start: int, stop: int) -> None:
            for relations in self._by_src_type[start:stop]:
                for edge_type in relations:
                    neighbors, frontier = drawn[edge_type][hop], frontiers[edge_type[2]]
                    numbers = numberings[edge_type[0]].add(neighbors.node, neighbors.center - frontier.first, frontier)
                    rows[edge_type].append(numbers)

        num_drawn = sum(len(parts[hop].node) for parts in drawn.values())
        run_ranges(number, len(self._by_src_type), min_size=1 if num_drawn >= _MIN_EDGES_AT_ONCE else len(self._by_src_type))

    def _numbering(self, num_nodes: int) -> SharedNumbering | DisjointNumbering:
        return DisjointNumbering(num_nodes) if self.config.is_disjoint else SharedNumbering(num_nodes, self._pool)


def _joined(parts: list[NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))
