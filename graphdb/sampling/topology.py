"""The graph as a sampler sees it: node counts and the adjacency of each relation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from multifacet.graphdb.reverse import REVERSE_PREFIX, EdgeType, parse_step, reverse_types
from multifacet.graphdb.sampling.adjacency import Adjacency
from multifacet.graphdb.sql import GraphError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.graphdb.edges import Edges
    from multifacet.graphdb.schema import Relation
    from multifacet.graphdb.view import GraphView

#: A node that has always been there.
ALWAYS: Final = np.iinfo(np.int64).min
HOMOGENEOUS_NODE: Final = "node"
HOMOGENEOUS_EDGE: Final = (HOMOGENEOUS_NODE, "to", HOMOGENEOUS_NODE)


class Topology:
    """Node counts by type, and the in-edges of every relation.

    Args:
        num_nodes: Node type -> nodes.
        adjacencies: One for each relation.
        is_hetero: Whether outputs are keyed by type; False for a `Data` graph.
        reverses: Relation -> edge type of its reverse, where that is known; else a `rev_<name>` is that of `<name>`.
        first_seen: Node type -> microseconds since 1970 from which on each node exists, int64 [n]; by default the time of a
            node's first edge, or always where it has an edge without a time, or none.

    Attributes:
        num_nodes: Node type -> nodes.
        relations: Edge type -> adjacency, in a fixed order.
        is_hetero: Whether outputs are keyed by type.
    """

    def __init__(
        self,
        num_nodes: Mapping[str, int],
        adjacencies: Iterable[Adjacency],
        *,
        is_hetero: bool = True,
        reverses: Mapping[str, EdgeType] | None = None,
        first_seen: Mapping[str, NDArray[np.int64]] | None = None,
    ) -> None:
        self.num_nodes: dict[str, int] = dict(num_nodes)
        self.relations: dict[EdgeType, Adjacency] = {adjacency.edge_type: adjacency for adjacency in adjacencies}
        self.is_hetero = is_hetero
        self._reverses = None if reverses is None else dict(reverses)
        self._first_seen: dict[str, NDArray[np.int64]] = dict(first_seen or {})
        self._unchecked: Relation | None = None

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
        data: HeteroData | tuple[Any, Any] | None = None,
    ) -> Topology:
        """The relations of a window.

        Args:
            view: The window.
            relations: Names of the relations to take; all of the view's by default.
            reverse: Also take each relation against its direction, as `(dst, rev_<name>, src)`. A reversed edge's number in
                the data is that of the edge itself.
            weighted: Take the weights of the relations that have them: their edges are then sampled in proportion.
            data: What a loader will take attributes from: HeteroData, whose edges must be those of the window, in its order;
                or a pair of the view's feature store and graph store, where reversed edges have numbers of their own. A
                `MultifacetSampler` needs it where a relation between nodes of one type is reversed; walks do not.

        Raises:
            GraphError: A relation that the view has not; a weight that is negative or not finite; `weighted` where no relation
                has weights; a reversed relation that would get the name of another; or data with other edges.
        """
        names = [relation.name for relation in view.relations] if relations is None else list(relations)
        chosen = [view.schema.relation(name) for name in names]
        reverses = reverse_types(chosen) if reverse else {}
        adjacencies = []
        for declared in chosen:
            edges = view.edges(declared.name)
            if isinstance(data, HeteroData):
                _check_edges(data, declared.triple, edges.src, edges.dst)
            adjacencies.append(_adjacency(view, declared, edges, weighted=weighted))
            if reverse:
                edge_type = reverses[declared.name]
                if isinstance(data, HeteroData):
                    _check_edges(data, edge_type, edges.dst, edges.src)
                reversed_edges = _adjacency(view, declared, edges, weighted=weighted, reversed_type=edge_type)
                if isinstance(data, tuple):
                    reversed_edges = _numbered_by_column(view, declared, edges, reversed_edges)
                adjacencies.append(reversed_edges)
        first_seen = {name: view.first_seen(name) for name in view.num_nodes}
        topology = cls(view.num_nodes, adjacencies, reverses=reverses, first_seen=first_seen)
        if reverse and data is None:
            topology._unchecked = next((relation for relation in chosen if relation.src == relation.dst), None)
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

    def refuse_unchecked(self) -> None:
        """Refuses to number edges for a loader whose data may have merged the two directions of a relation.

        Raises:
            GraphError: A relation between nodes of one type was reversed, and no `data` was given to `from_view`.
        """
        if self._unchecked is not None:
            msg = (
                f"relation {self._unchecked} joins nodes of one type. PyG's ToUndirected() merges its two directions and adds "
                "up the times of edges that meet, so a batch would hold attributes of other edges. Take data = "
                "view.to_hetero_data(reverse=True), and pass it to the sampler too: view.sampler(..., reverse=True, data=data)"
            )
            raise GraphError(msg)

    def first_seen(self, node_type: str) -> NDArray[np.int64]:
        """From when on each node of a type exists, int64 [n] microseconds; `ALWAYS` where it has always been there."""
        if not self._first_seen:
            self._first_seen.update(self._first_edges())
        return self._first_seen[node_type]

    def step(self, step: str) -> Adjacency:
        """The adjacency along whose in-edges a step of a path goes: that of the reverse for a step along a relation.

        Raises:
            GraphError: There is no such relation or no reverse of it, or the step means two relations.
        """
        name, is_inverse = parse_step(step, {edge_type[1] for edge_type in self.relations})
        if is_inverse:
            return self.relation(name)
        if self._reverses is None:
            return self.relation(f"{REVERSE_PREFIX}{name}")
        if name not in self._reverses:
            msg = f"relation {name!r} has no reverse here; the edge types are {list(self.relations)}"
            raise GraphError(msg)
        return self.relations[self._reverses[name]]

    def _first_edges(self) -> dict[str, NDArray[np.int64]]:
        """The time of each node's first edge; `ALWAYS` where an edge has no time, and where there is none."""
        never = np.iinfo(np.int64).max
        first = {name: np.full(count, never) for name, count in self.num_nodes.items()}
        for (src, _, dst), adjacency in self.relations.items():
            if adjacency.time is None:
                first[src][adjacency.row] = ALWAYS
                first[dst][adjacency.degrees > 0] = ALWAYS
            else:
                _note_first(adjacency.colptr, adjacency.row, adjacency.time, first[src], first[dst])
        for times in first.values():
            times[times == never] = ALWAYS
        return first

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


