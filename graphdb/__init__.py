"""The DuckDB graph store: schema, loading, windows, exports."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from graphdb.reading import Reading
from graphdb.recipe import Recipe
from graphdb.report import LoadReport
from graphdb.schema import GraphSchema, NodeType, Relation
from graphdb.source import Query
from graphdb.sql import GraphError
from graphdb.store import GraphStore

if TYPE_CHECKING:
    from graphdb.edges import Csc, Edges, Triples
    from graphdb.sampling import MetapathWalker, MultifacetSampler, NegativeSampler, SamplerConfig, Topology
    from graphdb.view import GraphView

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
