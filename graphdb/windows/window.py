"""Which rows of a relation's tables a view sees."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence

import duckdb

from multifacet.graphdb.schema import GraphSchema, Relation
from multifacet.graphdb.sql import count, quote, quote_text, run
from multifacet.graphdb.storage.edge_storage import Base, Storage
from multifacet.graphdb.storage.layout import delta_table, edge_columns, edge_table, edges_query, nodes_query
from multifacet.graphdb.windows.members import Members


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """The rows of one relation, as FROM clauses.

    Attributes:
        base: Those of the clustered table, in its order.
        delta: Those since the last compaction, or None where there are none.
        keeps_order: Whether the rows come in the order of their tables; those that a join has chosen may not.
    """

    base: str
    delta: str | None
    keeps_order: bool = True

    @property
    def rows(self) -> str:
        """All rows."""
        return self.base if self.delta is None else f"(FROM {self.base} UNION ALL FROM {self.delta})"

    def where(self, condition: str) -> Window:
        """The rows of this window that a condition on their own columns holds for."""
        delta = None if self.delta is None else f"(FROM {self.delta} WHERE {condition})"
        return Window(base=f"(FROM {self.base} WHERE {condition})", delta=delta, keeps_order=self.keeps_order)

    def among(self, conditions: Sequence[str]) -> Window:
        """The rows of this window whose ends are in tables, as conditions say; DuckDB joins them, in any order."""
        return dataclasses.replace(self.where(" AND ".join(conditions)), keeps_order=False) if conditions else self


def create_windows(
    cursor: duckdb.DuckDBPyConnection,
    schema: GraphSchema,
    storage: Storage,
    relations: Sequence[Relation],
    since: dt.datetime | None,
    as_of: dt.datetime | None,
    min_degree: int | Mapping[str, int] | None,
    members: Mapping[str, Members],
) -> dict[str, Window]:
    """The windows of a view's relations, and for its cursor the `edges_*` views over them.

    Args:
        cursor: The view's, within its transaction.
        schema: The store's schema.
        storage: The store's storage.
        relations: The view's relations.
        since: Start of the window, within it.
        as_of: End of the window, not within it.
        min_degree: Edges that a node must have in all windows together.
        members: Node type -> the nodes that belong to the view.
    """
    windows = {relation.name: _window(cursor, storage.base(cursor, relation), relation, since, as_of) for relation in relations}
    windows = {relation.name: _with_members(windows[relation.name], relation, members) for relation in relations}
    if min_degree is not None:
        windows = _with_min_degree(cursor, schema, relations, windows, min_degree)
    for relation in schema.relations:
        rows = windows[relation.name].rows if relation.name in windows else f"(FROM {edge_table(relation.name)} WHERE false)"
        # Temporary views hide the store's own of the same name, for this cursor only.
        run(cursor, f"CREATE TEMP VIEW {quote(f'edges_{relation.name}')} AS {edges_query(relation, rows)}")
    for node in schema.nodes:
        table = members[node.name].table
        if table is not None:
            own = f"SELECT * FROM ({nodes_query(node)}) WHERE idx IN (SELECT idx FROM {table})"
            run(cursor, f"CREATE TEMP VIEW {quote(f'nodes_{node.name}')} AS {own}")
    return windows


def _with_members(window: Window, relation: Relation, members: Mapping[str, Members]) -> Window:
    """Leaves the edges both of whose ends belong to the view: timed ones do, as their ends are seen by then."""
    if relation.timed:
        return window
    conditions = [
        f"{end} IN (SELECT idx FROM {members[name].table})"
        for end, name in (("src", relation.src), ("dst", relation.dst))
        if members[name].table is not None
    ]
    return window.among(conditions)


def _window(
    cursor: duckdb.DuckDBPyConnection,
    base: Base,
    relation: Relation,
    since: dt.datetime | None,
    as_of: dt.datetime | None,
) -> Window:
    first, last = (None if bound is None else bound.isoformat(sep=" ") for bound in (since, as_of))
    delta = f"(SELECT {edge_columns(relation)} FROM {delta_table(relation.name)})"
    window = Window(base=base.rows(first, last), delta=delta if count(cursor, delta_table(relation.name)) else None)
    bounds = [
        f"time {operator} TIMESTAMP {quote_text(bound)}"
        for bound, operator in ((first, ">="), (last, "<"))
        if bound is not None
    ]
    return window.where(" AND ".join(bounds)) if bounds and relation.timed else window


def _with_min_degree(
    cursor: duckdb.DuckDBPyConnection,
    schema: GraphSchema,
    relations: Sequence[Relation],
    windows: Mapping[str, Window],
    min_degree: int | Mapping[str, int],
) -> dict[str, Window]:
    if isinstance(min_degree, Mapping):
        for name in min_degree:
            schema.node(name)
    kept = {}
    for node in schema.nodes:
        wanted = min_degree.get(node.name, 0) if isinstance(min_degree, Mapping) else min_degree
        ends = [
            f"SELECT {end} AS idx FROM {windows[relation.name].rows}"
            for relation in relations
            for end, name in (("src", relation.src), ("dst", relation.dst))
            if name == node.name
        ]
        if wanted <= 0 or not ends:
            continue
        kept[node.name] = quote(f"_kept_{node.name}")
        degrees = f"SELECT idx FROM ({' UNION ALL '.join(ends)}) GROUP BY idx HAVING count(*) >= {int(wanted)}"
        run(cursor, f"CREATE TEMP TABLE {kept[node.name]} AS {degrees}")
    narrowed = dict(windows)
    for relation in relations:
        conditions = [
            f"{end} IN (SELECT idx FROM {kept[name]})"
            for end, name in (("src", relation.src), ("dst", relation.dst))
            if name in kept
        ]
        narrowed[relation.name] = windows[relation.name].among(conditions)
    return narrowed
