"""The graph store: one DuckDB file that holds nodes, edges and what was loaded when."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from multifacet.graphdb.loading import edge_load as loading
from multifacet.graphdb.loading import node_load as nodes
from multifacet.graphdb.loading.edge_load import EdgeLoad, MissingNodes
from multifacet.graphdb.loading.node_load import NodeLoad, Nulls
from multifacet.graphdb.loading.plain_tables import load_table
from multifacet.graphdb.loading.progress import Progress, watched
from multifacet.graphdb.loading.reading import Reading
from multifacet.graphdb.loading.report import LoadReport
from multifacet.graphdb.loading.source import Source
from multifacet.graphdb.queries.queries import Direction, Queries
from multifacet.graphdb.queries.statistics import count_all, describe_all
from multifacet.graphdb.schema import GraphSchema, NodeType, Relation, Surface, choose_relations
from multifacet.graphdb.sql import select
from multifacet.graphdb.storage import evolution, retention
from multifacet.graphdb.storage.compaction import compact
from multifacet.graphdb.storage.edge_log import log_bytes
from multifacet.graphdb.storage.edge_storage import EdgeStorage, Storage, log_folder
from multifacet.graphdb.storage.layout import all_edges
from multifacet.graphdb.storage.session import Session, back_up
from multifacet.graphdb.times import Time, utc

if TYPE_CHECKING:
    from multifacet.graphdb.view import GraphView

logger = logging.getLogger(__name__)


class GraphStore:
    """A heterogeneous interaction graph in one DuckDB file.

    External ids are mapped to dense int32 idx when they are loaded; an idx never changes. Loads are atomic and idempotent. One
    process writes at a time; a store opened read-only can be shared by many.

    Example:
        >>> import pyarrow as pa, tempfile, pathlib
        >>> from multifacet.graphdb import GraphSchema, NodeType, Relation
        >>> schema = GraphSchema(
        ...     nodes=(NodeType(name="user"), NodeType(name="pin")),
        ...     relations=(Relation(src="user", name="clicks", dst="pin", timed=False),),
        ... )
        >>> with tempfile.TemporaryDirectory() as folder, GraphStore.create(pathlib.Path(folder) / "g.duckdb", schema) as store:
        ...     report = store.load_edges("clicks", pa.table({"src": [7, 7, 8], "dst": [1, 1, 2]}))
        ...     report.loaded, report.already_there, store
        (2, 1, GraphStore(user=2, pin=2, (user, clicks, pin)=2))
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.path = session.path
        self.read_only = session.read_only

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
        return cls(Session.create(path, schema, storage, memory_limit, threads))

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
        return cls(Session.open(Path(path), memory_limit, threads, read_only=read_only))

    @staticmethod
    def backup(path: str | Path, to: str | Path) -> None:
        """Copies a store, whether or not a process writes to it: another process reads the copy meanwhile.

        Args:
            path: The store's file.
            to: The file to make; it appears there whole or not at all, and holds what was committed last.

        Raises:
            GraphError: There is no store at `path`, or something at `to`.
        """
        back_up(Path(path), Path(to))

    def close(self) -> None:
        """Closes the file; views of the store end with it."""
        self._session.close()

    @property
    def schema(self) -> GraphSchema:
        """The node types and relations."""
        return self._session.schema

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
        time: str | None = None,
        nulls: Nulls = "keep",
        max_rejected: int | None = None,
        progress: Progress | None = None,
        **reading: Any,
    ) -> LoadReport:
        """Loads nodes of one type with their properties; declared properties that the source lacks stay as they are.

        Args:
            type: Node type.
            source: Files, a folder, a `Query`, an Arrow table or a data frame, with the id and properties as columns.
            id: Column of the external ids.
            time: Column of the time from which on a node exists; by default it does from its first event, or from now.
            nulls: Whether a null leaves a property as it was ("keep"), or takes its value away ("write").
            max_rejected: Rows that may be set aside; with more of them nothing is loaded. Any number by default.
            progress: Called during a long load with the step's name and the share of it that is done.
            **reading: Fields of `Reading`: how files, times and nulls are read.

        Raises:
            GraphError: Unknown type, missing column, or a column type that cannot be meant. Nothing is loaded then.
        """
        options = Reading.of(reading)
        with self._session.transaction(f"nodes of {type!r}") as cursor, watched(cursor, progress, f"nodes of {type}"):
            node = self.schema.node(type)
            load = NodeLoad(node=node, id_column=id, time_column=time, nulls=nulls, max_rejected=max_rejected, reading=options)
            report = nodes.load_nodes(cursor, load, source)
            released = loading.release_held(cursor, self.schema, self._session.storage, type)
            return dataclasses.replace(report, released=released)

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
        batch: str | None = None,
        max_rejected: int | None = None,
        progress: Progress | None = None,
        **reading: Any,
    ) -> LoadReport:
        """Loads edges of one relation; the same file, or the batch of the same name, a second time adds nothing.

        Args:
            relation: Name of the relation.
            source: Files, a folder, a `Query`, an Arrow table or a data frame.
            src: Column of the head's external id.
            dst: Column of the tail's external id.
            time: Column of the time (one without a zone is UTC); read where the relation is timed.
            weight: Column of the weight; read where the relation is weighted.
            missing_nodes: What becomes of an edge whose node is unknown: it creates the node, is rejected, or is held until
                `load_nodes` brings the node.
            batch: The batch's name, where `duplicates` is "sum" or "all" and its rows do not come from files: what comes under
                the same name is the same batch, what comes under another is another.
            max_rejected: Rows that may be set aside; with more of them nothing is loaded. Any number by default.
            progress: Called during a long load with the step's name and the share of it that is done.
            **reading: Fields of `Reading`: how files, times and nulls are read.

        Raises:
            GraphError: Unknown relation, missing column, a column type that cannot be meant, or rows of which it cannot be told
                whether they were loaded before. Nothing is loaded then.
        """
        options = Reading.of(reading)
        with self._session.transaction(f"edges of {relation!r}") as cursor, watched(cursor, progress, f"edges of {relation}"):
            load = EdgeLoad(
                relation=self.schema.relation(relation),
                columns={"src": src, "dst": dst, "time": time, "weight": weight},
                missing_nodes=missing_nodes,
                batch=batch,
                max_rejected=max_rejected,
                reading=options,
            )
            return loading.load_edges(cursor, self.schema, self._session.storage, load, source)

    def load_table(self, name: str, source: Source, *, types: Mapping[str, str] | None = None, **reading: Any) -> int:
        """Replaces a plain table beside the graph (impressions, calendars, labels) by the rows of `source`.

        Args:
            name: The table's name.
            source: Files, a folder, a `Query`, an Arrow table or a data frame.
            types: Column -> DuckDB type, for columns of text files, which are text otherwise.
            **reading: Fields of `Reading`.

        Returns:
            Rows of the table.

        Raises:
            GraphError: The name is one of the store's own, or a value is not of its column's type.
        """
        options = Reading.of(reading)
        with self._session.transaction(f"table {name!r}") as cursor:
            return load_table(cursor, name, source, types or {}, options)

    def compact(self) -> dict[str, int]:
        """Merges the edges that came since the last compaction into the clustered tables.

        After `forget`, the file is written anew, so that no byte of what was forgotten stays in it.

        Returns:
            Relation -> edges merged.
        """
        return compact(self._session)

    def view(
        self,
        as_of: Time | None = None,
        since: Time | None = None,
        relations: Sequence[str] | None = None,
        surface: Surface | None = None,
        min_degree: int | Mapping[str, int] | None = None,
        types: Sequence[str] | None = None,
    ) -> GraphView:
        """Opens the window `since <= time < as_of` as the store is now; later loads do not change it.

        Args:
            as_of: End of the window, not within it; times without a zone are UTC. Nodes that were first seen later are not in
                it.
            since: Start of the window, within it.
            relations: Names of the relations to keep; all by default.
            surface: Keep onsite or offsite relations only.
            min_degree: Drop the edges of nodes that have fewer edges than this within the window, in all kept relations
                together; one number, or one for each node type.
            types: Node types to keep, with the relations whose both ends are of them; all by default.

        Raises:
            GraphError: Nothing has such a name, a named relation ends in a type that is not kept, or the window is empty.
        """
        since, as_of = utc(since, "since"), utc(as_of, "as_of")
        self._session.refresh()
        chosen = choose_relations(self.schema, relations, surface, types)
        from multifacet.graphdb.view import GraphView  # noqa: PLC0415 - torch takes seconds to import, and most commands need no view

        cursor, storage = self._session.connection.cursor(), self._session.storage
        view = GraphView(cursor, self.schema, storage, chosen, since=since, as_of=as_of, min_degree=min_degree, types=types)
        self._session.site.views.add(view)
        return view

    def sql(self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None) -> pa.Table:
        """Runs one read-only query over the `nodes_*` and `edges_*` views and the plain tables.

        Raises:
            GraphError: More than one statement, or one that is not a SELECT.
        """
        with self._session.reading() as cursor:
            return select(cursor, query, params)

    @property
    def queries(self) -> Queries:
        """Ready-made questions to the whole graph, each answered by an Arrow table."""
        rows = {relation.name: all_edges(relation.name) for relation in self.schema.relations}
        return Queries(self._session.cursor(), self.schema, rows, ids=self._session.site.ids, is_whole=True)

    def neighbors(
        self,
        type: str,  # noqa: A002 - the public contract
        id: int | str,  # noqa: A002 - the public contract
        *,
        relation: str | None = None,
        direction: Direction = "both",
        since: Time | None = None,
        as_of: Time | None = None,
        limit: int = 100,
    ) -> pa.Table:
        """The neighbours of one node, latest first.

        Returns:
            A table with columns relation, direction, type, id (as text), time, weight.
        """
        since, as_of = utc(since, "since"), utc(as_of, "as_of")
        return self.queries.neighbors(type, id, relation=relation, direction=direction, since=since, as_of=as_of, limit=limit)

    def add_node_type(self, node: NodeType) -> None:
        """Adds a node type to the schema.

        Raises:
            GraphError: There is one of that name.
        """
        with self._session.changing_schema() as cursor:
            evolution.add_node_type(cursor, self.schema, node)

    def add_relation(self, relation: Relation) -> None:
        """Adds a relation between known node types to the schema.

        Raises:
            GraphError: There is one of that name, or a node type is unknown.
        """
        with self._session.changing_schema() as cursor:
            evolution.add_relation(cursor, self.schema, self._session.storage, relation)

    def add_property(self, owner: str, name: str, duckdb_type: str) -> None:
        """Adds a property, null so far, to a node type or a relation.

        Args:
            owner: Name of the node type, or else of the relation.
            name: Name of the property.
            duckdb_type: Its type, such as VARCHAR.

        Raises:
            GraphError: Nothing has that name, or it has such a property.
        """
        with self._session.changing_schema() as cursor:
            evolution.add_property(cursor, self.schema, self._session.storage, owner, name, duckdb_type)

    def drop_before(self, time: Time, relations: Sequence[str] | None = None) -> dict[str, int]:
        """Drops the edges of timed relations from before a time; the `removals` view keeps the account.

        Returns:
            Relation -> edges dropped.
        """
        before = utc(time)
        chosen = [self.schema.relation(name) for name in relations] if relations is not None else self.schema.relations
        with self._session.transaction("dropping edges") as cursor:
            return retention.drop_before(cursor, self._session.storage, chosen, before)

    def forget(self, type: str, id: int | str) -> dict[str, int]:  # noqa: A002 - the public contract
        """Deletes a node, its edges and what was rejected or held of it; its idx is never given again.

        The `removals` view keeps the type, the idx and the time, not the id: the same id loaded later is another node. Bytes of
        the id stay in the file until `compact`, which writes it anew. Plain tables are yours: a warning names those that hold
        it.

        Returns:
            Relation -> edges deleted.

        Raises:
            GraphError: There is no such node.
        """
        with self._session.transaction(f"forgetting a {type}") as cursor:
            return retention.forget(cursor, self.schema, self._session.storage, self.schema.node(type), id)

    def counts(self) -> dict[str, dict[str, int]]:
        """Nodes by type and edges by relation."""
        with self._session.reading() as cursor:
            return count_all(cursor, self.schema)

    def stats(self) -> dict[str, Any]:
        """Counts, time ranges, distinct ends and size on disk, as JSON-able fields."""
        with self._session.reading() as cursor:
            storage = self._session.storage
            log = 0 if storage.log is None else log_bytes(storage.log)
            return {**describe_all(cursor, self.schema), "bytes": self.path.stat().st_size + log}
