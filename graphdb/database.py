"""The DuckDB file of a store: creating it, and opening it only where it is one."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb

from multifacet.graphdb.edgelog import PART_TABLE
from multifacet.graphdb.layout import STORE_TABLES, create_delta, create_edge_view, create_node_type
from multifacet.graphdb.ledger import LEDGER_TABLES
from multifacet.graphdb.schema import GraphSchema, Relation
from multifacet.graphdb.sql import GraphError, first_line, quote, quote_text, run
from multifacet.graphdb.storage import Storage, log_folder

#: What a store is marked with: one with a Parquet log otherwise than one without.
LOG_FORMAT_VERSION = 5
FORMAT_VERSION = 4


def create_database(
    path: Path, schema: GraphSchema, storage: Storage, memory_limit: str | None, threads: int | None
) -> duckdb.DuckDBPyConnection:
    """Creates the file of an empty store, and returns a connection to it.

    Raises:
        GraphError: Something is at `path`, or where its log would be, already.
    """
    for taken in (path, storage.log):
        if taken is not None and taken.exists():
            msg = f"{taken} exists; open it with GraphStore.open, or remove it first"
            raise GraphError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = _connect(path, read_only=False, memory_limit=memory_limit, threads=threads)
    _find_files(connection, storage)
    connection.begin()
    for table in (*STORE_TABLES, *LEDGER_TABLES, *([] if storage.log is None else [PART_TABLE])):
        run(connection, table)
    fields = [str(FORMAT_VERSION if storage.log is None else LOG_FORMAT_VERSION), schema.model_dump_json()]
    run(connection, "INSERT INTO _meta VALUES ('format_version', ?), ('schema', ?)", fields)
    for node in schema.nodes:
        create_node_type(connection, node)
    for relation in schema.relations:
        create_relation(connection, schema, storage, relation)
    connection.commit()
    # In the file itself, not only in the log of changes beside it: a copy of the file is a store.
    run(connection, "CHECKPOINT")
    return connection


def create_relation(connection: duckdb.DuckDBPyConnection, schema: GraphSchema, storage: Storage, relation: Relation) -> None:
    """Creates all that a relation, whose node types exist, is kept in."""
    columns = create_delta(connection, relation, schema.node(relation.src), schema.node(relation.dst))
    storage.base(connection, relation).create(columns)
    create_edge_view(connection, relation)


def open_database(
    path: Path, read_only: bool, memory_limit: str | None, threads: int | None
) -> tuple[duckdb.DuckDBPyConnection, GraphSchema, Storage]:
    """Opens the file of a store.

    Raises:
        GraphError: There is no store at `path`, another process writes to it, or another version wrote it.
    """
    if not path.is_file():
        msg = f"there is no store at {path}; create one with GraphStore.create or `multifacet graph init`"
        raise GraphError(msg)
    connection = _connect(path, read_only=read_only, memory_limit=memory_limit, threads=threads)
    try:
        meta = dict(run(connection, "SELECT key, value FROM _meta"))
    except duckdb.CatalogException as error:
        connection.close()
        msg = f"{path} is a DuckDB file, but not a graph store"
        raise GraphError(msg) from error
    known = [str(FORMAT_VERSION), str(LOG_FORMAT_VERSION)]
    if meta["format_version"] not in known:
        connection.close()
        msg = (
            f"{path} has store format {meta['format_version']}, this version reads {' and '.join(known)}; build it "
            f"anew from the files "
            "that it was loaded from (its `loads` view names them)"
        )
        raise GraphError(msg)
    storage = Storage(log_folder(path) if meta["format_version"] == str(LOG_FORMAT_VERSION) else None)
    _find_files(connection, storage)
    return connection, GraphSchema.model_validate_json(meta["schema"]), storage


def read_schema(connection: duckdb.DuckDBPyConnection) -> str:
    """Gives the schema as it is stored now, as JSON."""
    return str(run(connection, "SELECT value FROM _meta WHERE key = 'schema'")[0][0])


def rewrite_database(connection: duckdb.DuckDBPyConnection, path: Path) -> Path:
    """Writes the rows that a store holds into a file beside it; its own file also holds those that were deleted.

    Returns:
        The new file, to be renamed.
    """
    fresh = path.with_name(f"{path.name}.rewriting")
    remove_database(fresh)
    name = run(connection, "SELECT current_database()")[0][0]
    run(connection, f"ATTACH {quote_text(str(fresh))} AS _mf_fresh")
    try:
        run(connection, f"COPY FROM DATABASE {quote(name)} TO _mf_fresh; CHECKPOINT _mf_fresh")
    finally:
        run(connection, "DETACH _mf_fresh")
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    return fresh


def remove_database(path: Path) -> None:
    """Removes a database file, if there is one, and DuckDB's log of changes beside it."""
    for leftover in (path, path.with_name(f"{path.name}.wal")):
        leftover.unlink(missing_ok=True)


def _connect(path: Path, *, read_only: bool, memory_limit: str | None, threads: int | None) -> duckdb.DuckDBPyConnection:
    try:
        connection = duckdb.connect(str(path), read_only=read_only, config=_settings(memory_limit, threads))
    except duckdb.Error as error:
        way = "; read a copy that `multifacet graph backup` makes beside a writer" if "lock" in str(error) else ""
        if "different configuration" in str(error):
            way = (
                "; this process has it open already, for writing or with another memory_limit or threads: use that handle, "
                "or close it"
            )
        msg = f"cannot open {path} as a graph store: {first_line(error)}{way}"
        raise GraphError(msg) from error
    # Whatever the machine's zone is: times with a zone become UTC, and text without one is UTC.
    run(connection, "SET GLOBAL TimeZone = 'UTC'")
    return connection


def _find_files(connection: duckdb.DuckDBPyConnection, storage: Storage) -> None:
    """Lets the store's views name the files of its log by where they are within it: store and log can be moved together."""
    if storage.log is None:
        return
    folder = str(storage.log.absolute())
    if "," in folder:
        connection.close()
        msg = f"a Parquet log cannot be in {folder}: DuckDB cuts its search path at commas; choose a folder without one"
        raise GraphError(msg)
    run(connection, f"SET GLOBAL file_search_path = {quote_text(folder)}")


def _settings(memory_limit: str | None, threads: int | None) -> dict[str, str | bool | int | float | list[str]]:
    settings: dict[str, str | bool | int | float | list[str]] = {}
    if memory_limit is not None:
        settings["memory_limit"] = memory_limit
    if threads is not None:
        settings["threads"] = threads
    return settings
