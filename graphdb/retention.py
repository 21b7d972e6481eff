"""Taking edges and nodes out of a store, and keeping account of it."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Sequence

import duckdb

from multifacet.graphdb.layout import delta_table, held_table, node_table
from multifacet.graphdb.schema import GraphSchema, NodeType, Relation
from multifacet.graphdb.sql import GraphError, changed, quote, quote_text, run
from multifacet.graphdb.storage import Storage

logger = logging.getLogger(__name__)

_RAW = ("src_or_id", "dst", "time", "weight")


def drop_before(
    connection: duckdb.DuckDBPyConnection, storage: Storage, relations: Sequence[Relation], time: dt.datetime | None
) -> dict[str, int]:
    """Drops the edges of timed relations from before `time`; returns their number by relation."""
    dropped = {}
    for relation in relations:
        if not relation.timed:
            continue
        where = f"time < TIMESTAMP {quote_text(str(time))}"
        dropped[relation.name] = _delete(connection, storage, relation, where)
        run(connection, f"DELETE FROM {held_table(relation.name)} WHERE {where}")
        _record(connection, "drop_before", relation.name, time, None, dropped[relation.name])
    return dropped


def forget(
    connection: duckdb.DuckDBPyConnection, schema: GraphSchema, storage: Storage, node: NodeType, identifier: int | str
) -> dict[str, int]:
    """Deletes a node and all that the store has of it; returns the number of its edges by relation."""
    identifier = node.external_id(identifier)
    found = run(connection, f"SELECT idx FROM {node_table(node.name)} WHERE id = ?", [identifier])
    if not found:
        msg = f"there is no {node.name} {identifier!r} to forget"
        raise GraphError(msg)
    idx = int(found[0][0])
    deleted = {}
    for relation in schema.relations:
        ends = [end for end, name in (("src", relation.src), ("dst", relation.dst)) if name == node.name]
        if not ends:
            continue
        deleted[relation.name] = _delete(connection, storage, relation, " OR ".join(f"{end} = {idx}" for end in ends))
        for end in ends:
            run(connection, f"DELETE FROM {held_table(relation.name)} WHERE {end} = ?", [identifier])
    _forget_rejected(connection, schema, node, identifier)
    run(connection, f"DELETE FROM {node_table(node.name)} WHERE idx = {idx}")
    _record(connection, "forget", node.name, None, idx, sum(deleted.values()))
    _warn_of_tables(connection, identifier)
    return deleted


def holds_forgotten(connection: duckdb.DuckDBPyConnection) -> bool:
    """Tells whether nodes were forgotten since the store's file was last written anew."""
    return bool(run(connection, f"SELECT {_NUM_FORGOTTEN} > {_NUM_REWRITTEN}")[0][0])


def mark_rewritten(connection: duckdb.DuckDBPyConnection) -> None:
    """Takes down that the store's file was written anew."""
    run(connection, f"INSERT OR REPLACE INTO _meta SELECT 'forgotten', ({_NUM_FORGOTTEN})::VARCHAR")


_NUM_FORGOTTEN = "(SELECT count(*) FROM _removal WHERE kind = 'forget')"
_NUM_REWRITTEN = "coalesce((SELECT value::BIGINT FROM _meta WHERE key = 'forgotten'), 0)"


def _forget_rejected(connection: duckdb.DuckDBPyConnection, schema: GraphSchema, node: NodeType, identifier: int | str) -> None:
    """Deletes the rejected rows that name an id, however they spell it, and takes it out of the names of what was loaded."""
    if isinstance(identifier, str):
        # Wherever the text stands: a row is set aside for one value, and keeps all of them.
        anywhere = " OR ".join(f"contains({column}, $id)" for column in _RAW)
        run(connection, f"DELETE FROM _rejected WHERE {anywhere} OR contains(file, $id)", {"id": identifier})
        run(connection, "UPDATE _load SET source = '(withheld)' WHERE contains(source, $id)", {"id": identifier})
        return
    for target, column in (
        (node.name, "src_or_id"),
        *((relation.name, "src_or_id") for relation in schema.relations if relation.src == node.name),
        *((relation.name, "dst") for relation in schema.relations if relation.dst == node.name),
    ):
        means = f"TRY_CAST(trim({column}) AS DECIMAL(38, 9)) = {identifier}"
        run(connection, f"DELETE FROM _rejected WHERE target = ? AND {means}", [target])


def _warn_of_tables(connection: duckdb.DuckDBPyConnection, identifier: int | str) -> None:
    """Names the plain tables, which are the user's own, that hold an id."""
    kinds = ["VARCHAR"] if isinstance(identifier, str) else ["VARCHAR", "BIGINT", "INTEGER"]
    columns = run(
        connection,
        "SELECT table_name, column_name FROM duckdb_columns() JOIN duckdb_tables() USING (database_name, schema_name, "
        "table_name) "
        f"WHERE NOT duckdb_tables.temporary AND NOT starts_with(table_name, '_') AND data_type IN {(*kinds, '')}",
    )
    for table, column in columns:
        holds = f"SELECT count(*) FROM {quote(table)} WHERE CAST({quote(column)} AS VARCHAR) = ?"
        if run(connection, holds, [str(identifier)])[0][0]:
            logger.warning("table %r holds the forgotten id in its column %r: replace it by load_table", table, column)


def _delete(connection: duckdb.DuckDBPyConnection, storage: Storage, relation: Relation, where: str) -> int:
    late = changed(connection, f"DELETE FROM {delta_table(relation.name)} WHERE {where}")
    return late + storage.base(connection, relation).delete(where)


def _record(
    connection: duckdb.DuckDBPyConnection, kind: str, target: str, before: dt.datetime | None, idx: int | None, edges: int
) -> None:
    run(connection, "INSERT INTO _removal VALUES (?, ?, ?, ?, ?, now()::TIMESTAMP)", [kind, target, before, idx, edges])
