"""The graph as a sampler sees it: node counts and the adjacency of each relation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from graphdb.sampling.adjacency import Adjacency, EdgeType
from graphdb.sql import GraphError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphdb.view import GraphView

REVERSE_PREFIX: Final = "rev_"
HOMOGENEOUS_NODE: Final = "node"
HOMOGENEOUS_EDGE: Final = (HOMOGENEOUS_NODE, "to", HOMOGENEOUS_NODE)


class Topology:
    """Node counts by type, and the in-edges of every relation.

    Args:
        num_nodes: Node type -> nodes.
        adjacencies: One for each relation.
        is_hetero: Whether outputs are keyed by type; False for a `Data` graph.

    Attributes:
        num_nodes: Node type -> nodes.
        relations: Edge type -> adjacency, in a fixed order.
        is_hetero: Whether outputs are keyed by type.
    """

    def __init__(self, num_nodes: Mapping[str, int], adjacencies: Iterable[Adjacency], *, is_hetero: bool = True) -> None:
        self.num_nodes: dict[str, int] = dict(num_nodes)
        self.relations: dict[EdgeType, Adjacency] = {adjacency.edge_type: adjacency for adjacency in adjacencies}
        self.is_hetero = is_hetero

    def __repr__(self) -> str:
        parts = [f"{name}={count}" for name, count in self.num_nodes.items()]
        parts += [f"({', '.join(edge_type)})={len(adjacency)}" for edge_type, adjacency in self.relations.items()]
        return f"Topology({', '.join(parts)})"

    @classmethod
    def from_view(
        cls,
        view: GraphView,
        *,
        relations: Iterable[str] | None = None,
        reverse: bool = False,
        weighted: bool = False,
    ) -> Topology:
        """The relations of a window.

        Args:
            view: The window.
            relations: Names of the relations to take; all of the view's by default.
            reverse: Also take each relation against its direction, as `(dst, rev_<name>, src)`: what PyG's `ToUndirected`
                adds to a `HeteroData`. A reversed edge's number in the data is that of the edge itself.
            weighted: Take the weights of the relations that have them: their edges are then sampled in proportion.

        Raises:
            GraphError: A relation that the view has not; a weight that is negative or not finite; or `weighted` where no
                relation has weights.
        """
        names = [relation.name for relation in view.relations] if relations is None else list(relations)
        adjacencies = []
        for name in names:
            edges = view.edges(name)
            declared = view.schema.relation(name)
            src, dst = edges.src.numpy(), edges.dst.numpy()
            time = None if edges.time is None else edges.time.numpy()
            weight = edges.weight.numpy() if weighted and edges.weight is not None else None
            num_src, num_dst = view.num_nodes[declared.src], view.num_nodes[declared.dst]
            adjacencies.append(
                Adjacency.from_edges(declared.triple, src, dst, num_src=num_src, num_dst=num_dst, time=time, weight=weight)
            )
            if reverse:
                edge_type = (declared.dst, f"{REVERSE_PREFIX}{name}", declared.src)
                adjacencies.append(
                    Adjacency.from_edges(edge_type, dst, src, num_src=num_dst, num_dst=num_src, time=time, weight=weight)
                )
        topology = cls(view.num_nodes, adjacencies)
        if weighted and not topology.is_weighted:
            msg = f"weighted=True, but none of the relations {names} has weights; leave it out"
            raise GraphError(msg)
        return topology

    @classmethod
    def from_data(cls, data: Data | HeteroData, *, time_attr: str | None = "time", weight_attr: str | None = None) -> Topology:
        """The edges of a PyG graph, in whatever order they are.

        Args:
            data: A `Data` or `HeteroData` with `edge_index`.
            time_attr: Edge attribute that holds integer times, where an edge type has it.
            weight_attr: Edge attribute that holds weights, where an edge type has it: its edges are then sampled in
                proportion.

        Raises:
            GraphError: No edge_index, an unknown number of nodes, times that are no integers, edges that do not fit the
                nodes, weights that are negative or not finite, or a weight attribute that no edge type has.
        """
        is_hetero = isinstance(data, HeteroData)
        stores = {tuple(store._key): store for store in data.edge_stores} if is_hetero else {HOMOGENEOUS_EDGE: data}
        nodes = {store._key: store for store in data.node_stores} if is_hetero else {HOMOGENEOUS_NODE: data}
        num_nodes = {name: _num_nodes(name, store.num_nodes) for name, store in nodes.items()}
        adjacencies = []
        for edge_type, store in stores.items():
            if "edge_index" not in store:
                msg = f"relation {edge_type} has no edge_index; make it from the adjacency, or remove this edge type"
                raise GraphError(msg)
            edge_index = store.edge_index
            time = store[time_attr] if time_attr is not None and time_attr in store else None
            weight = store[weight_attr] if weight_attr is not None and weight_attr in store else None
            adjacencies.append(
                Adjacency.from_edges(
                    edge_type,
                    _int32(edge_index[0]),
                    _int32(edge_index[1]),
                    num_src=num_nodes[edge_type[0]],
                    num_dst=num_nodes[edge_type[2]],
                    time=None if time is None else _times(edge_type, time, edge_index.size(1)),
                    weight=None if weight is None else weight.detach().cpu().float().reshape(-1).contiguous().numpy(),
                )
            )
        topology = cls(num_nodes, adjacencies, is_hetero=is_hetero)
        if weight_attr is not None and not topology.is_weighted:
            msg = f"no edge type has the weights {weight_attr!r}; leave weight_attr out"
            raise GraphError(msg)
        return topology

    @property
    def is_weighted(self) -> bool:
        """Whether any relation is sampled by weight."""
        return any(adjacency.weight is not None for adjacency in self.relations.values())

    @property
    def is_timed(self) -> bool:
        """Whether any relation's edges have times."""
        return any(adjacency.time is not None for adjacency in self.relations.values())

    def relation(self, edge_type: EdgeType | str) -> Adjacency:
        """The adjacency of an edge type, or of a relation's name.

        Raises:
            GraphError: None has it, or several have the name.
        """
        found = [key for key in self.relations if edge_type in (key, key[1])]
        if len(found) != 1:
            what = "several relations are" if found else "no relation is"
            msg = f"{what} called {edge_type!r}; the edge types are {list(self.relations)}"
            raise GraphError(msg)
        return self.relations[found[0]]


def _num_nodes(name: str, num_nodes: int | None) -> int:
    if num_nodes is None:
        msg = f"the number of {name!r} nodes is unknown; set num_nodes, or features x, of this node type"
        raise GraphError(msg)
    return int(num_nodes)


def _int32(idx: Tensor) -> NDArray[np.int32]:
    if idx.numel() and int(idx.max()) > np.iinfo(np.int32).max:
        msg = f"node idx {int(idx.max())} does not fit 32 bits"
        raise GraphError(msg)
    array: NDArray[np.int32] = idx.cpu().to(torch.int32).contiguous().numpy()
    return array


def _times(edge_type: EdgeType, time: Tensor, num_edges: int) -> NDArray[np.int64]:
    if time.is_floating_point() or time.is_complex() or time.numel() != num_edges:
        msg = (
            f"relation {edge_type}: times are {time.dtype} {list(time.shape)}, expected integers [{num_edges}] "
            "(microseconds since the epoch, for instance)"
        )
        raise GraphError(msg)
    array: NDArray[np.int64] = time.cpu().reshape(-1).to(torch.int64).contiguous().numpy()
    return array
