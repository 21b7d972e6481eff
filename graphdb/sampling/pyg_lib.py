"""The same sampled subgraphs by pyg-lib's kernels, where pyg-lib is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch_geometric.typing
from torch_geometric.sampler import HeteroSamplerOutput

if TYPE_CHECKING:
    from torch import Tensor

    from graphdb.sampling.config import SamplerConfig
    from graphdb.sampling.subgraph import Seeds
    from graphdb.sampling.topology import Topology


def missing(topology: Topology, config: SamplerConfig) -> str | None:
    """Why pyg-lib cannot sample this, or None where it can."""
    if not torch_geometric.typing.WITH_PYG_LIB:
        return "pyg-lib is not installed (it is not on PyPI; see requirements/pyg-lib.txt)"
    if not (torch_geometric.typing.WITH_EDGE_TIME_NEIGHBOR_SAMPLE and torch_geometric.typing.WITH_WEIGHTED_NEIGHBOR_SAMPLE):
        return "this pyg-lib is too old to sample by edge times and weights; install 0.4 or newer"
    if topology.is_weighted and config.temporal is not None:
        return "pyg-lib cannot sample by weights and by times at once"
    return None


class PygLibSampler:
    """`SubgraphSampler` by `torch.ops.pyg.hetero_neighbor_sample`.

    pyg-lib draws from torch's global generator: each call seeds it with its key and restores it afterwards, so calls from
    several Python threads disturb each other's draws.

    Args:
        topology: The graph.
        config: What to draw.
    """

    def __init__(self, topology: Topology, config: SamplerConfig) -> None:
        self._config = config
        self._node_types = list(topology.num_nodes)
        self._edge_types = list(topology.relations)
        self._names = {edge_type: "__".join(edge_type) for edge_type in self._edge_types}
        by_name = {self._names[edge_type]: adjacency for edge_type, adjacency in topology.relations.items()}
        # pyg-lib wants one integer type throughout, and the edges' own numbers in 64 bits.
        self._colptr = {name: torch.from_numpy(adjacency.colptr) for name, adjacency in by_name.items()}
        self._row = {name: torch.from_numpy(adjacency.row).long() for name, adjacency in by_name.items()}
        self._time: dict[str, Tensor] | None = None
        if config.temporal is not None:
            times = {name: adjacency.time for name, adjacency in by_name.items()}
            self._time = {name: torch.from_numpy(time) for name, time in times.items() if time is not None}
        weights = {name: adjacency.weight for name, adjacency in by_name.items()}
        self._weight = {name: torch.from_numpy(weight) for name, weight in weights.items() if weight is not None} or None
        fanouts = config.fanouts(topology.relations)
        self._fanouts = {self._names[edge_type]: fanouts[edge_type] for edge_type in self._edge_types}

    def sample(self, seeds: Seeds, key: int) -> HeteroSamplerOutput:
        """One subgraph; equal keys give equal subgraphs on an equal number of threads."""
        times = None
        if seeds.times is not None:
            # pyg-lib lets edges AT the seed's time through.
            times = {name: torch.from_numpy(time) - 1 for name, time in seeds.times.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            row, col, node, edge, num_nodes, num_edges = torch.ops.pyg.hetero_neighbor_sample(
                self._node_types,
                self._edge_types,
                self._colptr,
                self._row,
                {name: torch.from_numpy(nodes) for name, nodes in seeds.nodes.items()},
                self._fanouts,
                None,  # node times
                self._time,
                times,
                self._weight,
                True,  # csc
                self._config.replace,
                True,  # directed
                self._config.is_disjoint,
                self._config.temporal or "uniform",
                True,  # return edge ids
            )
        batch = None
        if self._config.is_disjoint:
            batch = {name: pairs[:, 0].contiguous() for name, pairs in node.items()}
            node = {name: pairs[:, 1].contiguous() for name, pairs in node.items()}
        return HeteroSamplerOutput(
            node=dict(node),
            row={edge_type: row[name] for edge_type, name in self._names.items()},
            col={edge_type: col[name] for edge_type, name in self._names.items()},
            edge={edge_type: edge[name] for edge_type, name in self._names.items()},
            batch=batch,
            num_sampled_nodes=dict(num_nodes),
            num_sampled_edges={edge_type: num_edges[name] for edge_type, name in self._names.items()},
        )
