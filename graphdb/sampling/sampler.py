"""The sampler that PyG's loaders take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch_geometric.sampler import (
    BaseSampler,
    EdgeSamplerInput,
    HeteroSamplerOutput,
    NegativeSampling,
    NodeSamplerInput,
    SamplerOutput,
)

from multifacet.graphdb.sampling import pyg_lib
from multifacet.graphdb.sampling.link_negatives import LinkNegatives
from multifacet.graphdb.sampling.links import Links
from multifacet.graphdb.sampling.stream import Stream
from multifacet.graphdb.sampling.subgraph import Seeds, SubgraphSampler
from multifacet.graphdb.sampling.topology import HOMOGENEOUS_EDGE, HOMOGENEOUS_NODE, Topology
from multifacet.graphdb.sql import GraphError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.graphdb.reverse import EdgeType
    from multifacet.graphdb.sampling.config import SamplerConfig


class MultifacetSampler(BaseSampler):  # type: ignore[misc]  # torch_geometric is untyped
    """Samples the neighbourhoods of nodes and of links, for PyG's `NodeLoader` and `LinkLoader`.

    Neighbours are drawn uniformly, by weight where the topology has weights, or only from before the seed's time; over any
    relations and hops; in subgraphs that seeds share, or one for each seed. Neither pyg-lib nor torch-sparse is needed.
    What is drawn depends on the seed, the call and the place in the subgraph, not on the number of threads.

    A loader's negatives are nodes of the right type, drawn by `NegativeSampling`'s own weights where it has them, else in
    proportion to degree^`negative_alpha`; where links have times, only nodes that had been seen by then. A few are true
    neighbours, unless `exclude_positives` is set.

    Args:
        topology: The graph, of a `GraphView` or of PyG's `Data` or `HeteroData`.
        config: What to draw.

    Raises:
        GraphError: A reversed relation between nodes of one type without a check of the loader's data (see
            `Topology.from_view`), temporal sampling of a graph without times, or settings that the chosen backend cannot do.

    Example:
        >>> from multifacet.graphdb.sampling import SamplerConfig, Topology
        >>> from torch_geometric.data import Data
        >>> from torch_geometric.loader import NodeLoader
        >>> data = Data(edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]), num_nodes=3)
        >>> sampler = MultifacetSampler(Topology.from_data(data), SamplerConfig(num_neighbors=[1]))
        >>> next(iter(NodeLoader(data, sampler, input_nodes=torch.tensor([1])))).n_id
        tensor([1, 0])
    """

    def __init__(self, topology: Topology, config: SamplerConfig) -> None:
        topology.refuse_unchecked()
        if config.temporal is not None and not topology.is_timed:
            msg = f"temporal={config.temporal!r}, but no relation of {topology} has times; leave it out"
            raise GraphError(msg)
        if config.backend == "pyg_lib":
            missing = pyg_lib.missing(topology, config)
            if missing is not None:
                msg = f"backend='pyg_lib': {missing}; backend='numba' needs nothing"
                raise GraphError(msg)
        self.topology = topology
        self.config = config
        self.backend = "pyg_lib" if config.backend == "pyg_lib" else "numba"
        kind = SubgraphSampler if self.backend == "numba" else pyg_lib.PygLibSampler
        self._subgraphs = kind(topology, config)
        self._stream = Stream(config.seed)
        self._negatives = LinkNegatives(topology, config, self._stream)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.topology}, backend={self.backend})"

    @property
    def edge_permutation(self) -> Tensor | dict[EdgeType, Tensor | None] | None:
        """Position of each edge in the data that the topology was made of; None for a relation that kept its order."""
        permutations = {
            edge_type: None if adjacency.permutation is None else torch.from_numpy(adjacency.permutation)
            for edge_type, adjacency in self.topology.relations.items()
        }
        return permutations if self.topology.is_hetero else permutations[HOMOGENEOUS_EDGE]

    def sample_from_nodes(self, inputs: NodeSamplerInput) -> HeteroSamplerOutput | SamplerOutput:
        """The neighbourhood of seed nodes.

        Args:
            inputs: Node idx, their type, and their times where the sampling is temporal.

        Raises:
            GraphError: An unknown type, an idx out of range, or times that are missing or would be ignored.
        """
        node_type = HOMOGENEOUS_NODE if inputs.input_type is None else inputs.input_type
        nodes = self._nodes(node_type, inputs.node)
        times = self._times(inputs.time, len(nodes))
        seeds = Seeds(nodes={node_type: nodes}, times=None if times is None else {node_type: times.numpy()})
        output = self._subgraphs.sample(seeds, self._stream.next_key())
        output.metadata = (inputs.input_id, inputs.time)
        return self._unwrapped(output)

    def sample_from_edges(
        self, inputs: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None
    ) -> HeteroSamplerOutput | SamplerOutput:
        """The neighbourhood of both ends of seed links, and of their negatives.

        Args:
            inputs: Idx of the links' ends, their edge type, labels, and times where the sampling is temporal.
            neg_sampling: Binary or triplet negatives to add.

        Raises:
            GraphError: As for nodes.
        """
        edge_type = HOMOGENEOUS_EDGE if inputs.input_type is None else inputs.input_type
        self._nodes(edge_type[0], inputs.row)
        self._nodes(edge_type[2], inputs.col)
        self._times(inputs.time, inputs.row.numel())

        links = Links(inputs, edge_type, neg_sampling, self._negatives)
        output = links.sample(
            lambda seeds: self._subgraphs.sample(seeds, self._stream.next_key()), disjoint=self.config.is_disjoint
        )
        return self._unwrapped(output)

    def _nodes(self, node_type: str, nodes: Tensor) -> NDArray[np.int64]:
        if node_type not in self.topology.num_nodes:
            msg = f"unknown node type {node_type!r}, known: {list(self.topology.num_nodes)}"
            raise GraphError(msg)
        num_nodes = self.topology.num_nodes[node_type]
        if nodes.numel() and (int(nodes.min()) < 0 or int(nodes.max()) >= num_nodes):
            position = int(((nodes < 0) | (nodes >= num_nodes)).nonzero()[0])
            msg = f"seed {position} is {int(nodes[position])}; {node_type!r} has nodes 0 to {num_nodes - 1}"
            raise GraphError(msg)
        array: NDArray[np.int64] = nodes.long().contiguous().numpy()
        return array

    def _times(self, times: Tensor | None, num_seeds: int) -> Tensor | None:
        if self.config.temporal is None:
            if times is not None:
                msg = "the seeds have times, which this sampler would ignore; give it temporal='uniform' or 'last'"
                raise GraphError(msg)
            return None
        if times is None:
            msg = (
                f"temporal={self.config.temporal!r} needs the seeds' times: give NodeLoader input_time, or LinkLoader "
                "edge_label_time"
            )
            raise GraphError(msg)
        if times.is_floating_point() or times.numel() != num_seeds:
            msg = f"the seeds' times are {times.dtype} {list(times.shape)}, expected integers [{num_seeds}]"
            raise GraphError(msg)
        return times.long().contiguous()

    def _unwrapped(self, output: HeteroSamplerOutput) -> HeteroSamplerOutput | SamplerOutput:
        """The output of a graph without types."""
        if self.topology.is_hetero:
            return output
        return SamplerOutput(
            node=output.node[HOMOGENEOUS_NODE],
            row=output.row[HOMOGENEOUS_EDGE],
            col=output.col[HOMOGENEOUS_EDGE],
            edge=output.edge[HOMOGENEOUS_EDGE],
            batch=None if output.batch is None else output.batch[HOMOGENEOUS_NODE],
            num_sampled_nodes=output.num_sampled_nodes[HOMOGENEOUS_NODE],
            num_sampled_edges=output.num_sampled_edges[HOMOGENEOUS_EDGE],
            metadata=output.metadata,
        )
