"""What a store has: counts, ranges and degrees."""

from __future__ import annotations

from typing import Any

import duckdb

from multifacet.graphdb.layout import all_edges, delta_table, edge_table, held_table, node_table
from multifacet.graphdb.schema import GraphSchema
from multifacet.graphdb.sql import count, run


def count_all(connection: duckdb.DuckDBPyConnection, schema: GraphSchema) -> dict[str, dict[str, int]]:
    """Nodes by type and edges by relation."""
    return {
        "nodes": {node.name: count(connection, node_table(node.name)) for node in schema.nodes},
        "edges": {
            relation.name: count(connection, edge_table(relation.name)) + count(connection, delta_table(relation.name))
            for relation in schema.relations
        },
    }


def describe_all(connection: duckdb.DuckDBPyConnection, schema: GraphSchema) -> dict[str, Any]:
    """Nodes by type, and for each relation its edges, ends and time range, as JSON-able fields."""
    relations = {}
    for relation in schema.relations:
        times = "min(time)::VARCHAR, max(time)::VARCHAR" if relation.timed else "NULL, NULL"
        query = f"SELECT count(*), count(DISTINCT src), count(DISTINCT dst), {times} FROM {all_edges(relation.name)}"
        edges, sources, targets, first, last = run(connection, query)[0]
        relations[relation.name] = {
            "relation": str(relation),
            "src": relation.src,
            "dst": relation.dst,
            "surface": relation.surface,
            "edges": edges,
            "not_compacted": count(connection, delta_table(relation.name)),
            "held": count(connection, held_table(relation.name)),
            "distinct_src": sources,
            "distinct_dst": targets,
            "first": _iso(first),
            "last": _iso(last),
        }
    return {"nodes": count_all(connection, schema)["nodes"], "relations": relations}


def _iso(time: str | None) -> str | None:
    """DuckDB's text of a time in ISO 8601; as text, since it may be beyond the years that Python can hold."""
    if time is None:
        return None
    seconds, dot, fraction = time.replace(" ", "T", 1).partition(".")
    return seconds + dot + fraction.ljust(6, "0") if dot else seconds
