"""A window as PyG's HeteroData, and as its GraphStore and FeatureStore for loaders that ask for their data piece by piece.

PyG's store interface knows no edge attributes: its loaders put the number of each edge into a batch (`e_id`), by which
`ViewFeatureStore` gives its time, weight and properties.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
import torch
import torch_geometric.typing
from torch import Tensor
from torch_geometric.data import FeatureStore, GraphStore, HeteroData, TensorAttr
from torch_geometric.data.graph_store import EdgeAttr, EdgeLayout

from multifacet.graphdb.properties import property_tensor, tensor_properties
from multifacet.graphdb.reverse import EdgeType, reverse_types
from multifacet.graphdb.sampling.adjacency import Adjacency
from multifacet.graphdb.sql import GraphError

if TYPE_CHECKING:
    from multifacet.graphdb.edges import Edges
    from multifacet.graphdb.view import GraphView

logger = logging.getLogger(__name__)

#: Which properties to take: all that tensors can hold, none, or those named for a node type or an edge type.
Properties = bool | Mapping[str | EdgeType, Sequence[str]]

#: What PyG's loaders, or we, write into a batch beside the data's own attributes.
_TAKEN: Final = frozenset(
    {
        "adj", "adj_t", "batch", "batch_size", "dst_neg_index", "dst_pos_index", "e_id", "edge_index", "edge_label",
        "edge_label_index", "edge_label_time", "edge_time", "edge_weight", "input_id", "n_id", "num_nodes", "num_sampled_edges",
        "num_sampled_nodes", "ptr", "seed_time", "src_index", "_orig_edge_index",
    }
)  # fmt: skip


def hetero_data(view: GraphView, *, reverse: bool, properties: Properties) -> HeteroData:
    """The window as HeteroData; see `GraphView.to_hetero_data`."""
    reverses = reverse_types(view.relations) if reverse else {}
    data = HeteroData()
    for name, num_nodes in view.num_nodes.items():
        data[name].num_nodes = num_nodes
        for attribute, values in _node_tensors(view, name, properties).items():
            data[name][attribute] = values
    for relation in view.relations:
        edges = view.edges(relation.name)
        attributes = _edge_tensors(view, relation.name, properties)
        if edges.time is not None:
            attributes["time"] = edges.time
        if edges.weight is not None:
            attributes["edge_weight"] = edges.weight
        edge_index = torch.stack([edges.src, edges.dst]).long()
        data[relation.triple].edge_index = edge_index
        if reverse:
            data[reverses[relation.name]].edge_index = edge_index.flip(0)
        for edge_type in [relation.triple, *([reverses[relation.name]] if reverse else [])]:
            for attribute, values in attributes.items():
                data[edge_type][attribute] = values
    return data


class ViewGraphStore(GraphStore):  # type: ignore[misc] # PyG has no types
    """The relations of a window, in COO or CSC, as int64, edges in the order of `GraphView.edges`.

    A relation is read when it is first asked for, and kept. Pickled, the store takes all its relations along.

    Args:
        view: The window.
        reverse: Also hold each relation against its direction, as `(dst, rev_<name>, src)`.

    Raises:
        GraphError: A reversed relation would get the name of another.
    """

    def __init__(self, view: GraphView, *, reverse: bool = False) -> None:
        super().__init__()
        forward = {relation.triple: (relation.name, False) for relation in view.relations}
        backward = {kind: (name, True) for name, kind in reverse_types(view.relations).items()} if reverse else {}
        self.__dict__["_view"] = view
        self.__dict__["_relations"] = forward | backward
        self.__dict__["_num_nodes"] = dict(view.num_nodes)
        self.__dict__["_columns"] = {}
        if not (torch_geometric.typing.WITH_PYG_LIB or torch_geometric.typing.WITH_TORCH_SPARSE):
            logger.warning(
                "neither pyg-lib nor torch-sparse is installed: PyG's NeighborLoader raises ImportError at its first batch; "
                "GraphView.sampler, with NodeLoader or LinkLoader, needs neither"
            )

    def __getstate__(self) -> dict[str, Any]:
        for edge_type in self._relations:
            self._csc(edge_type)
        return self.__dict__ | {"_view": None}

    def get_all_edge_attrs(self) -> list[EdgeAttr]:
        """Each relation in CSC, the layout that samplers want; in-edges are ordered by time."""
        return [
            EdgeAttr(
                edge_type,
                EdgeLayout.CSC,
                is_sorted=True,
                size=(self._num_nodes[edge_type[0]], self._num_nodes[edge_type[2]]),
            )
            for edge_type in self._relations
        ]

    def edge_order(self, edge_type: EdgeType) -> Tensor | None:
        """Where each edge of a reversed relation stands in `GraphView.edges`, int64 [E]; None for a relation itself.

        PyG's loaders put an edge's place in this store into a batch: `edge_order(edge_type)[batch[edge_type].e_id]`.
        """
        order: Tensor | None = self._csc(edge_type)[2]
        return order

    def _get_edge_index(self, edge_attr: EdgeAttr) -> tuple[Tensor, Tensor] | None:
        edge_type = tuple(edge_attr.edge_type)
        if edge_type not in self._relations or edge_attr.layout == EdgeLayout.CSR:
            return None
        row, pointers, _ = self._csc(edge_type)
        if edge_attr.layout == EdgeLayout.COO:
            return row, torch.repeat_interleave(torch.arange(len(pointers) - 1), pointers.diff())
        return row, pointers

    def _csc(self, edge_type: EdgeType) -> tuple[Tensor, Tensor, Tensor | None]:
        if edge_type not in self._columns:
            name, is_reversed = self._relations[edge_type]
            if is_reversed:
                self._columns[edge_type] = _reversed_columns(self._view, name, self._view.edges(name))
            else:
                csc = self._view.csc(name)
                self._columns[edge_type] = csc.row.long(), csc.colptr, None
        columns: tuple[Tensor, Tensor, Tensor | None] = self._columns[edge_type]
        return columns

    def _put_edge_index(self, *_: Any) -> NoReturn:
        _refuse()

    def _remove_edge_index(self, *_: Any) -> NoReturn:
        _refuse()


class ViewFeatureStore(FeatureStore):  # type: ignore[misc] # PyG has no types
    """What the nodes and edges of a window carry, read when the store is made; it can be pickled.

    Each node type has `idx`, the store's idx of each node (int64 [num_nodes]), and its properties as `property_tensor` gives
    them. Each edge type has `edge_time` (int64 microseconds), `edge_weight` and its properties. The edges of a relation are in
    the order of `GraphView.edges`, those of its reverse in the order of `ViewGraphStore`.

    Args:
        view: The window.
        reverse: Also hold what the edges of reversed relations carry.
        properties: Which properties to take.

    Raises:
        GraphError: A property whose name PyG's loaders take, or whose values no tensor holds exactly.
    """

    def __init__(self, view: GraphView, *, reverse: bool = False, properties: Properties = True) -> None:
        super().__init__()
        tensors: dict[tuple[str | EdgeType, str], Tensor] = {}
        for name in view.num_nodes:
            tensors[name, "idx"] = torch.from_numpy(view.node_idx(name).astype(np.int64))
            tensors |= {(name, attribute): values for attribute, values in _node_tensors(view, name, properties).items()}
        reverses = reverse_types(view.relations) if reverse else {}
        for relation in view.relations:
            attributes = _edge_tensors(view, relation.name, properties)
            edges = view.edges(relation.name) if reverse or relation.timed or relation.weighted else None
            if edges is not None and edges.time is not None:
                attributes["edge_time"] = edges.time
            if edges is not None and edges.weight is not None:
                attributes["edge_weight"] = edges.weight
            tensors |= {(relation.triple, attribute): values for attribute, values in attributes.items()}
            if reverse and attributes and edges is not None:
                order = _reversed_columns(view, relation.name, edges)[2]
                edge_type = reverses[relation.name]
                tensors |= {(edge_type, attribute): values[order] for attribute, values in attributes.items()}
        self.__dict__["_tensors"] = tensors

    def get_all_tensor_attrs(self) -> list[TensorAttr]:
        """Each attribute of each node type and edge type."""
        return [TensorAttr(group, name) for group, name in self._tensors]

    def _get_tensor(self, attr: TensorAttr) -> Tensor | None:
        values: Tensor | None = self._tensors.get((_group(attr), attr.attr_name))
        if values is None or attr.index is None or not attr.is_set("index"):
            return values
        index = attr.index
        return values[torch.as_tensor(index) if isinstance(index, np.ndarray) else index]

    def _get_tensor_size(self, attr: TensorAttr) -> tuple[int, ...] | None:
        values = self._tensors.get((_group(attr), attr.attr_name))
        return None if values is None else tuple(values.shape)

    def _put_tensor(self, *_: Any) -> NoReturn:
        _refuse()

    def _remove_tensor(self, *_: Any) -> NoReturn:
        _refuse()


def _reversed_columns(view: GraphView, name: str, edges: Edges) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column pointers of a relation's reverse, oldest first within a column, and the place of its edges in `edges`."""
    relation = view.schema.relation(name)
    adjacency = Adjacency.from_edges(
        (relation.dst, name, relation.src),
        edges.dst.numpy(),
        edges.src.numpy(),
        num_src=view.num_nodes[relation.dst],
        num_dst=view.num_nodes[relation.src],
        time=None if edges.time is None else edges.time.numpy(),
    )
    order = np.arange(len(edges)) if adjacency.permutation is None else adjacency.permutation
    return torch.from_numpy(adjacency.row).long(), torch.from_numpy(adjacency.colptr), torch.from_numpy(order)


