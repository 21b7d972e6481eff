"""An immutable time window of the graph, and its exports to torch and PyG."""

from __future__ import annotations

import datetime as dt
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import torch

from multifacet.graphdb.merging import (
    Array,
)
from multifacet.graphdb.queries.queries import Queries
from multifacet.graphdb.schema import GraphSchema, Relation
from multifacet.graphdb.sql import GraphError, begin_reading, count, quote, run, select
from multifacet.graphdb.storage.edge_storage import Storage
from multifacet.graphdb.storage.id_cache import IdCache
from multifacet.graphdb.storage.layout import key_columns, node_table
from multifacet.graphdb.windows.edge_reader import EdgeReader
from multifacet.graphdb.windows.edges import Csc, Edges, Triples
from multifacet.graphdb.windows.export import write_parquet, write_safetensors
from multifacet.graphdb.windows.fingerprint import fingerprint_of
from multifacet.graphdb.windows.members import Members, find_members, first_seen
from multifacet.graphdb.windows.properties import property_tensor
from multifacet.graphdb.windows.window import create_windows
from multifacet.inputs import as_one_array

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

    from multifacet.graphdb.pyg import Properties, ViewFeatureStore, ViewGraphStore
    from multifacet.graphdb.sampling import MultifacetSampler

logger = logging.getLogger(__name__)


