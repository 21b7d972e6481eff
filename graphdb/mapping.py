"""From a batch's external ids to idx, nodes created on the way.

Either DuckDB joins the rows to the node tables, which works at any size, since it can spill; or the rows pass through an index
in memory, which finds and numbers the new ids in the same pass. Both give the same idx.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa

from graphdb.batch import Batch
from graphdb.layout import node_table, value_columns
from graphdb.nodes import insert_nodes, num_idx
from graphdb.schema import GraphSchema, Relation
from graphdb.sql import count, run

if TYPE_CHECKING:
    from graphdb.idindex import IdIndex

# Below, a join is done sooner than the index's kernels are loaded; above, the rows may take a gigabyte.
MIN_ROWS_IN_MEMORY = 100_000
MAX_VALUES_IN_MEMORY = 100_000_000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MappedRows:
    """Rows by idx, in no order.

    Attributes:
        sql: A FROM clause with src, dst, the relation's values, and `_order0`, `_order1`, ...
        created: Node type -> nodes that were created.
    """

    sql: str
    created: Mapping[str, int]


def join(
    connection: duckdb.DuckDBPyConnection,
    schema: GraphSchema,
    relation: Relation,
    given: str,
    *,
    num_orders: int,
    num_known: int = 0,
) -> str:
    """A parenthesised query that joins rows to their nodes; rows of unknown nodes are left out.

    Args:
        connection: Within a transaction.
        schema: The store's schema.
        relation: The relation.
        given: A parenthesised query of the rows by external id.
        num_orders: How many `_orderN` columns they have.
        num_known: About how many rows there are, where every one of them has its nodes.
    """
    columns = ["src.idx AS src", "dst.idx AS dst", *(f"given.{name}" for name in value_columns(relation))]
    columns += [f"given._order{position}" for position in range(num_orders)]
    joins = []
    for end, name in (("src", relation.src), ("dst", relation.dst)):
        nodes, identifier = node_table(name), f"given.{end}"
        is_shorter = schema.node(name).id_type == "string" and count(connection, nodes) <= num_known
        if is_shorter and run(connection, f"SELECT count(*) = count(DISTINCT hash(id)) FROM {nodes}")[0][0]:
            # Where no two of the known strings share a hash, it stands for them, and is joined much sooner.
            nodes, identifier = f"(SELECT idx, hash(id) AS id FROM {nodes})", f"hash({identifier})"
        joins.append(f"JOIN {nodes} AS {end} ON {end}.id = {identifier}")
    return f"(SELECT {', '.join(columns)} FROM {given} AS given {' '.join(joins)})"


@contextlib.contextmanager
def create_and_map(
    connection: duckdb.DuckDBPyConnection, schema: GraphSchema, relation: Relation, batch: Batch, order: Sequence[str]
) -> Iterator[MappedRows]:
    """Creates the nodes that a batch of edges lacks, and yields its rows by idx.

    Args:
        connection: Within a transaction.
        schema: The store's schema.
        relation: The relation.
        batch: The rows.
        order: Expressions of the rows' order in the source.
    """
    num_rows = batch.read - batch.bad
    ordered = [f"{expression} AS _order{position}" for position, expression in enumerate(order)]
    types = {name: schema.node(name) for name in (relation.src, relation.dst)}
    created = {
        node.name: _create(connection, schema, relation, batch, node.name)
        for node in types.values()
        if node.id_type == "string"
    }
    if _fits_in_memory(connection, relation, num_rows, len(order)):
        rows = _map_in_memory(connection, schema, relation, batch, ordered, created)
        if rows is not None:
            connection.register("_mapped_in_memory", rows)
            del rows
            try:
                yield MappedRows(sql="_mapped_in_memory", created=_some(created))
            finally:
                connection.unregister("_mapped_in_memory")
            return
    created |= {
        node.name: _create(connection, schema, relation, batch, node.name) for node in types.values() if node.id_type == "int64"
    }
    given = batch.select(*ordered)
    sql = join(connection, schema, relation, given, num_orders=len(order), num_known=num_rows)
    yield MappedRows(sql=sql, created=_some(created))


def _some(created: Mapping[str, int]) -> dict[str, int]:
    return {name: number for name, number in created.items() if number}


def _create(connection: duckdb.DuckDBPyConnection, schema: GraphSchema, relation: Relation, batch: Batch, name: str) -> int:
    """Creates the nodes of one type that the batch lacks, by SQL; returns their number."""
    table, created = node_table(name), 0
    for end, kind in (("src", relation.src), ("dst", relation.dst)):
        if kind == name:
            # Most batches bring few new nodes: telling them apart first spares most of the work of making them distinct.
            known = f" ANTI JOIN {table} AS kept ON kept.id = given.{end}" if count(connection, table) else ""
            ids = f"SELECT DISTINCT {end} AS id FROM {batch.select()} AS given{known}"
            created += insert_nodes(connection, schema.node(name), ids)
    return created


def _fits_in_memory(connection: duckdb.DuckDBPyConnection, relation: Relation, num_rows: int, num_orders: int) -> bool:
    if num_rows < MIN_ROWS_IN_MEMORY or num_rows * (2 + len(value_columns(relation)) + num_orders) > MAX_VALUES_IN_MEMORY:
        return False
    if "VARCHAR" in relation.properties.values():
        return False
    # The index takes up the known nodes first: they must not be the larger part.
    return sum(count(connection, node_table(name)) for name in {relation.src, relation.dst}) <= num_rows


def _map_in_memory(
    connection: duckdb.DuckDBPyConnection,
    schema: GraphSchema,
    relation: Relation,
    batch: Batch,
    ordered: Sequence[str],
    created: dict[str, int],
) -> pa.Table | None:
    """The rows by idx, or None where two strings share a hash."""
    indexes = {}
    for name in {relation.src, relation.dst}:
        index = _index(connection, schema, name)
        if index is None:
            return None
        indexes[name] = index
    ends = [("src", relation.src), ("dst", relation.dst)]
    keys = [f"{_key(end, schema, name)} AS {end}" for end, name in ends]
    columns = ", ".join([*keys, *value_columns(relation), *(f"_order{position}" for position in range(len(ordered)))])
    table = connection.sql(f"SELECT {columns} FROM {batch.select(*ordered)}").to_arrow_table()
    mapped = {end: np.empty(table.num_rows, np.int32) for end, _ in ends}

    def map_end(end: str, name: str) -> None:
        position = 0
        for chunk in table[end].chunks:
            indexes[name].add(chunk.to_numpy().view(np.int64), mapped[end][position : position + len(chunk)])
            position += len(chunk)

    _run([lambda end=end, name=name: map_end(end, name) for end, name in ends], at_once=len(indexes) == len(ends))  # type: ignore[misc]
    for name, index in indexes.items():
        if len(index.new_ids):
            order = np.argsort(index.new_ids)
            rank = np.empty(len(order), np.int32)
            rank[order] = np.arange(len(order), dtype=np.int32)
            connection.register("_new_ids", pa.table({"id": index.new_ids[order]}))
            created[name] = insert_nodes(connection, schema.node(name), "SELECT id FROM _new_ids")
            connection.unregister("_new_ids")
            for end, kind in ends:
                if kind == name:
                    index.renumber(mapped[end], rank)
    return pa.table({name: mapped.get(name, table[name]) for name in table.column_names})


def _key(identifier: str, schema: GraphSchema, node: str) -> str:
    """SQL of the 64 bits that stand for an id in an index."""
    if schema.node(node).id_type == "int64":
        return identifier
    return f"hash({identifier})"


def _index(connection: duckdb.DuckDBPyConnection, schema: GraphSchema, name: str) -> IdIndex | None:
    """An index of a type's known nodes; None where two of them share a hash."""
    from graphdb.idindex import IdIndex  # noqa: PLC0415 - numba is slow to import, and small batches need none

    nodes = connection.sql(f"SELECT {_key('id', schema, name)} AS id, idx FROM {node_table(name)}").to_arrow_table()
    ids, idx = (nodes[column].to_numpy() for column in ("id", "idx"))
    index = IdIndex(ids.view(np.int64), idx, num_idx(connection, name))
    return index if len(index) == nodes.num_rows else None


def _run(tasks: Sequence[Callable[[], None]], *, at_once: bool) -> None:
    """Runs tasks, at once on threads of their own where they may."""
    if not at_once:
        for task in tasks:
            task()
        return
    with ThreadPoolExecutor(len(tasks)) as pool:
        for done in [pool.submit(task) for task in tasks]:
            done.result()
