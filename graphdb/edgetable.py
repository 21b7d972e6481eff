"""The clustered edges of a relation as a table of the store's file."""

from __future__ import annotations

from collections.abc import Mapping

import duckdb

from multifacet.graphdb.layout import (
    all_edges,
    delta_table,
    edge_columns,
    edge_order,
    edge_table,
    key_columns,
    out_order,
    out_table,
)
from multifacet.graphdb.schema import Relation
from multifacet.graphdb.sql import changed, count, quote, run


class EdgeTable:
    """A relation's clustered table, and its copy by src where there is one.

    Args:
        connection: Within a transaction where it writes.
        relation: The relation.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, relation: Relation) -> None:
        self._connection = connection
        self._relation = relation
        self.table = edge_table(relation.name)
        self.order = edge_order(relation)

    def create(self, columns: str) -> None:
        """Creates the empty tables, whose columns are given as SQL."""
        for table in self._tables():
            run(self._connection, f"CREATE TABLE {table} ({columns})")

    def takes_first_batch(self) -> bool:
        """Whether a batch can be written in order straight into the table: it is the relation's first."""
        return count(self._connection, self.table) == 0 and count(self._connection, delta_table(self._relation.name)) == 0

    def absorb(self, batch: str) -> int:  # noqa: ARG002 - a log can
        """A table that holds edges takes no others before a compaction."""
        return 0

    def publish(self) -> None:
        """Makes the copy by src anew where it lacks edges."""
        if self._relation.out_clustered:
            copy = out_table(self._relation.name)
            if count(self._connection, copy) != count(self._connection, self.table):
                run(self._connection, f"DELETE FROM {copy}")
                columns, order = edge_columns(self._relation), out_order(self._relation)
                run(self._connection, f"INSERT INTO {copy} SELECT {columns} FROM {self.table} ORDER BY {order}")

    def rows(self, first: str | None = None, last: str | None = None) -> str:  # noqa: ARG002 - a log can
        """A FROM clause of at least the edges between two times, in order."""
        return f"(SELECT {edge_columns(self._relation)} FROM {self.table})"

    def update(self, batch: str, values: Mapping[str, str]) -> None:
        """Sets what the edges of a batch that are there already carry; see `update_table`."""
        for table in self._tables():
            update_table(self._connection, self._relation, table, batch, values)

    def delete(self, where: str) -> int:
        """Deletes the edges that a condition holds for; returns their number."""
        deleted, *_ = [changed(self._connection, f"DELETE FROM {table} WHERE {where}") for table in self._tables()]
        return deleted

    def compact(self) -> int:
        """Merges the delta into the table; returns the number of edges that were in it."""
        delta = delta_table(self._relation.name)
        merged = count(self._connection, delta)
        if merged:
            rows = f"SELECT {edge_columns(self._relation)} FROM {all_edges(self._relation.name)} ORDER BY {self.order}"
            run(self._connection, f"CREATE TEMP TABLE _merged AS {rows}")
            run(self._connection, f"DELETE FROM {self.table}; DELETE FROM {delta}")
            run(self._connection, f"INSERT INTO {self.table} FROM _merged; DROP TABLE _merged")
            self.publish()
        return merged

    def add_column(self, name: str, kind: str) -> None:
        """Adds a column of nulls."""
        for table in self._tables():
            run(self._connection, f"ALTER TABLE {table} ADD COLUMN {quote(name)} {kind}")

    def _tables(self) -> list[str]:
        return [self.table, *([out_table(self._relation.name)] if self._relation.out_clustered else [])]


def update_table(
    connection: duckdb.DuckDBPyConnection, relation: Relation, table: str, batch: str, values: Mapping[str, str]
) -> None:
    """Sets columns of a table where its key is that of a row of a batch.

    Args:
        connection: Within a transaction.
        relation: The relation.
        table: The table.
        batch: The batch's table.
        values: Quoted column -> SQL of its value, over the row `kept` and the batch's row `given`.
    """
    setters = ", ".join(f"{name} = {value}" for name, value in values.items())
    same = " AND ".join(f"kept.{name} = given.{name}" for name in key_columns(relation))
    run(connection, f"UPDATE {table} AS kept SET {setters} FROM {batch} AS given WHERE {same}")
