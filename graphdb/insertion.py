"""Putting a batch of edges, whose nodes are known, into a relation's clustered table or its delta."""

from __future__ import annotations

import duckdb

from multifacet.graphdb.edgetable import update_table
from multifacet.graphdb.layout import all_edges, delta_table, edge_columns, edge_order, key_columns, payload_columns
from multifacet.graphdb.schema import Relation
from multifacet.graphdb.sql import changed, count, run
from multifacet.graphdb.storage import Base


class Insertion:
    """Clusters a batch of mapped rows, and applies the relation's policy on duplicates.

    Rows go to the base where it can take them: the first batch of a relation, or the first of a day. Others wait in the
    delta, which is small, for a compaction.

    Args:
        connection: Within a transaction.
        relation: The relation.
        base: Where its clustered edges are.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, relation: Relation, base: Base) -> None:
        self._connection = connection
        self._relation = relation
        self._base = base

    def insert(self, rows: str, num_orders: int) -> int:
        """Inserts rows.

        Args:
            rows: A FROM clause: src and dst by idx, the relation's values, and `_mf_order0`, `_mf_order1`, ...
            num_orders: How many columns there are of the order that rows with the same key have among themselves.

        Returns:
            Edges that are new.
        """
        order = ", ".join([self._base.order, *(f"_mf_order{position}" for position in range(num_orders))])
        clustered = f"SELECT {edge_columns(self._relation)} FROM {rows} ORDER BY {order}"
        if self._base.takes_first_batch():
            loaded = changed(self._connection, f"INSERT INTO {self._base.table} {clustered}") - self._fold_duplicates(
                self._base.table
            )
            self._base.publish()
            return loaded
        run(self._connection, f"CREATE OR REPLACE TEMP TABLE _mapped AS {clustered}")
        self._fold_duplicates("_mapped")
        loaded = self._base.absorb("_mapped")
        loaded += self._merge("_mapped", delta_table(self._relation.name))
        self._base.publish()
        run(self._connection, "DROP TABLE _mapped")
        return loaded

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
            if first is None:
                return 0
            near = f"(FROM {self._base.rows(first, last)} UNION ALL FROM {delta})"
            kept = f"SELECT {key} FROM {near} WHERE time BETWEEN TIMESTAMP '{first}' AND TIMESTAMP '{last}'"
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
        values = {
            name: f"kept.{name} + given.{name}" if added and name == "weight" else f"given.{name}"
            for name in payload_columns(relation)
        }
        self._base.update(batch, values)
        update_table(self._connection, relation, delta_table(relation.name), batch, values)
