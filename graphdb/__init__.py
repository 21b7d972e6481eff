"""The DuckDB graph store: schema, loading, windows, exports."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from graphdb.edges import Csc, Edges, Triples
from graphdb.recipe import Recipe
from graphdb.report import LoadReport
from graphdb.schema import GraphSchema, NodeType, Relation
from graphdb.source import Query
from graphdb.sql import GraphError
from graphdb.store import GraphStore
from graphdb.view import GraphView

if TYPE_CHECKING:
    from graphdb.sampling import MetapathWalker, MultifacetSampler, NegativeSampler, SamplerConfig, Topology

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
    "Recipe",
    "Relation",
    "SamplerConfig",
    "Topology",
    "Triples",
]

_SAMPLING = frozenset({"MetapathWalker", "MultifacetSampler", "NegativeSampler", "SamplerConfig", "Topology"})


def __getattr__(name: str) -> Any:
    """Imports the samplers at their first use: PyG and numba take seconds, which a command that only loads need not wait."""
    if name not in _SAMPLING:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module("graphdb.sampling"), name)
