"""The DuckDB file of a store: creating it, and opening it only where it is one."""

from __future__ import annotations

from pathlib import Path

import duckdb

from graphdb.layout import STORE_TABLES, create_node_type, create_relation
from graphdb.schema import GraphSchema
from graphdb.sql import GraphError, run

FORMAT_VERSION = 2


def create_database(
    path: Path, schema: GraphSchema, memory_limit: str | None, threads: int | None
) -> duckdb.DuckDBPyConnection:
    """Creates the file of an empty store, and returns a connection to it.

    Raises:
        GraphError: Something is at `path` already.
    """
    if path.exists():
        msg = f"{path} exists; open it with GraphStore.open, or remove it first"
        raise GraphError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect(str(path), config=_settings(memory_limit, threads))
    connection.begin()
    for table in STORE_TABLES:
        run(connection, table)
    fields = [str(FORMAT_VERSION), schema.model_dump_json()]
    run(connection, "INSERT INTO _meta VALUES ('format_version', ?), ('schema', ?)", fields)
    for node in schema.nodes:
        create_node_type(connection, node)
    for relation in schema.relations:
        create_relation(connection, relation, schema.node(relation.src), schema.node(relation.dst))
    connection.commit()
    return connection


def open_database(
    path: Path, read_only: bool, memory_limit: str | None, threads: int | None
) -> tuple[duckdb.DuckDBPyConnection, GraphSchema]:
    """Opens the file of a store.

    Raises:
        GraphError: There is no store at `path`, another process writes to it, or another version wrote it.
    """
    if not path.is_file():
        msg = f"there is no store at {path}; create one with GraphStore.create or `multifacet graph init`"
        raise GraphError(msg)
    try:
        connection = duckdb.connect(str(path), read_only=read_only, config=_settings(memory_limit, threads))
    except duckdb.Error as error:
        msg = f"cannot open {path} as a graph store: {error}"
        raise GraphError(msg) from error
    try:
        meta = dict(run(connection, "SELECT key, value FROM _meta"))
    except duckdb.CatalogException as error:
        connection.close()
        msg = f"{path} is a DuckDB file, but not a graph store"
        raise GraphError(msg) from error
    if meta["format_version"] != str(FORMAT_VERSION):
        connection.close()
        msg = f"{path} has store format {meta['format_version']}, this version reads {FORMAT_VERSION}; build it anew"
        raise GraphError(msg)
    return connection, GraphSchema.model_validate_json(meta["schema"])


def _settings(memory_limit: str | None, threads: int | None) -> dict[str, str | bool | int | float | list[str]]:
    settings: dict[str, str | bool | int | float | list[str]] = {}
    if memory_limit is not None:
        settings["memory_limit"] = memory_limit
    if threads is not None:
        settings["threads"] = threads
    return settings
