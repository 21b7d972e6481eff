"""The DuckDB graph store: schema, loading, windows, exports."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from multifacet.graphdb.reading import Reading
from multifacet.graphdb.recipe import Recipe
from multifacet.graphdb.report import LoadReport
from multifacet.graphdb.schema import GraphSchema, NodeType, Relation
from multifacet.graphdb.source import Query
from multifacet.graphdb.sql import GraphError
from multifacet.graphdb.store import GraphStore

if TYPE_CHECKING:
    from multifacet.graphdb.edges import Csc, Edges, Triples
    from multifacet.graphdb.sampling import MetapathWalker, MultifacetSampler, NegativeSampler, SamplerConfig, Topology
    from multifacet.graphdb.view import GraphView

__all__ = [
    "Csc",
    "Edges",
    "GraphError",
    "GraphSchema",
    "GraphStore",
    "GraphView",
    "LoadReport",
    "MetapathWalker",
    "MultifacetSampler",
    "NegativeSampler",
    "NodeType",
    "Query",
    "Reading",
    "Recipe",
    "Relation",
    "SamplerConfig",
    "Topology",
    "Triples",
]

_SAMPLING = dict.fromkeys(("MetapathWalker", "MultifacetSampler", "NegativeSampler", "SamplerConfig", "Topology"), "sampling")
_LATE = {**_SAMPLING, "Csc": "edges", "Edges": "edges", "Triples": "edges", "GraphView": "view"}


def __getattr__(name: str) -> Any:
    """Imports what needs torch, PyG or numba at its first use: they take seconds, which a load or a query need not wait."""
    if name not in _LATE:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"graphdb.{_LATE[name]}"), name)
