"""Merging the edges that came lately into a relation's clustered table."""

from __future__ import annotations

import duckdb

from graphdb.insertion import copy_out
from graphdb.layout import all_edges, delta_table, edge_columns, edge_order, edge_table
from graphdb.schema import Relation
from graphdb.sql import count, run


def compact(connection: duckdb.DuckDBPyConnection, relation: Relation) -> int:
    """Merges a relation's delta within the caller's transaction; returns the number of edges that were in it."""
    base, delta = edge_table(relation.name), delta_table(relation.name)
    merged = count(connection, delta)
    if not merged:
        return 0
    rows = f"SELECT {edge_columns(relation)} FROM {all_edges(relation.name)} ORDER BY {edge_order(relation)}"
    run(connection, f"CREATE TEMP TABLE _merged AS {rows}")
    run(connection, f"DELETE FROM {base}; DELETE FROM {delta}")
    run(connection, f"INSERT INTO {base} FROM _merged; DROP TABLE _merged")
    if relation.out_clustered:
        copy_out(connection, relation)
    return merged
