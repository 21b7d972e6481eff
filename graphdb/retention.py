"""Taking edges and nodes out of a store, and keeping account of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import duckdb

from graphdb.layout import delta_table, held_table, node_table
from graphdb.schema import GraphSchema, NodeType, Relation
from graphdb.sql import GraphError, changed, quote_text, run
from graphdb.storage import Storage


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
        for end, column in (("src", "src_or_id"), ("dst", "dst")):
            if end in ends:
                run(connection, f"DELETE FROM {held_table(relation.name)} WHERE {end} = ?", [identifier])
                run(connection, f"DELETE FROM _rejected WHERE target = ? AND {column} = ?", [relation.name, str(identifier)])
    run(connection, "DELETE FROM _rejected WHERE target = ? AND src_or_id = ?", [node.name, str(identifier)])
    run(connection, f"DELETE FROM {node_table(node.name)} WHERE idx = {idx}")
    _record(connection, "forget", node.name, None, idx, sum(deleted.values()))
    return deleted


def _delete(connection: duckdb.DuckDBPyConnection, storage: Storage, relation: Relation, where: str) -> int:
    late = changed(connection, f"DELETE FROM {delta_table(relation.name)} WHERE {where}")
    return late + storage.base(connection, relation).delete(where)


def _record(
    connection: duckdb.DuckDBPyConnection, kind: str, target: str, before: dt.datetime | None, idx: int | None, edges: int
) -> None:
    run(connection, "INSERT INTO _removal VALUES (?, ?, ?, ?, ?, now()::TIMESTAMP)", [kind, target, before, idx, edges])
