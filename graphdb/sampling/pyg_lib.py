"""The same sampled subgraphs by pyg-lib's kernels, where pyg-lib is installed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch_geometric.typing
from torch_geometric.sampler import HeteroSamplerOutput

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from multifacet.graphdb.sampling.config import SamplerConfig
    from multifacet.graphdb.sampling.subgraph import Seeds
    from multifacet.graphdb.sampling.topology import Topology


def missing(topology: Topology, config: SamplerConfig) -> str | None:
    """Why pyg-lib cannot sample this, or None where it can."""
    if not torch_geometric.typing.WITH_PYG_LIB:
        return "pyg-lib is not installed (it is not on PyPI; see requirements/pyg-lib.txt)"
    if not (torch_geometric.typing.WITH_EDGE_TIME_NEIGHBOR_SAMPLE and torch_geometric.typing.WITH_WEIGHTED_NEIGHBOR_SAMPLE):
        return "this pyg-lib is too old to sample by edge times and weights; install 0.4 or newer"
    if topology.is_weighted and config.temporal is not None:
        return "pyg-lib cannot sample by weights and by times at once"
    return None


_FIRST: Final = np.iinfo(np.int64).min
#: pyg-lib draws from torch's one global generator: calls take turns.
_TURN: Final = threading.Lock()


class PygLibSampler:
    """`SubgraphSampler` by `torch.ops.pyg.hetero_neighbor_sample`.

    pyg-lib draws from torch's global generator, and what it draws depends on the number of threads. So each call waits for its
    turn, seeds the generator with its key, runs on one thread, and puts the generator back as it was. One promise is beyond it:
    if another thread draws from torch's global generator during a call, both sides' draws change.

    Args:
        topology: The graph.
        config: What to draw.
    """

    def __init__(self, topology: Topology, config: SamplerConfig) -> None:
        self._config = config
        # pyg-lib joins the parts of an edge type by "__", which names may hold: it gets numbers instead.
        self._node_types = {name: str(number) for number, name in enumerate(topology.num_nodes)}
        self._edge_types = {
            edge_type: (self._node_types[edge_type[0]], str(number), self._node_types[edge_type[2]])
            for number, edge_type in enumerate(topology.relations)
        }
        self._names = {edge_type: "__".join(numbered) for edge_type, numbered in self._edge_types.items()}
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
        """One subgraph; equal keys give equal subgraphs, on any number of threads."""
        nodes = {name: torch.from_numpy(idx) for name, idx in seeds.nodes.items()}
        places: dict[str, tuple[Tensor, Tensor]] = {}
        if not self._config.is_disjoint:
            # pyg-lib gives a seed that comes twice one place.
            for name, idx in nodes.items():
                places[name] = _first_places(idx)
                nodes[name] = idx[places[name][0]]
        row, col, node, edge, num_nodes, num_edges = self._run(nodes, seeds.times, key)
        output = HeteroSamplerOutput(
            node={name: node[number] for name, number in self._node_types.items()},
            row={edge_type: row[name] for edge_type, name in self._names.items()},
            col={edge_type: col[name] for edge_type, name in self._names.items()},
            edge={edge_type: edge[name] for edge_type, name in self._names.items()},
            num_sampled_nodes={name: list(num_nodes[number]) for name, number in self._node_types.items()},
            num_sampled_edges={edge_type: list(num_edges[name]) for edge_type, name in self._names.items()},
        )
        if self._config.is_disjoint:
            output.batch = {name: pairs[:, 0].contiguous() for name, pairs in output.node.items()}
            output.node = {name: pairs[:, 1].contiguous() for name, pairs in output.node.items()}
        for name, (place, which) in places.items():
            _restore_seeds(output, name, torch.from_numpy(seeds.nodes[name]), place, which)
        return output

    def _run(self, nodes: Mapping[str, Tensor], times: Mapping[str, NDArray[np.int64]] | None, key: int) -> Any:
        seed_times = None
        if times is not None:
            # pyg-lib lets edges AT the seed's time through. Nothing is before the first of all times.
            before = {name: np.maximum(time, _FIRST + 1) - 1 for name, time in times.items()}
            seed_times = {self._node_types[name]: torch.from_numpy(time) for name, time in before.items()}
        with _TURN:
            generator, num_threads = torch.default_generator, torch.get_num_threads()
            state = generator.get_state()
            torch.set_num_threads(1)
            try:
                generator.manual_seed(key)
                return torch.ops.pyg.hetero_neighbor_sample(
                    list(self._node_types.values()),
                    list(self._edge_types.values()),
                    self._colptr,
                    self._row,
                    {self._node_types[name]: idx for name, idx in nodes.items()},
                    self._fanouts,
                    None,  # node times
                    self._time,
                    seed_times,
                    self._weight,
                    True,  # csc
                    self._config.replace,
                    True,  # directed
                    self._config.is_disjoint,
                    self._config.temporal or "uniform",
                    True,  # return edge ids
                )
            finally:
                torch.set_num_threads(num_threads)
                generator.set_state(state)


def _first_places(idx: Tensor) -> tuple[Tensor, Tensor]:
    """Of seeds [n]: where each distinct one first stands, ascending, and which of those each seed is, [n]."""
    _, first, which = np.unique(idx.numpy(), return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    return torch.from_numpy(np.sort(first)), torch.from_numpy(rank[which])


def _restore_seeds(output: HeteroSamplerOutput, name: str, seeds: Tensor, place: Tensor, which: Tensor) -> None:
    """Gives every seed of a type its place, and its draw to one that comes again; edges out of it lead from the first."""
    num_distinct, num_repeated = len(place), len(seeds) - len(place)
    if not num_repeated:
        return
    numbers = torch.cat([place, torch.arange(num_distinct, len(output.node[name])) + num_repeated])
    output.node[name] = torch.cat([seeds, output.node[name][num_distinct:]])
    output.num_sampled_nodes[name][0] += num_repeated
    is_repeated = torch.ones(len(seeds), dtype=torch.bool)
    is_repeated[place] = False
    repeated = is_repeated.nonzero().squeeze(1)
    for edge_type in output.row:
        if edge_type[0] == name:
            output.row[edge_type] = numbers[output.row[edge_type]]
        if edge_type[2] != name:
            continue
        num_first = output.num_sampled_edges[edge_type][0]
        col = output.col[edge_type]
        # The edges of the first hop come seed by seed.
        begin = torch.searchsorted(col[:num_first], which[repeated])
        counts = torch.searchsorted(col[:num_first], which[repeated], right=True) - begin
        copies = torch.repeat_interleave(begin - counts.cumsum(0) + counts, counts) + torch.arange(int(counts.sum()))
        for part in (output.row, output.edge):
            values = part[edge_type]
            part[edge_type] = torch.cat([values[:num_first], values[copies], values[num_first:]])
        again = torch.repeat_interleave(repeated, counts)
        output.col[edge_type] = torch.cat([numbers[col[:num_first]], again, numbers[col[num_first:]]])
        output.num_sampled_edges[edge_type][0] += len(copies)
