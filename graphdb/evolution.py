"""Changing the schema of a store that holds data: things are added, never taken away."""

from __future__ import annotations

import duckdb
from pydantic import ValidationError

from multifacet.graphdb.database import create_relation
from multifacet.graphdb.layout import create_edge_view, create_node_type, create_node_view, delta_table, held_table, node_table
from multifacet.graphdb.schema import GraphSchema, NodeType, Relation
from multifacet.graphdb.sql import GraphError, quote, run
from multifacet.graphdb.storage import Storage


def add_node_type(connection: duckdb.DuckDBPyConnection, schema: GraphSchema, node: NodeType) -> None:
    """Adds a node type."""
    changed = _checked(nodes=(*schema.nodes, node), relations=schema.relations)
    create_node_type(connection, node)
    _store(connection, changed)


def add_relation(connection: duckdb.DuckDBPyConnection, schema: GraphSchema, storage: Storage, relation: Relation) -> None:
    """Adds a relation."""
    changed = _checked(nodes=schema.nodes, relations=(*schema.relations, relation))
    create_relation(connection, changed, storage, relation)
    _store(connection, changed)


def add_property(
    connection: duckdb.DuckDBPyConnection, schema: GraphSchema, storage: Storage, owner: str, name: str, duckdb_type: str
) -> None:
    """Adds a property to a node type or a relation."""
    is_node = any(node.name == owner for node in schema.nodes)
    old: NodeType | Relation = schema.node(owner) if is_node else schema.relation(owner)
    if name.lower() in {known.lower() for known in old.properties}:
        msg = f"{owner!r} has a property {name!r} already; it has {list(old.properties)}"
        raise GraphError(msg)
    fields = {**old.model_dump(), "properties": {**old.properties, name: duckdb_type}}
    try:
        new = type(old).model_validate(fields)
    except ValidationError as error:
        raise GraphError(str(error)) from error
    if isinstance(new, NodeType):
        tables = [node_table(owner)]
        nodes, relations = tuple(new if node == old else node for node in schema.nodes), schema.relations
    else:
        tables = [delta_table(owner), held_table(owner)]
        nodes, relations = schema.nodes, tuple(new if relation == old else relation for relation in schema.relations)
    changed = _checked(nodes=nodes, relations=relations)
    for table in tables:
        run(connection, f"ALTER TABLE {table} ADD COLUMN {quote(name)} {new.properties[name]}")
    if isinstance(new, NodeType):
        create_node_view(connection, new)
    else:
        storage.base(connection, new).add_column(name, new.properties[name])
        create_edge_view(connection, new)
    _store(connection, changed)


def _checked(*, nodes: tuple[NodeType, ...], relations: tuple[Relation, ...]) -> GraphSchema:
    try:
        return GraphSchema(nodes=nodes, relations=relations)
    except ValidationError as error:
        raise GraphError(str(error)) from error


def _store(connection: duckdb.DuckDBPyConnection, schema: GraphSchema) -> None:
    run(connection, "UPDATE _meta SET value = ? WHERE key = 'schema'", [schema.model_dump_json()])
