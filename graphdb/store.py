"""The graph store: one DuckDB file that holds nodes, edges and what was loaded when."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import logging
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import duckdb
import pyarrow as pa

from graphdb import evolution, loading, nodes, retention
from graphdb.database import create_database, open_database
from graphdb.edgelog import log_bytes, sweep
from graphdb.layout import all_edges
from graphdb.loading import MissingNodes
from graphdb.neighborhood import IdCache
from graphdb.progress import Progress, watched
from graphdb.queries import Direction, Queries
from graphdb.report import LoadReport
from graphdb.schema import GraphSchema, NodeType, Relation, Surface
from graphdb.source import Source, scan
from graphdb.sql import GraphError, begin_reading, changed, quote, run, select
from graphdb.statistics import count_all, describe_all
from graphdb.storage import EdgeStorage, Storage, log_folder

if TYPE_CHECKING:
    from graphdb.view import GraphView

logger = logging.getLogger(__name__)

_OWN_PREFIXES = ("_", "nodes_", "edges_", "rejected_rows", "loads", "removals")


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

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, path: Path, schema: GraphSchema, storage: Storage, *, read_only: bool
    ) -> None:
        self._connection = connection
        self._storage = storage
        self._views: weakref.WeakSet[GraphView] = weakref.WeakSet()
        self._writing = threading.Lock()
        self._ids = IdCache()
        self._asking = threading.local()
        self.path = path
        self.schema = schema
        self.read_only = read_only

    @classmethod
    def create(
        cls,
        path: str | Path,
        schema: GraphSchema,
        *,
        edge_log: EdgeStorage = "embedded",
        memory_limit: str | None = None,
        threads: int | None = None,
    ) -> GraphStore:
        """Creates an empty store.

        Args:
            path: The file to create.
            schema: Its node types and relations.
            edge_log: Where timed edges are kept: in the file ("embedded"), or in the folder `<path>.edges` as Parquet files,
                one a day ("parquet"), for logs that are too large for one file.
            memory_limit: Memory that DuckDB may take, such as "4GB"; what does not fit goes to a folder beside the file. A load
                may take up to another gigabyte for what it maps outside DuckDB.
            threads: Threads that DuckDB may run; the number of cores by default.

        Raises:
            GraphError: Something is at `path` already.
        """
        path = Path(path)
        storage = Storage(log_folder(path) if edge_log == "parquet" else None)
        return cls(create_database(path, schema, storage, memory_limit, threads), path, schema, storage, read_only=False)

    @classmethod
    def open(
        cls, path: str | Path, read_only: bool = False, *, memory_limit: str | None = None, threads: int | None = None
    ) -> GraphStore:
        """Opens a store.

        Args:
            path: The store's file.
            read_only: Whether to share the file with other readers.
            memory_limit: Memory that DuckDB may take, such as "4GB"; what does not fit goes to a folder beside the file.
            threads: Threads that DuckDB may run; the number of cores by default.

        Raises:
            GraphError: There is no store at `path`, another process writes to it, or it was written by a newer version.
        """
        path = Path(path)
        connection, schema, storage = open_database(path, read_only, memory_limit, threads)
        return cls(connection, path, schema, storage, read_only=read_only)

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

    def load_nodes(
        self,
        type: str,  # noqa: A002 - the public contract
        source: Source,
        *,
        id: str = "id",  # noqa: A002 - the public contract
        progress: Progress | None = None,
    ) -> LoadReport:
        """Loads nodes of one type with their properties.

        Args:
            type: Node type.
            source: Files, a `Query`, an Arrow table or a data frame, with the id and the declared properties as columns.
            id: Column of the external ids.
            progress: Called during a long load with the step's name and the share of it that is done.

        Raises:
            GraphError: Unknown type, missing column, or a column type that cannot hold the ids. Nothing is loaded then.
        """
        node = self.schema.node(type)
        with self._transaction() as cursor, watched(cursor, progress, f"nodes of {type}"):
            report = nodes.load_nodes(cursor, node, source, id_column=id)
            return dataclasses.replace(report, released=loading.release_held(cursor, self.schema, self._storage, type))

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
        progress: Progress | None = None,
    ) -> LoadReport:
        """Loads edges of one relation; the same rows a second time add nothing.

        Args:
            relation: Name of the relation.
            source: Files, a `Query`, an Arrow table or a data frame.
            src: Column of the head's external id.
            dst: Column of the tail's external id.
            time: Column of the time (a timestamp without zone is UTC); read where the relation is timed.
            weight: Column of the weight; read where the relation is weighted.
            missing_nodes: What becomes of an edge whose node is unknown: it creates the node, is rejected, or is held until
                `load_nodes` brings the node.
            progress: Called during a long load with the step's name and the share of it that is done.

        Raises:
            GraphError: Unknown relation, missing column, or a column type that does not fit. Nothing is loaded then.
        """
        declared = self.schema.relation(relation)
        columns = {"src": src, "dst": dst, "time": time, "weight": weight}
        with self._transaction() as cursor, watched(cursor, progress, f"edges of {declared}"):
            return loading.load_edges(
                cursor, self.schema, self._storage, declared, source, columns=columns, missing_nodes=missing_nodes
            )

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
        self._sweep()
        merged = {}
        for relation in self.schema.relations:
            with self._transaction() as cursor:
                merged[relation.name] = self._storage.base(cursor, relation).compact()
        if any(merged.values()):
            # Gives the file's space back now; an open view can be in the way, and then a later checkpoint does.
            with contextlib.suppress(duckdb.TransactionException):
                run(self._connection, "CHECKPOINT")
        return merged

    def view(
        self,
        as_of: dt.datetime | None = None,
        since: dt.datetime | None = None,
        relations: Sequence[str] | None = None,
        surface: Surface | None = None,
        min_degree: int | Mapping[str, int] | None = None,
        types: Sequence[str] | None = None,
    ) -> GraphView:
        """Opens the window `since <= time < as_of` as the store is now; later loads do not change it.

        Args:
            as_of: End of the window, not within it; times without a zone are UTC.
            since: Start of the window, within it.
            relations: Names of the relations to keep; all by default.
            surface: Keep onsite or offsite relations only.
            min_degree: Drop the edges of nodes that have fewer edges than this within the window, in all kept relations
                together; one number, or one for each node type.
            types: Node types to keep, with the relations whose both ends are of them; all by default.

        Raises:
            GraphError: Nothing has such a name, a named relation ends in a type that is not kept, or the window is empty.
        """
        chosen = [self.schema.relation(name) for name in relations] if relations is not None else list(self.schema.relations)
        chosen = [relation for relation in chosen if surface is None or relation.surface == surface]
        if types is not None:
            kept = {self.schema.node(name).name for name in types}
            outside = [relation for relation in chosen if not {relation.src, relation.dst} <= kept]
            if relations is not None and outside:
                msg = f"relation {outside[0]} has an end that is not of types={list(types)}; add its type, or leave it out"
                raise GraphError(msg)
            chosen = [relation for relation in chosen if relation not in outside]
        from graphdb.view import GraphView  # noqa: PLC0415 - torch takes seconds to import, and most commands need no view

        view = GraphView(
            self._connection.cursor(),
            self.schema,
            self._storage,
            chosen,
            since=_utc(since),
            as_of=_utc(as_of),
            min_degree=min_degree,
            types=types,
        )
        self._views.add(view)
        return view

    def sql(self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None) -> pa.Table:
        """Runs one read-only query over the `nodes_*` and `edges_*` views and the plain tables.

        Raises:
            GraphError: More than one statement, or one that is not a SELECT.
        """
        with self._reading() as cursor:
            return select(cursor, query, params)

    @property
    def queries(self) -> Queries:
        """Ready-made questions to the whole graph, each answered by an Arrow table."""
        rows = {relation.name: all_edges(relation.name) for relation in self.schema.relations}
        if not hasattr(self._asking, "cursor"):
            # A cursor's first query costs more than all that follow; a thread cannot use another's.
            self._asking.cursor = self._connection.cursor()
        return Queries(self._asking.cursor, self.schema, rows, ids=self._ids, is_whole=True)

    def neighbors(
        self,
        type: str,  # noqa: A002 - the public contract
        id: int | str,  # noqa: A002 - the public contract
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
        """
        return self.queries.neighbors(
            type, id, relation=relation, direction=direction, since=_utc(since), as_of=_utc(as_of), limit=limit
        )

    def add_node_type(self, node: NodeType) -> None:
        """Adds a node type to the schema.

        Raises:
            GraphError: There is one of that name.
        """
        with self._transaction() as cursor:
            self.schema = evolution.add_node_type(cursor, self.schema, node)

    def add_relation(self, relation: Relation) -> None:
        """Adds a relation between known node types to the schema.

        Raises:
            GraphError: There is one of that name, or a node type is unknown.
        """
        with self._transaction() as cursor:
            self.schema = evolution.add_relation(cursor, self.schema, self._storage, relation)

    def add_property(self, owner: str, name: str, duckdb_type: str) -> None:
        """Adds a property, null so far, to a node type or a relation.

        Args:
            owner: Name of the node type, or else of the relation.
            name: Name of the property.
            duckdb_type: Its type, such as VARCHAR.

        Raises:
            GraphError: Nothing has that name, or it has such a property.
        """
        with self._transaction() as cursor:
            self.schema = evolution.add_property(cursor, self.schema, self._storage, owner, name, duckdb_type)

    def drop_before(self, time: dt.datetime, relations: Sequence[str] | None = None) -> dict[str, int]:
        """Drops the edges of timed relations from before a time; the `removals` view keeps the account.

        Returns:
            Relation -> edges dropped.
        """
        chosen = [self.schema.relation(name) for name in relations] if relations is not None else self.schema.relations
        with self._transaction() as cursor:
            return retention.drop_before(cursor, self._storage, chosen, _utc(time))

    def forget(self, type: str, id: int | str) -> dict[str, int]:  # noqa: A002 - the public contract
        """Deletes a node, its edges and what was rejected or held of it; its idx is never given again.

        The `removals` view keeps the type, the idx and the time, not the id: the same id loaded later is another node.

        Returns:
            Relation -> edges deleted.

        Raises:
            GraphError: There is no such node.
        """
        with self._transaction() as cursor:
            return retention.forget(cursor, self.schema, self._storage, self.schema.node(type), id)

    def counts(self) -> dict[str, dict[str, int]]:
        """Nodes by type and edges by relation."""
        with self._reading() as cursor:
            return count_all(cursor, self.schema)

    def stats(self) -> dict[str, Any]:
        """Counts, time ranges, distinct ends and size on disk, as JSON-able fields."""
        with self._reading() as cursor:
            log = 0 if self._storage.log is None else log_bytes(self._storage.log)
            return {**describe_all(cursor, self.schema), "bytes": self.path.stat().st_size + log}

    def _sweep(self) -> None:
        """Removes the files of the log that earlier changes left, unless a view may read them still."""
        if self._storage.log is not None and not self.read_only and all(view.is_closed for view in self._views):
            with self._transaction() as cursor:
                sweep(cursor, self._storage.log)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._connection.cursor() as cursor:
            begin_reading(cursor)
            yield cursor

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
                self._ids.clear()
            finally:
                cursor.close()


def _utc(time: dt.datetime | None) -> dt.datetime | None:
    """A time as DuckDB's TIMESTAMP has it: UTC, without a zone."""
    if time is None or time.tzinfo is None:
        return time
    return time.astimezone(dt.UTC).replace(tzinfo=None)
