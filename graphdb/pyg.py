"""A window as PyG's GraphStore and FeatureStore, for loaders that ask for their data piece by piece.

PyG's interface knows neither edge times nor edge weights, and loaders pull each relation once, whole. Where those matter, use
`GraphView.sampler`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
import torch_geometric.typing
from torch import Tensor
from torch_geometric.data import FeatureStore, GraphStore, TensorAttr
from torch_geometric.data.graph_store import EdgeAttr, EdgeLayout
from torch_geometric.typing import EdgeType

from graphdb.sql import GraphError

if TYPE_CHECKING:
    from graphdb.view import GraphView

logger = logging.getLogger(__name__)

_NUMBERS = frozenset({"BOOLEAN", "INTEGER", "BIGINT", "FLOAT", "DOUBLE"})


class ViewGraphStore(GraphStore):  # type: ignore[misc] # PyG has no types
    """The relations of a window, in COO or CSC, as int64."""

    def __init__(self, view: GraphView) -> None:
        super().__init__()
        self.__dict__["_view"] = view
        if not (torch_geometric.typing.WITH_PYG_LIB or torch_geometric.typing.WITH_TORCH_SPARSE):
            logger.warning(
                "neither pyg-lib nor torch-sparse is installed: PyG's NeighborLoader raises ImportError at its first batch; "
                "GraphView.sampler, with NodeLoader or LinkLoader, needs neither"
            )

    def get_all_edge_attrs(self) -> list[EdgeAttr]:
        """Each relation in CSC, the layout that samplers want."""
        return [
            EdgeAttr(relation.triple, EdgeLayout.CSC, size=(view.num_nodes[relation.src], view.num_nodes[relation.dst]))
            for view in [self._view]
            for relation in view.relations
        ]

    def _get_edge_index(self, edge_attr: EdgeAttr) -> tuple[Tensor, Tensor] | None:
        name = _name(self._view, edge_attr.edge_type)
        if name is None or edge_attr.layout == EdgeLayout.CSR:
            return None
        if edge_attr.layout == EdgeLayout.COO:
            edges = self._view.edges(name)
            return edges.src.long(), edges.dst.long()
        columns = self._view.csc(name)
        return columns.row.long(), columns.colptr

    def _put_edge_index(self, *_: Any) -> NoReturn:
        _refuse()

    def _remove_edge_index(self, *_: Any) -> NoReturn:
        _refuse()


class ViewFeatureStore(FeatureStore):  # type: ignore[misc] # PyG has no types
    """The numeric node properties of a window's store, each a float32 [num_nodes] by its name, NaN where it is null."""

    def __init__(self, view: GraphView) -> None:
        super().__init__()
        self.__dict__["_view"] = view

    def get_all_tensor_attrs(self) -> list[TensorAttr]:
        """Each numeric property of each node type."""
        return [
            TensorAttr(node.name, name)
            for node in self._view.schema.nodes
            for name, kind in node.properties.items()
            if kind in _NUMBERS
        ]

    def _get_tensor(self, attr: TensorAttr) -> Tensor | None:
        if not any(
            known.group_name == attr.group_name and known.attr_name == attr.attr_name for known in self.get_all_tensor_attrs()
        ):
            return None
        values = torch.from_numpy(self._view.node_property(attr.group_name, attr.attr_name).astype(np.float32))
        if attr.index is None or not attr.is_set("index"):
            return values
        index = attr.index
        return values[torch.as_tensor(index) if isinstance(index, np.ndarray) else index]

    def _get_tensor_size(self, attr: TensorAttr) -> tuple[int, ...]:
        return (self._view.num_nodes[attr.group_name],)

    def _put_tensor(self, *_: Any) -> NoReturn:
        _refuse()

    def _remove_tensor(self, *_: Any) -> NoReturn:
        _refuse()


def _name(view: GraphView, edge_type: EdgeType) -> str | None:
    return next((relation.name for relation in view.relations if relation.triple == tuple(edge_type)), None)


def _refuse() -> NoReturn:
    msg = "a view does not change; load into its GraphStore and open another view"
    raise GraphError(msg)
