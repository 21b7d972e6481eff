"""The graph store: one DuckDB file that holds nodes, edges and what was loaded when."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import duckdb
import pyarrow as pa

from graphdb import loading
from graphdb.loading import (
    LoadReport,
    MissingNodes,
    delta_table,
    edge_columns,
    edge_order,
    edge_table,
    node_table,
)
from graphdb.schema import GraphSchema, Surface
from graphdb.source import Source, scan
from graphdb.sql import GraphError, changed, count, quote, run, select
from graphdb.view import GraphView, edges_query

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_OWN_PREFIXES = ("_", "nodes_", "edges_", "rejected_rows", "loads")


class GraphStore:
    """A heterogeneous interaction graph in one DuckDB file.

    External ids are mapped to dense int32 idx when they are loaded; an idx never changes. Loads are atomic and idempotent. One
    process writes at a time; a store opened read-only can be shared by many.

    Example:
        >>> import pyarrow as pa, tempfile, pathlib
        >>> from graphdb import GraphSchema, NodeType, Relation
        >>> schema = GraphSchema(
        ...     nodes=(NodeType(name="user"), NodeType(name="pin")),
        ...     relations=(Relation(src="user", name="clicks", dst="pin", timed=False),),
        ... )
        >>> with tempfile.TemporaryDirectory() as folder, GraphStore.create(pathlib.Path(folder) / "g.duckdb", schema) as store:
        ...     report = store.load_edges("clicks", pa.table({"src": [7, 7, 8], "dst": [1, 1, 2]}))
        ...     report.loaded, report.already_there, store
        (2, 1, GraphStore(user=2, pin=2, (user, clicks, pin)=2))
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, path: Path, schema: GraphSchema, *, read_only: bool) -> None:
        self._connection = connection
        self._writing = threading.Lock()
        self.path = path
        self.schema = schema
        self.read_only = read_only

    @classmethod
    def create(cls, path: str | Path, schema: GraphSchema) -> GraphStore:
        """Creates an empty store.

        Raises:
            GraphError: Something is at `path` already.
        """
        path = Path(path)
        if path.exists():
            msg = f"{path} exists; open it with GraphStore.open, or remove it first"
            raise GraphError(msg)
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = duckdb.connect(str(path))
        store = cls(connection, path, schema, read_only=False)
        with store._transaction() as cursor:
            run(cursor, "CREATE TABLE _meta (key VARCHAR NOT NULL PRIMARY KEY, value VARCHAR NOT NULL)")
            run(
                cursor,
                "INSERT INTO _meta VALUES ('format_version', ?), ('schema', ?)",
                [str(FORMAT_VERSION), schema.model_dump_json()],
            )
            run(
                cursor,
                "CREATE TABLE _load (load_id INTEGER NOT NULL, target VARCHAR NOT NULL, source VARCHAR NOT NULL, "
                "read BIGINT NOT NULL, loaded BIGINT NOT NULL, already_there BIGINT NOT NULL, rejected BIGINT NOT NULL, "
                "loaded_at TIMESTAMP NOT NULL)",
            )
            run(
                cursor,
                "CREATE TABLE _rejected (load_id INTEGER NOT NULL, target VARCHAR NOT NULL, row BIGINT NOT NULL, "
                "reason VARCHAR NOT NULL, src_or_id VARCHAR, dst VARCHAR, time VARCHAR, weight VARCHAR)",
            )
            run(cursor, "CREATE VIEW loads AS SELECT * FROM _load")
            run(cursor, "CREATE VIEW rejected_rows AS SELECT * FROM _rejected")
            for node in schema.nodes:
                properties = "".join(f", {quote(name)} {kind}" for name, kind in node.properties.items())
                run(
                    cursor,
                    f"CREATE TABLE {node_table(node.name)} (idx INTEGER NOT NULL, id {node.sql_id_type} NOT NULL{properties})",
                )
                run(cursor, f"CREATE VIEW {quote(f'nodes_{node.name}')} AS SELECT * FROM {node_table(node.name)}")
            for relation in schema.relations:
                columns = "src INTEGER NOT NULL, dst INTEGER NOT NULL"
                columns += ", time TIMESTAMP NOT NULL" if relation.timed else ""
                columns += ", weight FLOAT NOT NULL" if relation.weighted else ""
                for table in (edge_table(relation.name), delta_table(relation.name)):
                    run(cursor, f"CREATE TABLE {table} ({columns})")
                name = quote(f"edges_{relation.name}")
                rows = f"(FROM {edge_table(relation.name)} UNION ALL FROM {delta_table(relation.name)})"
                run(cursor, f"CREATE VIEW {name} AS {edges_query(relation, rows)}")
        return store

    @classmethod
    def open(cls, path: str | Path, read_only: bool = False) -> GraphStore:
        """Opens a store.

        Raises:
            GraphError: There is no store at `path`, another process writes to it, or it was written by a newer version.
        """
        path = Path(path)
        if not path.is_file():
            msg = f"there is no store at {path}; create one with GraphStore.create or `multifacet graph init`"
            raise GraphError(msg)
        try:
            connection = duckdb.connect(str(path), read_only=read_only)
        except duckdb.Error as error:
            msg = f"cannot open {path} as a graph store: {error}"
            raise GraphError(msg) from error
        try:
            meta = dict(run(connection, "SELECT key, value FROM _meta"))
        except duckdb.CatalogException as error:
            connection.close()
            msg = f"{path} is a DuckDB file, but not a graph store"
            raise GraphError(msg) from error
        if meta["format_version"] != str(FORMAT_VERSION):
            connection.close()
            msg = f"{path} has store format {meta['format_version']}, this version reads {FORMAT_VERSION}"
            raise GraphError(msg)
        return cls(connection, path, GraphSchema.model_validate_json(meta["schema"]), read_only=read_only)

    def close(self) -> None:
        """Closes the file; views of the store end with it."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        counts = self.counts()
        parts = [f"{name}={count}" for name, count in counts["nodes"].items()]
        parts += [f"{self.schema.relation(name)}={count}" for name, count in counts["edges"].items()]
        return f"GraphStore({', '.join(parts)})"

    def load_nodes(self, type: str, source: Source, *, id: str = "id") -> LoadReport:  # noqa: A002 - the public contract
        """Loads nodes of one type with their properties.

        Args:
            type: Node type.
            source: Files, a `Query`, an Arrow table or a data frame, with the id and the declared properties as columns.
            id: Column of the external ids.

        Raises:
            GraphError: Unknown type, missing column, or a column type that cannot hold the ids. Nothing is loaded then.
        """
        node = self.schema.node(type)
        with self._transaction() as cursor:
            return loading.load_nodes(cursor, node, source, id_column=id)

    def load_edges(
        self,
        relation: str,
        source: Source,
        *,
        src: str = "src",
        dst: str = "dst",
        time: str = "time",
        weight: str = "weight",
        missing_nodes: MissingNodes = "create",
    ) -> LoadReport:
        """Loads edges of one relation; the same rows a second time add nothing.

        Args:
            relation: Name of the relation.
            source: Files, a `Query`, an Arrow table or a data frame.
            src: Column of the head's external id.
            dst: Column of the tail's external id.
            time: Column of the time (a timestamp without zone is UTC); read where the relation is timed.
            weight: Column of the weight; read where the relation is weighted.
            missing_nodes: Whether an edge whose node is unknown creates the node or is rejected.

        Raises:
            GraphError: Unknown relation, missing column, or a column type that does not fit. Nothing is loaded then.
        """
        declared = self.schema.relation(relation)
        columns = {"src": src, "dst": dst, "time": time, "weight": weight}
        with self._transaction() as cursor:
            return loading.load_edges(cursor, self.schema, declared, source, columns=columns, missing_nodes=missing_nodes)

    def load_table(self, name: str, source: Source) -> int:
        """Replaces a plain table beside the graph (impressions, calendars, labels) by the rows of `source`.

        Returns:
            Rows of the table.

        Raises:
            GraphError: The name is one of the store's own.
        """
        if name.lower().startswith(_OWN_PREFIXES):
            msg = f"table {name!r}: names that start with {', '.join(_OWN_PREFIXES)} belong to the store; choose another"
            raise GraphError(msg)
        with self._transaction() as cursor, scan(cursor, source) as rows:
            return changed(cursor, f"CREATE OR REPLACE TABLE {quote(name)} AS SELECT * FROM {rows}")

    def compact(self) -> dict[str, int]:
        """Merges the edges that came since the last compaction into the clustered tables.

        Returns:
            Relation -> edges merged.
        """
        merged = {}
        for relation in self.schema.relations:
            base, delta, names = edge_table(relation.name), delta_table(relation.name), edge_columns(relation)
            with self._transaction() as cursor:
                merged[relation.name] = count(cursor, delta)
                if not merged[relation.name]:
                    continue
                run(
                    cursor,
                    f"CREATE TEMP TABLE _merged AS SELECT {names} FROM (FROM {base} UNION ALL FROM {delta}) "
                    f"ORDER BY {edge_order(relation)}",
                )
                run(cursor, f"DELETE FROM {base}; DELETE FROM {delta}")
                run(cursor, f"INSERT INTO {base} FROM _merged; DROP TABLE _merged")
        if any(merged.values()):
            run(self._connection, "CHECKPOINT")
        return merged

    def view(
        self,
        as_of: dt.datetime | None = None,
        since: dt.datetime | None = None,
        relations: Sequence[str] | None = None,
        surface: Surface | None = None,
        min_degree: int | Mapping[str, int] | None = None,
    ) -> GraphView:
        """Opens the window `since <= time < as_of` as the store is now; later loads do not change it.

        Args:
            as_of: End of the window, not within it; times without a zone are UTC.
            since: Start of the window, within it.
            relations: Names of the relations to keep; all by default.
            surface: Keep onsite or offsite relations only.
            min_degree: Drop the edges of nodes that have fewer edges than this within the window, in all kept relations
                together; one number, or one for each node type.
        """
        chosen = [self.schema.relation(name) for name in relations] if relations is not None else list(self.schema.relations)
        chosen = [relation for relation in chosen if surface is None or relation.surface == surface]
        return GraphView(
            self._connection.cursor(),
            self.schema,
            chosen,
            since=_utc(since),
            as_of=_utc(as_of),
            min_degree=min_degree,
        )

    def sql(self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None) -> pa.Table:
        """Runs one read-only query over the `nodes_*` and `edges_*` views and the plain tables.

        Raises:
            GraphError: More than one statement, or one that is not a SELECT.
        """
        return select(self._connection.cursor(), query, params)

    def neighbors(
        self,
        type: str,  # noqa: A002 - the public contract
        id: int | str,  # noqa: A002 - the public contract
        *,
        relation: str | None = None,
        direction: Literal["out", "in", "both"] = "both",
        since: dt.datetime | None = None,
        as_of: dt.datetime | None = None,
        limit: int = 100,
    ) -> pa.Table:
        """The neighbours of one node, latest first.

        Returns:
            A table with columns relation, direction, type, id (as text), time, weight.
        """
        self.schema.node(type)
        parts: list[str] = []
        values: list[Any] = []
        for edge in self.schema.relations if relation is None else [self.schema.relation(relation)]:
            time = "time" if edge.timed else "NULL::TIMESTAMP AS time"
            weight = "weight" if edge.weighted else "NULL::FLOAT AS weight"
            for way, own, other, own_type, other_type in (
                ("out", "src", "dst", edge.src, edge.dst),
                ("in", "dst", "src", edge.dst, edge.src),
            ):
                if own_type != type or direction not in {way, "both"}:
                    continue
                part = (
                    f"SELECT ? AS relation, ? AS direction, ? AS type, CAST({other}_id AS VARCHAR) AS id, {time}, {weight} "
                    f"FROM {quote(f'edges_{edge.name}')} WHERE {own}_id = ?"
                )
                values += [edge.name, way, other_type, id]
                for bound, operator in ((since, ">="), (as_of, "<")):
                    if bound is not None and edge.timed:
                        part += f" AND time {operator} ?"
                        values.append(_utc(bound))
                parts.append(part)
        if not parts:
            msg = f"no relation goes {'in or out' if direction == 'both' else direction} of {type!r}" + (
                f" by the name {relation!r}" if relation else ""
            )
            raise GraphError(msg)
        query = f"FROM ({' UNION ALL '.join(parts)}) ORDER BY time DESC NULLS LAST, relation, id LIMIT {int(limit)}"
        return self._connection.cursor().sql(query, params=values).to_arrow_table()

    def counts(self) -> dict[str, dict[str, int]]:
        """Nodes by type and edges by relation."""
        cursor = self._connection.cursor()

        return {
            "nodes": {node.name: count(cursor, node_table(node.name)) for node in self.schema.nodes},
            "edges": {
                relation.name: count(cursor, edge_table(relation.name)) + count(cursor, delta_table(relation.name))
                for relation in self.schema.relations
            },
        }

    def stats(self) -> dict[str, Any]:
        """Counts, time ranges, mean degrees and size on disk, as JSON-able fields."""
        cursor = self._connection.cursor()
        relations = {}
        for relation in self.schema.relations:
            times = "min(time), max(time)" if relation.timed else "NULL, NULL"
            base, delta = edge_table(relation.name), delta_table(relation.name)
            row = run(
                cursor,
                f"SELECT count(*), count(DISTINCT src), count(DISTINCT dst), {times}, (SELECT count(*) FROM {delta}) "
                f"FROM (FROM {base} UNION ALL FROM {delta})",
            )[0]
            edges, sources, targets, first, last, waiting = row
            relations[relation.name] = {
                "src": relation.src,
                "dst": relation.dst,
                "surface": relation.surface,
                "edges": edges,
                "not_compacted": waiting,
                "distinct_src": sources,
                "distinct_dst": targets,
                "first": first.isoformat() if first else None,
                "last": last.isoformat() if last else None,
            }
        return {
            "nodes": self.counts()["nodes"],
            "relations": relations,
            "bytes": self.path.stat().st_size,
        }

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        if self.read_only:
            msg = f"{self.path} is open read-only; open it with GraphStore.open(path) to write"
            raise GraphError(msg)
        with self._writing:
            cursor = self._connection.cursor()
            cursor.begin()
            try:
                yield cursor
            except BaseException:
                cursor.rollback()
                raise
            else:
                cursor.commit()
            finally:
                cursor.close()


def _utc(time: dt.datetime | None) -> dt.datetime | None:
    """A time as DuckDB's TIMESTAMP has it: UTC, without a zone."""
    if time is None or time.tzinfo is None:
        return time
    return time.astimezone(dt.UTC).replace(tzinfo=None)
