"""Questions to a graph that one asks again and again, each answered by an Arrow table."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import duckdb
import pyarrow as pa

from multifacet.graphdb.layout import delta_table, edge_table, node_table, out_table
from multifacet.graphdb.neighborhood import FEW_STEPS, IdCache, neighbors
from multifacet.graphdb.reach import Node, Reach, Step, ends, hops_table, union_of
from multifacet.graphdb.reverse import parse_step
from multifacet.graphdb.schema import GraphSchema, Relation
from multifacet.graphdb.sql import GraphError, quote, quote_text, run

Direction = Literal["out", "in", "both"]


class Queries:
    """Questions to the whole graph or to a window.

    Args:
        cursor: Where to ask.
        schema: The schema.
        rows: Relation name -> FROM clause of its edges.
        ids: External ids that were read already.
        is_whole: Whether the rows are all that the store has, so that copies of its tables may stand in for them.
    """

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        schema: GraphSchema,
        rows: Mapping[str, str],
        *,
        ids: IdCache,
        is_whole: bool,
    ) -> None:
        self._cursor = cursor
        self._schema = schema
        self._rows = rows
        self._ids = ids
        self._is_whole = is_whole

    def neighbors(
        self,
        type: str,  # noqa: A002 - as in GraphStore
        id: int | str,  # noqa: A002 - as in GraphStore
        *,
        relation: str | None = None,
        direction: Direction = "both",
        since: dt.datetime | None = None,
        as_of: dt.datetime | None = None,
        limit: int = 100,
    ) -> pa.Table:
        """The neighbours of one node, latest first.

        Returns:
            A table with columns relation, direction, type, id (as text), time, weight.

        Raises:
            GraphError: Unknown type or relation, or no relation of the type goes that way.
        """
        steps = self._steps(type, relation, direction)
        idx = self.idx(type, id, missing_ok=True)
        ways = [(edge, way, self._edges(edge, way)) for edge, way in steps]
        return neighbors(self._cursor, self._ids, idx, ways, since, as_of, limit)

    def degrees(self, relation: str, end: Literal["src", "dst"] = "dst") -> pa.Table:
        """How many nodes have how many edges: columns degree, nodes; nodes without an edge count under 0."""
        declared = self._schema.relation(relation)
        self._steps(declared.src, relation, "out")
        nodes = quote(f"nodes_{declared.src if end == 'src' else declared.dst}")
        counted = f"SELECT {end} AS idx, count(*) AS degree FROM {self._rows[relation]} GROUP BY ALL"
        query = (
            f"SELECT coalesce(degree, 0) AS degree, count(*) AS nodes FROM {nodes} AS node LEFT JOIN ({counted}) USING (idx) "
            "GROUP BY ALL ORDER BY degree"
        )
        return self._table(query)

    def common_neighbors(
        self,
        type: str,  # noqa: A002 - as in GraphStore
        id: int | str,  # noqa: A002 - as in GraphStore
        other: int | str,
        *,
        relation: str | None = None,
        limit: int = 100,
    ) -> pa.Table:
        """The nodes that two nodes of a type are both linked to: columns relation, direction, type, id (as text)."""
        pair = {self.idx(type, id), self.idx(type, other)}
        steps = [(edge, way, self._edges(edge, way)) for edge, way in self._steps(type, relation, "both")]
        shared = (
            f"SELECT step, far FROM {union_of(steps)} WHERE near IN ({', '.join(map(str, pair))}) "
            f"GROUP BY ALL HAVING count(DISTINCT near) = {len(pair)}"
        )
        names = ", ".join(
            f"({position}, {quote_text(edge.name)}, {quote_text(way)}, {quote_text(ends(edge, way)[2])})"
            for position, (edge, way, _) in enumerate(steps)
        )
        ids = " UNION ALL ".join(
            f"SELECT {quote_text(far_type)} AS type, idx AS far, CAST(id AS VARCHAR) AS id FROM {node_table(far_type)} "
            "WHERE idx IN (SELECT far FROM shared)"
            for far_type in dict.fromkeys(ends(edge, way)[2] for edge, way, _ in steps)
        )
        return self._table(
            f"WITH shared AS MATERIALIZED ({shared}), steps(step, relation, direction, type) AS (VALUES {names}) "
            f"SELECT relation, direction, type, id FROM shared JOIN steps USING (step) JOIN ({ids}) USING (type, far) "
            f"ORDER BY relation, direction, id LIMIT {int(limit)}"
        )

    def top(
        self,
        type: str,  # noqa: A002 - as in GraphStore
        id: int | str,  # noqa: A002 - as in GraphStore
        path: Sequence[str],
        *,
        k: int = 10,
    ) -> pa.Table:
        """The nodes at the end of a path of relations from one node, by the number of ways to them.

        The advertisers that a user buys most from are `top("user", 7, ["buys", "made_by"])`; `"made_by^-1"` goes back.

        Returns:
            A table with columns type, id (as text), edges.
        """
        rows, kind = f"SELECT {self.idx(type, id)}::INTEGER AS idx, 1::HUGEINT AS edges", type
        for name in path:
            relation, is_inverse = parse_step(name, self._rows)
            edge, way = self._steps(kind, relation, "in" if is_inverse else "both")[0]
            own, far, kind = ends(edge, way)
            rows = (
                f"SELECT edge.{far} AS idx, sum(near.edges) AS edges FROM {self._edges(edge, way)} AS edge "
                f"JOIN ({rows}) AS near ON near.idx = edge.{own} GROUP BY ALL"
            )
        return self._table(
            f"SELECT {quote_text(kind)} AS type, CAST(id AS VARCHAR) AS id, edges::BIGINT AS edges FROM ({rows}) "
            f"JOIN {node_table(kind)} USING (idx) ORDER BY edges DESC, idx LIMIT {int(k)}"
        )

    def hops(
        self,
        type: str,  # noqa: A002 - as in GraphStore
        id: int | str,  # noqa: A002 - as in GraphStore
        *,
        num_hops: int = 2,
    ) -> pa.Table:
        """How many nodes are first reached in how many hops, edges taken both ways: columns hop, type, nodes."""
        return hops_table(self._reach().layers((type, self.idx(type, id)), num_hops))

    def paths(
        self,
        source: tuple[str, int | str],
        target: tuple[str, int | str],
        *,
        max_hops: int = 3,
        limit: int = 10,
    ) -> pa.Table:
        """The shortest paths between two nodes, edges taken both ways.

        Args:
            source: Node type and id.
            target: Node type and id.
            max_hops: The longest path to look for.
            limit: The most paths to return.

        Returns:
            A table with columns path, hop, relation, direction, type, id (as text): a row for each step.
        """
        start, end = ((name, self.idx(name, identifier)) for name, identifier in (source, target))
        paths = self._reach().paths(start, end, max_hops=max_hops, limit=limit)
        rows = [
            {"path": number, "hop": hop, "relation": relation, "direction": way, "type": node[0], "id": self._id(node)}
            for number, path in enumerate(paths)
            for hop, (relation, way, node) in enumerate(path, 1)
        ]
        fields = [("path", pa.int64()), ("hop", pa.int64())]
        return pa.Table.from_pylist(
            rows, pa.schema([*fields, *((n, pa.string()) for n in ("relation", "direction", "type", "id"))])
        )

    def _steps(self, kind: str, relation: str | None, direction: str, *, needed: bool = True) -> list[tuple[Relation, str]]:
        self._schema.node(kind)
        if relation and self._schema.relation(relation).name not in self._rows:
            msg = f"relation {relation!r} is not in this view, which has {list(self._rows)}"
            raise GraphError(msg)
        chosen = [r for r in self._schema.relations if r.name in self._rows and relation in {None, r.name}]
        ways = [
            (edge, way)
            for edge in chosen
            for way in ("out", "in")
            if (edge.src if way == "out" else edge.dst) == kind and direction in {way, "both"}
        ]
        if needed and not ways:
            msg = f"no relation goes {'in or out' if direction == 'both' else direction} of {kind!r}" + (
                f" by the name {relation!r}" if relation else ""
            )
            raise GraphError(msg)
        return ways

    def _reach(self) -> Reach:
        def steps(kind: str) -> list[Step]:
            return [(edge, way, self._edges(edge, way)) for edge, way in self._steps(kind, None, "both", needed=False)]

        return Reach(self._cursor, self._schema, steps)

    def _edges(self, relation: Relation, way: str) -> str:
        if not self._is_whole:
            return self._rows[relation.name]
        is_settled = relation.name not in self._waiting
        if way == "out" and relation.out_clustered:
            copy = out_table(relation.name)
            return copy if is_settled else f"(FROM {copy} UNION ALL FROM {delta_table(relation.name)})"
        return edge_table(relation.name) if is_settled else self._rows[relation.name]

    @functools.cached_property
    def _waiting(self) -> frozenset[str]:
        """The relations that may have edges waiting for a compaction; where there are many, one query finds out which have."""
        names = list(self._rows)
        if len(names) <= FEW_STEPS:
            return frozenset(names)
        parts = [f"SELECT {position} WHERE EXISTS (FROM {delta_table(name)})" for position, name in enumerate(names)]
        return frozenset(names[position] for (position,) in run(self._cursor, " UNION ALL ".join(parts)))

    def idx(self, kind: str, identifier: int | str, *, missing_ok: bool = False) -> int:
        """The idx of a node; -1 for one that is not there, where that is no error.

        Raises:
            GraphError: An unknown type, something that is no id of it, or a node that is not there.
        """
        given = self._schema.node(kind).external_id(identifier)
        found = run(self._cursor, f"SELECT idx FROM {node_table(kind)} WHERE id = ?", [given])
        if not found and not missing_ok:
            msg = f"there is no {kind} {identifier!r} in the store"
            raise GraphError(msg)
        return int(found[0][0]) if found else -1

    def _id(self, node: Node) -> str:
        return str(run(self._cursor, f"SELECT id FROM {node_table(node[0])} WHERE idx = {node[1]}")[0][0])

    def _table(self, query: str) -> pa.Table:
        return self._cursor.sql(query).to_arrow_table()