def _adjacency(
    view: GraphView, relation: Relation, edges: Edges, *, weighted: bool, reversed_type: EdgeType | None = None
) -> Adjacency:
    src, dst = edges.src.numpy(), edges.dst.numpy()
    num_src, num_dst = view.num_nodes[relation.src], view.num_nodes[relation.dst]
    if reversed_type is not None:
        src, dst, num_src, num_dst = dst, src, num_dst, num_src
    return Adjacency.from_edges(
        relation.triple if reversed_type is None else reversed_type,
        src,
        dst,
        num_src=num_src,
        num_dst=num_dst,
        time=None if edges.time is None else edges.time.numpy(),
        weight=edges.weight.numpy() if weighted and edges.weight is not None else None,
    )


def _numbered_by_column(view: GraphView, relation: Relation, edges: Edges, reversed_edges: Adjacency) -> Adjacency:
    """A reversed relation whose edges have the numbers of `ViewGraphStore`, in which they are ordered by column."""
    if reversed_edges.permutation is None:
        return reversed_edges
    if len(reversed_edges) == len(edges):
        return dataclasses.replace(reversed_edges, permutation=None)
    # Edges without a weight are not sampled, but have their numbers.
    whole = _adjacency(view, relation, edges, weighted=False, reversed_type=reversed_edges.edge_type)
    if whole.permutation is None:
        return reversed_edges
    place = np.empty(len(edges), np.int64)
    place[whole.permutation] = np.arange(len(edges))
    return dataclasses.replace(reversed_edges, permutation=place[reversed_edges.permutation])


def _check_edges(data: HeteroData, edge_type: EdgeType, src: Tensor, dst: Tensor) -> None:
    """Refuses data in which an edge's number is not that of the window."""
    if edge_type not in data.edge_types or "edge_index" not in data[edge_type]:
        msg = f"the data has no edges {edge_type}; take it from view.to_hetero_data, with the reverse that the sampler has"
        raise GraphError(msg)
    edge_index = data[edge_type].edge_index.cpu()
    if edge_index.size(1) != len(src) or not (torch.equal(edge_index[0].int(), src) and torch.equal(edge_index[1].int(), dst)):
        msg = (
            f"the data's {edge_index.size(1)} edges {edge_type} are not the window's {len(src)}, in its order: a transform has "
            "changed them. Sample the data itself: MultifacetSampler(Topology.from_data(data), SamplerConfig(...)), or leave "
            "the transform out"
        )
        raise GraphError(msg)


@numba.njit(nogil=True, cache=True)
def _note_first(colptr: Any, row: Any, time: Any, first_src: Any, first_dst: Any) -> None:
    """Lowers the first time of both ends of each edge; times ascend within a column."""
    for column in range(len(colptr) - 1):
        first, end = colptr[column], colptr[column + 1]
        if first < end:
            first_dst[column] = min(first_dst[column], time[first])
        for edge in range(first, end):
            first_src[row[edge]] = min(first_src[row[edge]], time[edge])


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
