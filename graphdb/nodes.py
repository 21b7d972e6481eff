"""Loading nodes: external ids get their idx once, and for ever."""

from __future__ import annotations

import time

import duckdb

from graphdb.batch import Batch, id_field, open_rows, property_field
from graphdb.layout import node_table
from graphdb.report import LoadReport, next_load_id, record, rejected_by_reason
from graphdb.schema import NodeType
from graphdb.source import Source, describe
from graphdb.sql import GraphError, changed, quote, run

_MAX_NODES = 2**31 - 1


def load_nodes(connection: duckdb.DuckDBPyConnection, node: NodeType, source: Source, *, id_column: str) -> LoadReport:
    """Adds the nodes of `source`; the ids that exist keep their idx and get the properties given now."""
    started = time.perf_counter()
    load_id = next_load_id(connection)
    names = "".join(f", {quote(name)}" for name in node.properties)
    with open_rows(connection, source, [id_column, *node.properties], where=f"nodes of {node.name!r}") as rows:
        fields = [id_field("id", id_column, rows.types[id_column], node, raw="src_or_id", label="id")]
        fields += [property_field(name, kind) for name, kind in node.properties.items()]
        batch = Batch(connection, rows, fields)
        batch.set_aside(load_id, node.name)
        if node.properties:
            # The last row of an id in the load wins, as it would if the rows came one by one.
            order = [f"{expression} AS _order{position}" for position, expression in enumerate(rows.order)]
            latest = ", ".join(f"_order{position} DESC" for position in range(len(order)))
            latest = f"QUALIFY row_number() OVER (PARTITION BY id ORDER BY {latest}) = 1"
            given = f"SELECT id{names} FROM {batch.select(*order)} {latest}"
        else:
            given = f"SELECT DISTINCT id FROM {batch.select()}"
        run(connection, f"CREATE OR REPLACE TEMP TABLE _latest AS {given}")
    if node.properties:
        _update_properties(connection, node)
    loaded = insert_nodes(connection, node, f"SELECT id{names} FROM _latest", names)
    run(connection, "DROP TABLE _latest")
    rejected = rejected_by_reason(connection, load_id)
    report = LoadReport(
        target=node.name,
        source=describe(source),
        read=batch.read,
        loaded=loaded,
        already_there=batch.read - loaded - sum(rejected.values()),
        rejected=rejected,
        created_nodes={},
        seconds=time.perf_counter() - started,
    )
    return record(connection, load_id, report)


def num_idx(connection: duckdb.DuckDBPyConnection, name: str) -> int:
    """The idx ever given to nodes of a type: every idx is below it, and those of forgotten nodes are not given again."""
    query = (
        f"SELECT coalesce(max(idx) + 1, 0) FROM (SELECT max(idx) AS idx FROM {node_table(name)} "
        "UNION ALL SELECT max(idx) FROM _removal WHERE kind = 'forget' AND target = ?)"
    )
    return int(run(connection, query, [name])[0][0])


def insert_nodes(connection: duckdb.DuckDBPyConnection, node: NodeType, ids: str, properties: str = "") -> int:
    """Gives an idx to those ids of a query, each standing there once, that have none; returns their number."""
    table = node_table(node.name)
    first = num_idx(connection, node.name)
    unseen = f" ANTI JOIN {table} AS kept USING (id)" if first else ""
    num_new = changed(
        connection,
        f"INSERT INTO {table} (idx, id{properties}) "
        f"SELECT {first} + row_number() OVER (ORDER BY id) - 1, id{properties} FROM ({ids}) AS given{unseen}",
    )
    if first + num_new > _MAX_NODES:
        msg = f"node type {node.name!r} would pass {_MAX_NODES:,} nodes, the most that an int32 idx can tell apart"
        raise GraphError(msg)
    return num_new


def _update_properties(connection: duckdb.DuckDBPyConnection, node: NodeType) -> None:
    names = [quote(name) for name in node.properties]
    setters = ", ".join(f"{name} = given.{name}" for name in names)
    differs = " OR ".join(f"kept.{name} IS DISTINCT FROM given.{name}" for name in names)
    query = (
        f"UPDATE {node_table(node.name)} AS kept SET {setters} FROM _latest AS given WHERE kept.id = given.id AND ({differs})"
    )
    run(connection, query)
