"""How a store's file is laid out: the tables behind node types and relations, and the views over them."""

from __future__ import annotations

import duckdb

from multifacet.graphdb.schema import NodeType, Relation
from multifacet.graphdb.sql import quote, run

STORE_TABLES = (
    "CREATE TABLE _meta (key VARCHAR NOT NULL PRIMARY KEY, value VARCHAR NOT NULL)",
    (
        "CREATE TABLE _load (load_id INTEGER NOT NULL, target VARCHAR NOT NULL, source VARCHAR NOT NULL, read BIGINT NOT NULL, "
        "loaded BIGINT NOT NULL, already_there BIGINT NOT NULL, held BIGINT NOT NULL, rejected BIGINT NOT NULL, "
        "loaded_at TIMESTAMP NOT NULL)"
    ),
    (
        "CREATE TABLE _rejected (load_id INTEGER NOT NULL, target VARCHAR NOT NULL, file VARCHAR, row BIGINT NOT NULL, "
        "reason VARCHAR NOT NULL, src_or_id VARCHAR, dst VARCHAR, time VARCHAR, weight VARCHAR)"
    ),
    (
        "CREATE TABLE _removal (kind VARCHAR NOT NULL, target VARCHAR NOT NULL, before TIMESTAMP, idx INTEGER, "
        "edges BIGINT NOT NULL, removed_at TIMESTAMP NOT NULL)"
    ),
    "CREATE VIEW loads AS SELECT * FROM _load",
    "CREATE VIEW rejected_rows AS SELECT * FROM _rejected",
    "CREATE VIEW removals AS SELECT * FROM _removal",
)

#: The column of a node table that tells from when on a node exists, in microseconds since 1970 (UTC): from its first event,
#: or from
#: the time that a load of nodes gives it, or else from the time of that load, whichever is first.
SEEN = "_mf_seen"


def node_table(name: str) -> str:
    """Quoted name of the table that maps a node type's external ids to idx."""
    return quote(f"_node_{name}")


def edge_table(name: str) -> str:
    """Quoted name of a relation's table, clustered by (dst, time), or of the view of its Parquet files."""
    return quote(f"_edge_{name}")


def delta_table(name: str) -> str:
    """Quoted name of the table of a relation's edges that came since the last compaction."""
    return quote(f"_delta_{name}")


def held_table(name: str) -> str:
    """Quoted name of the table of a relation's edges, by external id, that wait for their nodes."""
    return quote(f"_held_{name}")


def out_table(name: str) -> str:
    """Quoted name of the copy of a relation's clustered table that is clustered by (src, time)."""
    return quote(f"_out_{name}")


def value_columns(relation: Relation) -> list[str]:
    """Quoted names of what an edge carries beside its ends: time, weight, properties."""
    return [*key_columns(relation)[2:], *payload_columns(relation)]


def key_columns(relation: Relation) -> list[str]:
    """What tells two edges of a relation apart, unless it keeps all."""
    return ["src", "dst", *(["time"] if relation.timed else [])]


def payload_columns(relation: Relation) -> list[str]:
    """Quoted names of what an edge carries beside its key."""
    return [*(["weight"] if relation.weighted else []), *map(quote, relation.properties)]


def edge_columns(relation: Relation) -> str:
    """The columns of a relation's tables, in order."""
    return ", ".join([*key_columns(relation), *payload_columns(relation)])


def edge_order(relation: Relation) -> str:
    """The clustering of a relation's table."""
    return "dst, time, src" if relation.timed else "dst, src"


def out_order(relation: Relation) -> str:
    """The clustering of a relation's copy by src."""
    return "src, time, dst" if relation.timed else "src, dst"


def all_edges(name: str) -> str:
    """A FROM clause's rows: the clustered edges of a relation, then those since the last compaction."""
    return f"(FROM {edge_table(name)} UNION ALL FROM {delta_table(name)})"


def edges_query(relation: Relation, rows: str) -> str:
    """SQL that gives the edges in `rows` their external ids: the body of an `edges_*` view."""
    values = "".join(f", edge.{name}" for name in value_columns(relation))
    return (
        f"SELECT edge.src AS src_idx, edge.dst AS dst_idx, src.id AS src_id, dst.id AS dst_id{values} "
        f"FROM {rows} AS edge "
        f"JOIN {node_table(relation.src)} AS src ON src.idx = edge.src "
        f"JOIN {node_table(relation.dst)} AS dst ON dst.idx = edge.dst"
    )


def nodes_query(node: NodeType) -> str:
    """SQL of a node type's ids and properties: the body of a `nodes_*` view."""
    return f"SELECT * EXCLUDE ({SEEN}) FROM {node_table(node.name)}"


def create_node_type(connection: duckdb.DuckDBPyConnection, node: NodeType) -> None:
    """Creates the table and the view of a node type."""
    properties = "".join(f", {quote(name)} {kind}" for name, kind in node.properties.items())
    columns = f"idx INTEGER NOT NULL, id {node.sql_id_type} NOT NULL, {SEEN} BIGINT NOT NULL{properties}"
    run(connection, f"CREATE TABLE {node_table(node.name)} ({columns})")
    create_node_view(connection, node)


def create_node_view(connection: duckdb.DuckDBPyConnection, node: NodeType) -> None:
    """Creates the `nodes_*` view of a node type, or creates it anew."""
    run(connection, f"CREATE OR REPLACE VIEW {quote(f'nodes_{node.name}')} AS {nodes_query(node)}")


def create_delta(connection: duckdb.DuckDBPyConnection, relation: Relation, src: NodeType, dst: NodeType) -> str:
    """Creates the tables of the edges that wait for a compaction or their nodes; returns SQL of an edge table's columns."""
    values = ", time TIMESTAMP NOT NULL" if relation.timed else ""
    values += ", weight DOUBLE NOT NULL" if relation.weighted else ""
    values += "".join(f", {quote(name)} {kind}" for name, kind in relation.properties.items())
    columns = f"src INTEGER NOT NULL, dst INTEGER NOT NULL{values}"
    run(connection, f"CREATE TABLE {delta_table(relation.name)} ({columns})")
    ends = f"src {src.sql_id_type} NOT NULL, dst {dst.sql_id_type} NOT NULL"
    run(connection, f"CREATE TABLE {held_table(relation.name)} ({ends}{values})")
    return columns


def create_edge_view(connection: duckdb.DuckDBPyConnection, relation: Relation) -> None:
    """Creates the `edges_*` view of a relation, or creates it anew."""
    view = quote(f"edges_{relation.name}")
    run(connection, f"CREATE OR REPLACE VIEW {view} AS {edges_query(relation, all_edges(relation.name))}")
