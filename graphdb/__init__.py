"""The DuckDB graph store: schema, loading, windows, exports."""

from graphdb.edges import Csc, Edges, Triples
from graphdb.loading import LoadReport
from graphdb.recipe import Recipe
from graphdb.schema import GraphSchema, NodeType, Relation
from graphdb.source import Query
from graphdb.sql import GraphError
from graphdb.store import GraphStore
from graphdb.view import GraphView

__all__ = [
    "Csc",
    "Edges",
    "GraphError",
    "GraphSchema",
    "GraphStore",
    "GraphView",
    "LoadReport",
    "NodeType",
    "Query",
    "Recipe",
    "Relation",
    "Triples",
]
