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

from multifacet.graphdb.batch import Batch
from multifacet.graphdb.layout import SEEN, node_table, value_columns
from multifacet.graphdb.nodes import NOW_US, insert_nodes, num_idx, see_nodes
from multifacet.graphdb.schema import GraphSchema, Relation
from multifacet.graphdb.sql import count, run, unregister

if TYPE_CHECKING:
    from multifacet.graphdb.idindex import IdIndex
    from multifacet.graphdb.merging import Array

# Below, a join is done sooner than the index's kernels are loaded; above, the rows may take a gigabyte.
MIN_ROWS_IN_MEMORY = 100_000
MAX_VALUES_IN_MEMORY = 100_000_000
_NEVER = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MappedRows:
    """Rows by idx, in no order.

    Attributes:
        sql: A FROM clause with src, dst, the relation's values, and `_mf_order0`, `_mf_order1`, ...
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
        num_orders: How many `_mf_orderN` columns they have.
        num_known: About how many rows there are, where every one of them has its nodes.
    """
    columns = ["src.idx AS src", "dst.idx AS dst", *(f"given.{name}" for name in value_columns(relation))]
    columns += [f"given._mf_order{position}" for position in range(num_orders)]
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
    num_rows = batch.num_right
    ordered = [f"{expression} AS _mf_order{position}" for position, expression in enumerate(order)]
    types = {name: schema.node(name) for name in (relation.src, relation.dst)}
    before = {name: num_idx(connection, name) for name in types}
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
                unregister(connection, "_mapped_in_memory")
            return
    created |= {
        node.name: _create(connection, schema, relation, batch, node.name) for node in types.values() if node.id_type == "int64"
    }
    given = batch.select(*ordered)
    sql = join(connection, schema, relation, given, num_orders=len(order), num_known=num_rows)
    if any(before.values()):
        see_nodes(connection, schema, relation, sql, before)
    yield MappedRows(sql=sql, created=_some(created))


def _some(created: Mapping[str, int]) -> dict[str, int]:
    return {name: number for name, number in created.items() if number}


def _create(connection: duckdb.DuckDBPyConnection, schema: GraphSchema, relation: Relation, batch: Batch, name: str) -> int:
    """Creates the nodes of one type that the batch lacks, by SQL; returns their number."""
    table = node_table(name)
    seen = "min(epoch_us(time))" if relation.timed else NOW_US
    time = ", time" if relation.timed else ""
    ends = [end for end, kind in (("src", relation.src), ("dst", relation.dst)) if kind == name]
    rows = " UNION ALL ".join(f"SELECT {end} AS id{time} FROM {batch.select()}" for end in ends)
    # Most batches bring few new nodes: telling them apart first spares most of the work of making them distinct.
    known = f" ANTI JOIN {table} AS kept USING (id)" if count(connection, table) else ""
    return insert_nodes(connection, schema.node(name), f"SELECT id, {seen} AS {SEEN} FROM ({rows}) AS given{known} GROUP BY id")


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
    columns = ", ".join([*keys, *value_columns(relation), *(f"_mf_order{position}" for position in range(len(ordered)))])
    table = connection.sql(f"SELECT {columns} FROM {batch.select(*ordered)}").to_arrow_table()
    mapped = {end: np.empty(table.num_rows, np.int32) for end, _ in ends}

    def map_end(end: str, name: str) -> None:
        position = 0
        for chunk in table[end].chunks:
            indexes[name].add(chunk.to_numpy().view(np.int64), mapped[end][position : position + len(chunk)])
            position += len(chunk)

    at_once = len(indexes) == len(ends)
    _run([lambda end=end, name=name: map_end(end, name) for end, name in ends], at_once=at_once)  # type: ignore[misc]
    seen = _earliest(table, mapped, indexes, ends, at_once=at_once) if relation.timed else {}
    for name, index in indexes.items():
        if relation.timed:
            _see_earlier(connection, name, seen[name][: index.first])
        if len(index.new_ids):
            new_seen = seen[name][index.first :] if relation.timed else None
            created[name], rank = _insert_new(connection, schema, index, name, new_seen)
            for end, kind in ends:
                if kind == name:
                    index.renumber(mapped[end], rank)
    return pa.table({name: mapped.get(name, table[name]) for name in table.column_names})


def _earliest(
    table: pa.Table,
    mapped: Mapping[str, Array],
    indexes: Mapping[str, IdIndex],
    ends: Sequence[tuple[str, str]],
    *,
    at_once: bool,
) -> dict[str, Array]:
    """Node type -> by idx, the time of its first event in the batch, in microseconds."""
    seen = {name: np.full(index.num_idx, _NEVER, np.int64) for name, index in indexes.items()}
    times = table["time"].cast(pa.int64())

    def see_end(end: str, name: str) -> None:
        position = 0
        for chunk in times.chunks:
            indexes[name].keep_earliest(mapped[end][position : position + len(chunk)], chunk.to_numpy(), seen[name])
            position += len(chunk)

    _run([lambda end=end, name=name: see_end(end, name) for end, name in ends], at_once=at_once)  # type: ignore[misc]
    return seen


def _insert_new(
    connection: duckdb.DuckDBPyConnection, schema: GraphSchema, index: IdIndex, name: str, seen: Array | None
) -> tuple[int, Array]:
    """Creates the nodes of an index's new ids, seen from given times or from now on; returns their number, and their ranks."""
    order = np.argsort(index.new_ids)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    columns = {"id": index.new_ids[order], **({} if seen is None else {SEEN: seen[order]})}
    connection.register("_new_ids", pa.table(columns))
    first = SEEN if seen is not None else f"{NOW_US} AS {SEEN}"
    number = insert_nodes(connection, schema.node(name), f"SELECT id, {first} FROM _new_ids")
    connection.unregister("_new_ids")
    return number, rank


def _see_earlier(connection: duckdb.DuckDBPyConnection, name: str, seen: Array) -> None:
    """Lets known nodes be seen from the times of the batch on, by idx, where they were not seen before."""
    nodes = connection.sql(f"SELECT idx, {SEEN} AS seen FROM {node_table(name)}").to_arrow_table()
    idx, known = nodes["idx"].to_numpy(), nodes["seen"].to_numpy()
    # A type of string ids has its new nodes by now.
    is_old = idx < len(seen)
    idx, known = idx[is_old], known[is_old]
    earlier = seen[idx] < known
    if not earlier.any():
        return
    connection.register("_seen", pa.table({"idx": idx[earlier], "seen": seen[idx[earlier]]}))
    run(connection, f"UPDATE {node_table(name)} AS kept SET {SEEN} = given.seen FROM _seen AS given WHERE kept.idx = given.idx")
    connection.unregister("_seen")


def _key(identifier: str, schema: GraphSchema, node: str) -> str:
    """SQL of the 64 bits that stand for an id in an index."""
    if schema.node(node).id_type == "int64":
        return identifier
    return f"hash({identifier})"


def _index(connection: duckdb.DuckDBPyConnection, schema: GraphSchema, name: str) -> IdIndex | None:
    """An index of a type's known nodes; None where two of them share a hash."""
    from multifacet.graphdb.idindex import IdIndex  # noqa: PLC0415 - numba is slow to import, and small batches need none

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
