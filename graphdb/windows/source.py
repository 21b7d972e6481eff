"""A window as what reads it sees it: exports, samplers and PyG's stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa
from numpy.typing import NDArray

from multifacet.graphdb.schema import GraphSchema, Relation
from multifacet.graphdb.windows.edges import Csc, Edges


class WindowSource(Protocol):
    """The part of a `GraphView` that exports, samplers and PyG's stores read; the view's own docstrings say more."""

    @property
    def schema(self) -> GraphSchema:
        """The store's schema."""

    @property
    def relations(self) -> Sequence[Relation]:
        """The relations of the window."""

    @property
    def num_nodes(self) -> Mapping[str, int]:
        """Node type -> its nodes that belong to the window."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the window's content."""

    def edges(self, relation: str) -> Edges:
        """Give the edges of a relation, by (dst, time)."""

    def csc(self, relation: str) -> Csc:
        """Give the edges of a relation in compressed columns."""

    def node_ids(self, type: str) -> pa.Array:  # noqa: A002 - as in GraphView
        """Give the external ids of a type's nodes, by row."""

    def node_idx(self, type: str) -> NDArray[Any]:  # noqa: A002 - as in GraphView
        """Give the idx, in the store, of a type's nodes, by row."""

    def first_seen(self, type: str) -> NDArray[Any]:  # noqa: A002 - as in GraphView
        """Give the time from which on each node of a type exists, in microseconds."""

    def node_properties(self, type: str) -> pa.Table:  # noqa: A002 - as in GraphView
        """Give the properties of a type's nodes, by row."""

    def edge_properties(self, relation: str) -> pa.Table:
        """Give the properties of a relation's edges, in their order."""
