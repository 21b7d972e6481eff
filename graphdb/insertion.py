"""Putting a batch of edges, whose nodes are known, into a relation's clustered table or its delta."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import duckdb

from graphdb.layout import (
    all_edges,
    delta_table,
    edge_columns,
    edge_order,
    edge_table,
    key_columns,
    node_table,
    out_order,
    out_table,
    payload_columns,
    value_columns,
)
from graphdb.schema import GraphSchema, Relation
from graphdb.sql import changed, count, run


class Insertion:
    """Maps a batch to idx, clusters it, and applies the relation's policy on duplicates.

    The first batch of a relation is clustered in place. Later ones wait in the delta, which is small, for a compaction.

    Args:
        connection: Within a transaction.
        schema: The store's schema.
        relation: The relation.
        all_known: Whether every id of the batch has its node, so that none need be looked for in vain.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, schema: GraphSchema, relation: Relation, *, all_known: bool
    ) -> None:
        self._connection = connection
        self._schema = schema
        self._relation = relation
        self._all_known = all_known

    def insert(self, select: Callable[..., str], order: Sequence[str], num_rows: int) -> int:
        """Inserts rows by external id.

        Args:
            select: Gives the query of the rows (src, dst, time, weight, properties), with extra expressions.
            order: Expressions `... AS _orderN` of the order that the rows have among themselves.
            num_rows: About how many rows there are.

        Returns:
            Edges that are new.
        """
        relation = self._relation
        base, delta = edge_table(relation.name), delta_table(relation.name)
        is_first = count(self._connection, base) == 0 and count(self._connection, delta) == 0
        mapped = self._mapped(select, order, num_rows)
        if is_first:
            loaded = changed(self._connection, f"INSERT INTO {base} {mapped}") - self._fold_duplicates(base)
            if relation.out_clustered:
                copy_out(self._connection, relation)
            return loaded
        run(self._connection, f"CREATE OR REPLACE TEMP TABLE _mapped AS {mapped}")
        self._fold_duplicates("_mapped")
        loaded = self._merge("_mapped", delta)
        run(self._connection, "DROP TABLE _mapped")
        return loaded

    def _mapped(self, select: Callable[..., str], order: Sequence[str], num_rows: int) -> str:
        """SQL of the rows by idx, clustered."""
        relation = self._relation
        # Rows that are alike but for their key need an order among themselves, so that the first or last of them is one.
        ordered = order if payload_columns(relation) and relation.duplicates != "all" else ()
        sorting = ", ".join([edge_order(relation), *(f"_order{position}" for position in range(len(ordered)))])
        columns = ["src.idx AS src", "dst.idx AS dst", *(f"given.{name}" for name in value_columns(relation))]
        joins, given = [], select(*ordered)
        for end, name in (("src", relation.src), ("dst", relation.dst)):
            if self._is_hash_safe(name, num_rows):
                nodes, identifier = f"(SELECT idx, hash(id) AS id FROM {node_table(name)})", f"hash(given.{end})"
            else:
                nodes, identifier = node_table(name), f"given.{end}"
            joins.append(f"JOIN {nodes} AS {end} ON {end}.id = {identifier}")
        return f"SELECT {', '.join(columns)} FROM {given} AS given {' '.join(joins)} ORDER BY {_qualified(sorting)}"

    def _is_hash_safe(self, node: str, num_rows: int) -> bool:
        """Whether strings can be joined by hash: all are known, and no two of the known share a hash."""
        if self._schema.node(node).id_type != "string" or not self._all_known:
            return False
        table = node_table(node)
        if count(self._connection, table) > num_rows:
            return False
        return bool(run(self._connection, f"SELECT count(*) = count(DISTINCT hash(id)) FROM {table}")[0][0])

    def _fold_duplicates(self, table: str) -> int:
        """Leaves one row of each key in a table that was just written in order; returns how many rows went."""
        relation = self._relation
        if relation.duplicates == "all":
            return 0
        beside = "lead" if relation.duplicates == "last" else "lag"
        again = " AND ".join(
            f"{name} IS NOT DISTINCT FROM {beside}({name}) OVER ()" for name in reversed(key_columns(relation))
        )
        marked = f"(SELECT rowid AS row, {again} AS again FROM {table})"
        if count(self._connection, f"{marked} WHERE again") == 0:
            return 0
        if relation.duplicates == "sum":
            key = ", ".join(key_columns(relation))
            same = " AND ".join(f"{table}.{name} = summed.{name}" for name in key_columns(relation))
            summed = f"SELECT {key}, sum(weight) AS weight FROM {table} GROUP BY {key} HAVING count(*) > 1"
            run(self._connection, f"UPDATE {table} SET weight = summed.weight FROM ({summed}) AS summed WHERE {same}")
        return changed(self._connection, f"DELETE FROM {table} WHERE rowid IN (SELECT row FROM {marked} WHERE again)")

    def _merge(self, batch: str, delta: str) -> int:
        """Inserts into the delta the edges of a batch whose key is new, and applies the policy to the others."""
        relation = self._relation
        columns = edge_columns(relation)
        if relation.duplicates == "all":
            return changed(
                self._connection, f"INSERT INTO {delta} SELECT {columns} FROM {batch} ORDER BY {edge_order(relation)}"
            )
        key = ", ".join(key_columns(relation))
        kept = f"SELECT {key} FROM {all_edges(relation.name)}"
        if relation.timed:
            first, last = run(self._connection, f"SELECT min(time)::VARCHAR, max(time)::VARCHAR FROM {batch}")[0]
            kept += f" WHERE time BETWEEN TIMESTAMP '{first}' AND TIMESTAMP '{last}'" if first else " WHERE false"
        run(
            self._connection,
            f"CREATE OR REPLACE TEMP TABLE _new AS SELECT {columns} FROM {batch} ANTI JOIN ({kept}) USING ({key})",
        )
        if relation.duplicates in {"last", "sum"} and payload_columns(relation):
            self._update(batch)
        loaded = changed(self._connection, f"INSERT INTO {delta} SELECT {columns} FROM _new ORDER BY {edge_order(relation)}")
        run(self._connection, "DROP TABLE _new")
        return loaded

    def _update(self, batch: str) -> None:
        relation = self._relation
        added = relation.duplicates == "sum"
        tables = [edge_table(relation.name), delta_table(relation.name)]
        tables += [out_table(relation.name)] if relation.out_clustered else []
        for table in tables:
            setters = ", ".join(
                f"{name} = kept.{name} + given.{name}" if added and name == "weight" else f"{name} = given.{name}"
                for name in payload_columns(relation)
            )
            same = " AND ".join(f"kept.{name} = given.{name}" for name in key_columns(relation))
            run(self._connection, f"UPDATE {table} AS kept SET {setters} FROM {batch} AS given WHERE {same}")


def copy_out(connection: duckdb.DuckDBPyConnection, relation: Relation) -> None:
    """Makes a relation's copy by src anew from its clustered table."""
    base, copy = edge_table(relation.name), out_table(relation.name)
    run(connection, f"DELETE FROM {copy}")
    run(connection, f"INSERT INTO {copy} SELECT {edge_columns(relation)} FROM {base} ORDER BY {out_order(relation)}")


def _qualified(order: str) -> str:
    """An ORDER BY of a batch's rows: dst and src are the idx, not the ids given."""
    names = [name.strip() for name in order.split(",")]
    return ", ".join(f"{name}.idx" if name in {"src", "dst"} else f"given.{name}" for name in names)