def _node_tensors(view: GraphView, node_type: str, properties: Properties) -> dict[str, Tensor]:
    declared = view.schema.node(node_type).properties
    names = _chosen(f"node type {node_type!r}", node_type, declared, properties)
    if not names:
        return {}
    table = view.node_properties(node_type)
    return {name: property_tensor(table[name], declared[name], where=f"property {name!r} of {node_type!r}") for name in names}


def _edge_tensors(view: GraphView, relation: str, properties: Properties) -> dict[str, Tensor]:
    declared = view.schema.relation(relation)
    names = _chosen(f"relation {relation!r}", declared.triple, declared.properties, properties)
    if not names:
        return {}
    table = view.edge_properties(relation)
    return {
        name: property_tensor(table[name], declared.properties[name], where=f"property {name!r} of {relation!r}")
        for name in names
    }


def _chosen(owner: str, key: str | EdgeType, declared: Mapping[str, str], properties: Properties) -> list[str]:
    """The properties to take of a node type or a relation."""
    if isinstance(properties, bool):
        names = tensor_properties(declared) if properties else []
    else:
        names = list(properties.get(key, []))
        unknown = [name for name in names if name not in declared]
        if unknown:
            msg = f"{owner} has no property {unknown[0]!r}, it has {list(declared)}"
            raise GraphError(msg)
    taken = [name for name in names if name in _TAKEN]
    if taken:
        msg = (
            f"property {taken[0]!r} of {owner} has a name that PyG's loaders write to; leave it out: "
            f"properties={{{key!r}: [the others]}}, or properties=False for none"
        )
        raise GraphError(msg)
    return names


def _group(attr: TensorAttr) -> str | EdgeType:
    group: str | EdgeType = attr.group_name if isinstance(attr.group_name, str) else tuple(attr.group_name)
    return group


def _refuse() -> NoReturn:
    msg = "a view does not change; load into its GraphStore and open another view"
    raise GraphError(msg)
