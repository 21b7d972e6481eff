"""Which nodes belong to a window, and how the window numbers them.

A window has no nodes of its future: what is learned from it, counted in it or drawn from it is the same before and after later
loads. So a window that ends at `as_of` holds the nodes that were seen before:

- a node of a type that timed relations touch, from its first event, or from the time that a load of nodes gave it, or else from
  the time of that load, whichever is first;
- a node of any other type (an advertiser, a category) from when an untimed edge links it to a node that belongs, or from the
  time of its load. Edges bring nodes in outwards only, away from the types that have times, or from head to tail: a country
  comes with its first advertiser, and brings no other advertiser;
- where no relation that leads to a type has times, all of its nodes: they have always been there.

An untimed edge is in each window that holds both of its ends. A window without `as_of` holds all nodes. Forgotten ones are in
none.

Within the window the nodes of a type are its rows, 0, 1, ..., in the order of the store's idx. Where no node is left out, a
row is an idx.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from multifacet.graphdb.layout import SEEN, all_edges, node_table
from multifacet.graphdb.merging import is_clustered, translated
from multifacet.graphdb.nodes import num_idx
from multifacet.graphdb.schema import GraphSchema, Relation
from multifacet.graphdb.sql import count, quote, run
from multifacet.graphdb.times import microseconds

#: When a node was seen that has always been there.
ALWAYS_US = np.iinfo(np.int64).min


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Members:
    """The nodes of one type that belong to a window.

    Attributes:
        num_rows: How many there are.
        table: A FROM clause of their `idx`; None where all nodes of the store belong.
        idx: int32 [num_rows], the store's idx of each row, ascending; None where a row is an idx.
        row_of: int32, the row of each idx, or -1; None where a row is an idx.
    """

    num_rows: int
    table: str | None
    idx: NDArray[np.int32] | None = None
    row_of: NDArray[np.int32] | None = None

    def rows(self, idx: NDArray[np.int32]) -> NDArray[np.int32]:
        """Gives the rows of idx that all belong to the window."""
        return idx if self.row_of is None else translated(idx, self.row_of)


def find_members(cursor: duckdb.DuckDBPyConnection, schema: GraphSchema, as_of: dt.datetime | None) -> dict[str, Members]:
    """Finds the nodes of a window.

    Args:
        cursor: The view's, within its transaction.
        schema: The store's schema.
        as_of: End of the window, or None.

    Returns:
        Node type -> its members.
    """
    tables = {} if as_of is None else _seen_before(cursor, schema, as_of)
    return {node.name: _members(cursor, node.name, tables.get(node.name)) for node in schema.nodes}


def first_seen(cursor: duckdb.DuckDBPyConnection, schema: GraphSchema, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Gives the idx of a type's nodes, ascending, and the microseconds from 1970 to when each was first seen."""
    nodes = cursor.sql(f"SELECT idx, {SEEN} AS seen FROM {node_table(name)} ORDER BY idx").to_arrow_table()
    idx, seen = nodes["idx"].to_numpy(), nodes["seen"].to_numpy()
    return idx, seen if name in _timed_types(schema) else np.full(len(idx), ALWAYS_US)


def _timed_types(schema: GraphSchema) -> set[str]:
    return {end for relation in schema.relations if relation.timed for end in (relation.src, relation.dst)}


def _members(cursor: duckdb.DuckDBPyConnection, name: str, table: str | None) -> Members:
    total = num_idx(cursor, name)
    if table is None and count(cursor, node_table(name)) == total:
        return Members(num_rows=total, table=None)
    idx = cursor.sql(f"SELECT idx FROM {table or node_table(name)}").to_arrow_table()["idx"].to_numpy()
    # They were written in order, but for those that were found through their links.
    idx = idx if is_clustered(idx, None) else np.sort(idx)
    # Most often those left out came last, and the others are numbered as before.
    if len(idx) == 0 or int(idx[-1]) == len(idx) - 1:
        return Members(num_rows=len(idx), table=table)
    row_of = np.full(int(idx[-1]) + 1, -1, np.int32)
    row_of[idx] = np.arange(len(idx), dtype=np.int32)
    return Members(num_rows=len(idx), table=table, idx=np.ascontiguousarray(idx, np.int32), row_of=row_of)


def _seen_before(cursor: duckdb.DuckDBPyConnection, schema: GraphSchema, as_of: dt.datetime) -> dict[str, str]:
    """Node type -> the table of its nodes that belong, for the types of which some do not."""
    bound, timed = microseconds(as_of), _timed_types(schema)
    linked = _linked_types(schema, timed)
    late = f"SELECT count(*) FROM {{}} WHERE {SEEN} >= {bound}"
    tables = {
        name: f"(SELECT idx FROM {node_table(name)} WHERE {SEEN} < {bound})"
        for name in (*sorted(timed), *linked)
        if run(cursor, late.format(node_table(name)))[0][0]
    }
    for name in linked:
        if name in tables:
            run(cursor, f"CREATE TEMP TABLE {quote(f'_mf_member_{name}')} AS {tables[name]}")
            tables[name] = quote(f"_mf_member_{name}")
    # Types of one distance can be linked among themselves: until nothing is added.
    is_growing = any(name in tables for name in linked)
    while is_growing:
        is_growing = False
        for relation, near, far in _ways(schema, {**dict.fromkeys(timed, 0), **linked}):
            end, other = (relation.src, relation.dst) if near == "src" else (relation.dst, relation.src)
            if other not in tables:
                continue
            seen = f"{near} IN (SELECT idx FROM {tables.get(end, node_table(end))})"
            new = f"SELECT DISTINCT {far} AS idx FROM {all_edges(relation.name)} WHERE {seen}"
            added = run(cursor, f"INSERT INTO {tables[other]} FROM ({new}) ANTI JOIN {tables[other]} USING (idx)")[0][0]
            is_growing |= bool(added)
    is_partly = {
        name: name in timed or count(cursor, table) < count(cursor, node_table(name)) for name, table in tables.items()
    }
    return {name: table for name, table in tables.items() if is_partly[name]}


def _linked_types(schema: GraphSchema, timed: set[str]) -> dict[str, int]:
    """The types that no timed relation touches, but that untimed ones link to such types, and at what distance."""
    distances = dict.fromkeys(timed, 0)
    distance = 0
    while True:
        distance += 1
        more = {
            end
            for relation in schema.relations
            if not relation.timed and {relation.src, relation.dst} & set(distances)
            for end in (relation.src, relation.dst)
        } - set(distances)
        if not more:
            return {name: distances[name] for name in sorted(distances) if name not in timed}
        distances |= dict.fromkeys(more, distance)


def _ways(schema: GraphSchema, distances: Mapping[str, int]) -> Iterator[tuple[Relation, str, str]]:
    """The untimed relations, and from which end to which they bring nodes into a window: outwards, or from head to tail."""
    for relation in schema.relations:
        if relation.timed or relation.src not in distances or relation.dst not in distances:
            continue
        src, dst = distances[relation.src], distances[relation.dst]
        if 0 < dst >= src:
            yield relation, "src", "dst"
        elif src > dst:
            yield relation, "dst", "src"