class GraphView:
    """The edges with `since <= time < as_of` of some relations, as the store was when the view was opened.

    The view holds a DuckDB transaction, whose snapshot isolation keeps later loads out. Open one with `GraphStore.view`.

    Attributes:
        schema: The store's schema.
        relations: The relations of the view, in the order that `Triples.relation` counts.
        since: Start of the window (UTC, within it), or None.
        as_of: End of the window (UTC, not within it), or None.
        num_nodes: Kept node type -> its nodes that belong to the window (see `graphdb.windows.members`); they are its rows
            0, 1, ...
        num_edges: Relation name -> edges in the window.
    """

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        schema: GraphSchema,
        storage: Storage,
        relations: Sequence[Relation],
        *,
        since: dt.datetime | None,
        as_of: dt.datetime | None,
        min_degree: int | Mapping[str, int] | None,
        types: Sequence[str] | None = None,
    ) -> None:
        if since is not None and as_of is not None and since >= as_of:
            msg = f"an empty window: since={since} is not before as_of={as_of}"
            raise GraphError(msg)
        self._cursor = cursor
        self._storage = storage
        self._min_degree = min_degree
        self.is_closed = False
        self.schema = schema
        self.relations = tuple(relations)
        self.since = since
        self.as_of = as_of
        self._counts: dict[str, int] = {}
        self._types = [node.name for node in schema.nodes if types is None or node.name in types]
        self._generation = self._begin()
        self.num_nodes = {name: self._members[name].num_rows for name in self._types}

    def _begin(self) -> tuple[Any, ...]:
        """Begins the transaction that is the view's snapshot; returns what tells the store's contents apart."""
        begin_reading(self._cursor)
        self._members = find_members(self._cursor, self.schema, self.as_of)
        self._windows = create_windows(
            self._cursor, self.schema, self._storage, self.relations, self.since, self.as_of, self._min_degree, self._members
        )
        self._reader = EdgeReader(self._cursor, self._windows, self._members)
        return run(
            self._cursor, "SELECT (SELECT count(*) FROM _load), (SELECT count(*) FROM _removal), count(*) FROM duckdb_tables()"
        )[0]

    def __repr__(self) -> str:
        parts = [f"{name}={count}" for name, count in self.num_nodes.items()]
        parts += [f"{relation}={self.num_edges[relation.name]}" for relation in self.relations]
        parts += [f"{name}={value:%Y-%m-%d}" for name in ("since", "as_of") if (value := getattr(self, name))]
        return f"GraphView({', '.join(parts)})"

    @functools.cached_property
    def num_edges(self) -> dict[str, int]:
        """Relation name -> edges in the window."""
        for relation in self.relations:
            if relation.name not in self._counts:
                self._counts[relation.name] = count(self._cursor, self._windows[relation.name].rows)
        return {relation.name: self._counts[relation.name] for relation in self.relations}

    def edges(self, relation: str) -> Edges:
        """The window's edges of one relation, ordered by (dst, time)."""
        declared = self._relation(relation)
        names = [*key_columns(declared), *(["weight"] if declared.weighted else [])]
        columns = self._columns(relation, names)
        return Edges(**{name: torch.from_numpy(column) for name, column in columns.items()})

    def triples(self) -> Triples:
        """The window's edges of all relations, relation by relation, each ordered by tail."""
        parts = [self._columns(relation.name, ["src", "dst"]) for relation in self.relations]
        relation = np.empty(sum(len(part["src"]) for part in parts), np.int32)
        first = 0
        for number, part in enumerate(parts):
            relation[first : first + len(part["src"])] = number
            first += len(part["src"])
        return Triples(
            head=_concatenated([part["src"] for part in parts]),
            relation=torch.from_numpy(relation),
            tail=_concatenated([part["dst"] for part in parts]),
        )

    def stream_edges(self, relation: str, *, batch_rows: int = 1 << 20) -> Iterator[dict[str, Array]]:
        """The window's edges of one relation in parts and in any order, as columns: memory for one part at a time.

        Until the last part has been read, or the iterator has been closed, nothing else can be asked of the view.

        Args:
            relation: Name of the relation.
            batch_rows: Edges a part, at most.

        Yields:
            Column name -> array: src and dst int32, time int64 (microseconds) and weight float32 where the relation has them.
        """
        if self.is_closed:
            raise _closed()
        declared = self._relation(relation)
        names = [*key_columns(declared), *(["weight"] if declared.weighted else [])]
        yield from self._reader.stream(declared, names, batch_rows)

    def csc(self, relation: str) -> Csc:
        """The window's edges of one relation as compressed sparse columns."""
        return Csc.from_edges(self.edges(relation), self.num_nodes[self._relation(relation).dst])

    def to_hetero_data(self, *, reverse: bool = False, properties: Properties = True) -> HeteroData:
        """The window as PyG's HeteroData: `edge_index` int64 [2, E], with `time` and `edge_weight` where there are any.

        Nodes and edges carry their properties; see `property_tensor` for their types. Text is left out.

        Args:
            reverse: Also hold each relation against its direction, as `(dst, rev_<name>, src)`, with the same attributes.
                PyG's `ToUndirected` does so too, but merges the two directions of a relation between nodes of one type and
                adds up the times of edges that meet.
            properties: All properties, none, or those that are named for a node type or an edge type:
                `{"pin": ["price"], ("user", "clicks", "pin"): []}`.

        Raises:
            GraphError: A property whose name PyG's loaders take or whose values no tensor holds exactly, or a reversed
                relation that would get the name of another.
        """
        from multifacet.graphdb.pyg import hetero_data  # noqa: PLC0415 - importing PyG takes seconds, and little needs it

        return hetero_data(self, reverse=reverse, properties=properties)

    def graph_store(self, *, reverse: bool = False) -> ViewGraphStore:
        """The window's topology behind PyG's GraphStore interface; with reversed relations if so asked."""
        from multifacet.graphdb.pyg import ViewGraphStore  # noqa: PLC0415 - importing PyG takes seconds

        return ViewGraphStore(self, reverse=reverse)

    def feature_store(self, *, reverse: bool = False, properties: Properties = True) -> ViewFeatureStore:
        """What nodes and edges carry behind PyG's FeatureStore interface; see `to_hetero_data`."""
        from multifacet.graphdb.pyg import ViewFeatureStore  # noqa: PLC0415 - importing PyG takes seconds

        return ViewFeatureStore(self, reverse=reverse, properties=properties)

    def write_parquet(self, folder: str | Path) -> list[Path]:
        """Writes `nodes_*`, `indices_*` and `indptr_*` Parquet files; returns them."""
        return write_parquet(self, Path(folder))

    def write_safetensors(self, path: str | Path) -> None:
        """Writes the columns of each relation to one safetensors file."""
        write_safetensors(self, Path(path))

    def node_property(self, type: str, name: str) -> Array:  # noqa: A002 - as in node_ids
        """A numeric property of a node type by row: float64 [num_nodes], NaN where it is null.

        Raises:
            GraphError: There is no such property, it is no number, or a float64 cannot hold its values exactly.
        """
        kind = self.schema.node(type).properties.get(name)
        if kind is None:
            msg = f"node type {type!r} has no property {name!r}, it has {list(self.schema.node(type).properties)}"
            raise GraphError(msg)
        values = property_tensor(self.node_properties(type)[name], kind, where=f"property {name!r} of {type!r}")
        if not values.is_floating_point():
            msg = f"property {name!r} of {type!r} is {kind}, no number; node_properties gives it as it is stored"
            raise GraphError(msg)
        numbers: Array = values.double().numpy()
        return numbers

    def node_properties(self, type: str) -> pa.Table:  # noqa: A002 - as in node_ids
        """The properties of a type's nodes as they are stored, a row for each of `num_nodes`."""
        names = list(self.schema.node(type).properties)
        members = self._members_of(type)
        belongs = "" if members.table is None else f" WHERE idx IN (SELECT idx FROM {members.table})"
        selected = ", ".join(["idx", *map(quote, names)])
        nodes = self._cursor.sql(f"SELECT {selected} FROM {node_table(type)}{belongs} ORDER BY idx").to_arrow_table()
        return nodes.select(names)

    def edge_properties(self, relation: str) -> pa.Table:
        """The properties of the window's edges of one relation as they are stored, in the order of `edges`."""
        declared = self._relation(relation)
        names = [*key_columns(declared), *(["weight"] if declared.weighted else [])]
        return self._read(relation, names, list(declared.properties))[1]

    def node_idx(self, type: str) -> Array:  # noqa: A002 - as in node_ids
        """The store's idx of each row of a node type: int32 [num_nodes], ascending."""
        idx = self._members_of(type).idx
        return np.arange(self.num_nodes[type], dtype=np.int32) if idx is None else idx

    def first_seen(self, type: str) -> Array:  # noqa: A002 - as in node_ids
        """When each node of a type was first seen: int64 [num_nodes], microseconds from 1970 (UTC), the minimum for always."""
        self._members_of(type)
        idx, seen = first_seen(self._cursor, self.schema, type)
        belongs = np.isin(idx, self.node_idx(type), assume_unique=True)
        return np.ascontiguousarray(seen[belongs])

    def sampler(
        self,
        num_neighbors: Sequence[int] | Mapping[str, Sequence[int]],
        *,
        reverse: bool = False,
        weighted: bool = False,
        data: HeteroData | tuple[ViewFeatureStore, ViewGraphStore] | None = None,
        **settings: Any,
    ) -> MultifacetSampler:
        """A sampler of neighbourhoods in this window, for PyG's `NodeLoader` and `LinkLoader`.

        Args:
            num_neighbors: Edges to draw for a node at each hop, -1 for all; one list, or one for each relation that is walked.
            reverse: Also walk each relation against its direction, as `rev_<name>`.
            weighted: Draw edges in proportion to their weights, in relations that have them.
            data: What the loader will take attributes from, to be checked: `to_hetero_data(reverse=...)`, or the feature store
                and the graph store with the same `reverse`. Needed where a relation between nodes of one type is reversed.
            **settings: Further fields of `SamplerConfig`: replace, disjoint, temporal, negative_alpha, exclude_positives, seed,
                backend.

        Raises:
            GraphError: No weights or no times where they are asked for, a relation that the view has not, or data whose edges
                are not those of the window.
        """
        from multifacet.graphdb.sampling import MultifacetSampler, SamplerConfig, Topology  # noqa: PLC0415 - PyG and numba are slow to import

        config = SamplerConfig.model_validate({"num_neighbors": num_neighbors, **settings})
        topology = Topology.from_view(self, reverse=reverse, weighted=weighted, data=data)
        return MultifacetSampler(topology, config)

    def node_ids(self, type: str) -> pa.Array:  # noqa: A002 - the public contract
        """External ids of a node type: that of row `i` at position `i`; int64 or string."""
        members = self._members_of(type)
        belongs = "" if members.table is None else f" WHERE idx IN (SELECT idx FROM {members.table})"
        nodes = self._cursor.sql(f"SELECT idx, id FROM {node_table(type)}{belongs} ORDER BY idx").to_arrow_table()
        return as_one_array(nodes["id"])

    def stream_node_ids(self, type: str, *, batch_rows: int = 1 << 20) -> Iterator[pa.Array]:  # noqa: A002 - as in node_ids
        """External ids of a node type in the order of its rows, in parts; see `stream_edges`."""
        members = self._members_of(type)
        belongs = "" if members.table is None else f" WHERE idx IN (SELECT idx FROM {members.table})"
        query = f"SELECT id FROM {node_table(type)}{belongs} ORDER BY idx"
        for batch in self._cursor.sql(query).to_arrow_reader(batch_rows):
            yield batch.column(0)

    def sql(self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None) -> pa.Table:
        """Runs one read-only query; `edges_*` and `nodes_*` are cut to the window, plain tables are whole.

        `src_idx`, `dst_idx` and `idx` are the store's, as `node_idx` has them.

        Raises:
            GraphError: More than one statement, one that is not a SELECT, or one that fails.
        """
        try:
            return select(self._cursor, query, params)
        except GraphError as error:
            self._recover(error)
            raise

    @property
    def queries(self) -> Queries:
        """Ready-made questions to the window, each answered by an Arrow table."""
        rows = {name: window.rows for name, window in self._windows.items()}
        return Queries(self._cursor, self.schema, rows, ids=IdCache(), is_whole=False)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the window's content by external id, properties included, in whatever order it was loaded."""
        members = {name: self._members[name] for name in self._types}
        if self.is_closed:
            raise _closed()
        return fingerprint_of(self._cursor, self.schema, self.relations, members, self._reader)

    def close(self) -> None:
        """Ends the view's transaction; the counts and the exported tensors stay valid."""
        self.num_edges  # noqa: B018 - counted while it can be
        self._cursor.close()
        self.is_closed = True

    def _columns(self, relation: str, names: Sequence[str]) -> dict[str, Array]:
        return self._read(relation, names)[0]

    def _read(self, relation: str, names: Sequence[str], properties: Sequence[str] = ()) -> tuple[dict[str, Array], pa.Table]:
        if self.is_closed:
            raise _closed()
        columns, table = self._reader.read(self.schema.relation(relation), names, properties)
        self._counts[relation] = len(columns[names[0]])
        return columns, table

    def _relation(self, name: str) -> Relation:
        relation = self.schema.relation(name)
        if relation not in self.relations:
            msg = f"relation {name!r} is not in this view, which has {[kept.name for kept in self.relations]}"
            raise GraphError(msg)
        return relation

    def _members_of(self, name: str) -> Members:
        self.schema.node(name)
        if name not in self._types:
            msg = f"node type {name!r} is not in this view, which has {self._types}"
            raise GraphError(msg)
        return self._members[name]

    def _recover(self, error: GraphError) -> None:
        """Begins anew after a failed query, which has ended the transaction; the store must be as it was."""
        if not isinstance(error.__cause__, duckdb.Error):
            return
        self._cursor.rollback()
        if self._begin() != self._generation:
            self._cursor.rollback()
            msg = "this view ended with a query that failed, and the store has changed since; open another with GraphStore.view"
            raise GraphError(msg) from error


def _closed() -> GraphError:
    return GraphError("this view is closed; open another with GraphStore.view, or read before GraphView.close")


def _concatenated(parts: Sequence[Array]) -> torch.Tensor:
    if len(parts) == 1:
        return torch.from_numpy(parts[0])
    return torch.from_numpy(np.concatenate([np.empty(0, np.int32), *parts]))
