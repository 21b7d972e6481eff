"""An immutable time window of the graph, and its exports to torch and PyG."""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import torch

from graphdb.edges import Csc, Edges, Triples
from graphdb.loading import delta_table, edge_columns, edge_table, node_table
from graphdb.schema import GraphSchema, Relation
from graphdb.sql import GraphError, count, quote, quote_text, run, select

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

    from graphdb.sampling import MultifacetSampler

logger = logging.getLogger(__name__)


class GraphView:
    """The edges with `since <= time < as_of` of some relations, as the store was when the view was opened.

    The view holds a DuckDB transaction, whose snapshot isolation keeps later loads out. Open one with `GraphStore.view`.

    Attributes:
        schema: The store's schema.
        relations: The relations of the view, in the order that `Triples.relation` counts.
        since: Start of the window (UTC, within it), or None.
        as_of: End of the window (UTC, not within it), or None.
        num_nodes: Node type -> rows, so that every idx of the type is below it.
        num_edges: Relation name -> edges in the window.
    """

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        schema: GraphSchema,
        relations: Sequence[Relation],
        *,
        since: dt.datetime | None,
        as_of: dt.datetime | None,
        min_degree: int | Mapping[str, int] | None,
    ) -> None:
        if since is not None and as_of is not None and since >= as_of:
            msg = f"an empty window: since={since} is not before as_of={as_of}"
            raise GraphError(msg)
        self._cursor = cursor
        self.schema = schema
        self.relations = tuple(relations)
        self.since = since
        self.as_of = as_of
        cursor.begin()
        self.num_nodes = {node.name: count(cursor, node_table(node.name)) for node in schema.nodes}
        self._windows = {relation.name: self._window(relation) for relation in self.relations}
        if min_degree is not None:
            self._keep_min_degree(min_degree)
        self._create_sql_views()
        self.num_edges = {relation.name: count(cursor, self._windows[relation.name]) for relation in self.relations}

    def __repr__(self) -> str:
        parts = [f"{name}={count}" for name, count in self.num_nodes.items()]
        parts += [f"{relation}={self.num_edges[relation.name]}" for relation in self.relations]
        parts += [f"{name}={value:%Y-%m-%d}" for name in ("since", "as_of") if (value := getattr(self, name))]
        return f"GraphView({', '.join(parts)})"

    def edges(self, relation: str) -> Edges:
        """The window's edges of one relation, ordered by (dst, time)."""
        declared = self._relation(relation)
        names = edge_columns(declared)
        table = self._cursor.sql(f"SELECT {names} FROM {self._windows[relation]}").to_arrow_table()
        src, dst = _column(table, "src", np.int32), _column(table, "dst", np.int32)
        time = _column(table, "time", np.int64) if declared.timed else None
        weight = _column(table, "weight", np.float32) if declared.weighted else None
        if not _is_clustered(dst, time):
            # Edges that came after the last compaction follow the clustered ones.
            order = np.lexsort((src, dst) if time is None else (src, time, dst))
            src, dst = src[order], dst[order]
            time = None if time is None else time[order]
            weight = None if weight is None else weight[order]
        return Edges(
            src=torch.from_numpy(src),
            dst=torch.from_numpy(dst),
            time=None if time is None else torch.from_numpy(time),
            weight=None if weight is None else torch.from_numpy(weight),
        )

    def triples(self) -> Triples:
        """The window's edges of all relations, relation by relation."""
        parts = [self.edges(relation.name) for relation in self.relations]
        counts = torch.tensor([len(part) for part in parts], dtype=torch.int64)
        empty = torch.empty(0, dtype=torch.int32)
        return Triples(
            head=torch.cat([part.src for part in parts] or [empty]),
            relation=torch.repeat_interleave(torch.arange(len(parts), dtype=torch.int32), counts),
            tail=torch.cat([part.dst for part in parts] or [empty]),
        )

    def csc(self, relation: str) -> Csc:
        """The window's edges of one relation as compressed sparse columns."""
        return Csc.from_edges(self.edges(relation), self.num_nodes[self._relation(relation).dst])

    def to_hetero_data(self) -> HeteroData:
        """The window as PyG's HeteroData: `edge_index` int64 [2, E], with `time` and `edge_weight` where there are any."""
        from torch_geometric.data import HeteroData  # noqa: PLC0415 - importing PyG takes seconds, and little needs it

        data = HeteroData()
        for name, num_nodes in self.num_nodes.items():
            data[name].num_nodes = num_nodes
        for relation in self.relations:
            edges = self.edges(relation.name)
            data[relation.triple].edge_index = torch.stack([edges.src, edges.dst]).long()
            if edges.time is not None:
                data[relation.triple].time = edges.time
            if edges.weight is not None:
                data[relation.triple].edge_weight = edges.weight
        return data

    def sampler(
        self,
        num_neighbors: Sequence[int] | Mapping[str, Sequence[int]],
        *,
        reverse: bool = False,
        weighted: bool = False,
        **settings: Any,
    ) -> MultifacetSampler:
        """A sampler of neighbourhoods in this window, for PyG's `NodeLoader` and `LinkLoader`.

        Args:
            num_neighbors: Edges to draw for a node at each hop, -1 for all; one list, or one for each relation that is walked.
            reverse: Also walk each relation against its direction, as `rev_<name>`; the loader then takes the data of
                `ToUndirected()(view.to_hetero_data())`.
            weighted: Draw edges in proportion to their weights, in relations that have them.
            **settings: Further fields of `SamplerConfig`: replace, disjoint, temporal, negative_alpha, seed, backend.

        Raises:
            GraphError: No weights or no times where they are asked for, or a relation that the view has not.
        """
        from graphdb.sampling import MultifacetSampler, SamplerConfig, Topology  # noqa: PLC0415 - PyG and numba are slow to import

        config = SamplerConfig.model_validate({"num_neighbors": num_neighbors, **settings})
        return MultifacetSampler(Topology.from_view(self, reverse=reverse, weighted=weighted), config)

    def node_ids(self, type: str) -> pa.Array:  # noqa: A002 - the public contract
        """External ids of a node type: the id of idx `i` stands at position `i`; int64 or string."""
        self.schema.node(type)
        ids = self._cursor.sql(f"SELECT id FROM {node_table(type)} ORDER BY idx").to_arrow_table()["id"]
        return pa.concat_arrays(ids.chunks) if ids.num_chunks else pa.array([], ids.type)

    def sql(self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None) -> pa.Table:
        """Runs one read-only query; `edges_*` are cut to the window, `nodes_*` and the plain tables are whole.

        Raises:
            GraphError: More than one statement, or one that is not a SELECT.
        """
        return select(self._cursor, query, params)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the window's content: nodes and edges by external id, in whatever order they were loaded."""
        digest = hashlib.sha256()
        hashes = {node.name: self._node_hashes(node.name) for node in self.schema.nodes}
        for name in sorted(hashes):
            digest.update(f"node {name} {len(hashes[name])} {int(_mix(hashes[name]).sum())}\n".encode())
        for relation in sorted(self.relations, key=lambda relation: relation.name):
            edges = self.edges(relation.name)
            mixed = _mix(hashes[relation.src][edges.src.numpy()]) + hashes[relation.dst][edges.dst.numpy()]
            if edges.time is not None:
                mixed = _mix(mixed) + edges.time.numpy().view(np.uint64)
            if edges.weight is not None:
                mixed = _mix(mixed) + edges.weight.numpy().view(np.uint32)
            digest.update(f"edge {relation.model_dump_json()} {len(edges)} {int(_mix(mixed).sum())}\n".encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Ends the view's transaction; the exported tensors stay valid."""
        self._cursor.close()

    def _relation(self, name: str) -> Relation:
        relation = self.schema.relation(name)
        if relation not in self.relations:
            msg = f"relation {name!r} is not in this view, which has {[kept.name for kept in self.relations]}"
            raise GraphError(msg)
        return relation

    def _window(self, relation: Relation) -> str:
        union = f"(FROM {edge_table(relation.name)} UNION ALL FROM {delta_table(relation.name)})"
        bounds = []
        if relation.timed:
            for bound, operator in ((self.since, ">="), (self.as_of, "<")):
                if bound is not None:
                    bounds.append(f"time {operator} TIMESTAMP {quote_text(bound.isoformat(sep=' '))}")
        where = f" WHERE {' AND '.join(bounds)}" if bounds else ""
        return f"(SELECT {edge_columns(relation)} FROM {union}{where})"

    def _keep_min_degree(self, min_degree: int | Mapping[str, int]) -> None:
        if isinstance(min_degree, Mapping):
            for name in min_degree:
                self.schema.node(name)
        for node in self.schema.nodes:
            wanted = min_degree.get(node.name, 0) if isinstance(min_degree, Mapping) else min_degree
            ends = [
                f"SELECT {end} AS idx FROM {self._windows[relation.name]}"
                for relation in self.relations
                for end, name in (("src", relation.src), ("dst", relation.dst))
                if name == node.name
            ]
            if wanted <= 0 or not ends:
                continue
            run(
                self._cursor,
                f"CREATE TEMP TABLE {quote(f'_kept_{node.name}')} AS SELECT idx FROM ({' UNION ALL '.join(ends)}) "
                f"GROUP BY idx HAVING count(*) >= {int(wanted)}",
            )
        kept = {row[0] for row in run(self._cursor, "SELECT table_name FROM duckdb_tables() WHERE temporary")}
        for relation in self.relations:
            conditions = [
                f"{end} IN (SELECT idx FROM {quote(f'_kept_{name}')})"
                for end, name in (("src", relation.src), ("dst", relation.dst))
                if f"_kept_{name}" in kept
            ]
            if conditions:
                window = self._windows[relation.name]
                self._windows[relation.name] = f"(FROM {window} WHERE {' AND '.join(conditions)})"

    def _create_sql_views(self) -> None:
        # Temporary views hide the store's own of the same name, for this cursor only.
        for relation in self.schema.relations:
            window = self._windows.get(relation.name, f"(FROM {edge_table(relation.name)} WHERE false)")
            run(self._cursor, f"CREATE TEMP VIEW {quote(f'edges_{relation.name}')} AS {edges_query(relation, window)}")

    def _node_hashes(self, name: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
        query = f"SELECT md5_number_lower(CAST(id AS VARCHAR)) AS hash FROM {node_table(name)} ORDER BY idx"
        return _column(self._cursor.sql(query).to_arrow_table(), "hash", np.uint64)


def edges_query(relation: Relation, rows: str) -> str:
    """SQL that gives the edges in `rows` their external ids: the body of an `edges_*` view."""
    others = "".join(f", edge.{name}" for name in ("time", "weight") if name in edge_columns(relation).split(", "))
    return (
        f"SELECT edge.src AS src_idx, edge.dst AS dst_idx, src.id AS src_id, dst.id AS dst_id{others} "
        f"FROM {rows} AS edge "
        f"JOIN {node_table(relation.src)} AS src ON src.idx = edge.src "
        f"JOIN {node_table(relation.dst)} AS dst ON dst.idx = edge.dst"
    )


def _column(table: pa.Table, name: str, dtype: Any) -> np.ndarray[Any, Any]:
    """One writable, contiguous copy of a column without nulls."""
    column = np.empty(table.num_rows, dtype)
    start = 0
    for chunk in table[name].chunks:
        values = chunk.cast(pa.int64()) if pa.types.is_timestamp(chunk.type) else chunk
        column[start : start + len(chunk)] = values.to_numpy(zero_copy_only=True)
        start += len(chunk)
    return column


def _is_clustered(dst: np.ndarray[Any, Any], time: np.ndarray[Any, Any] | None) -> bool:
    steps = dst[1:] >= dst[:-1]
    if time is not None:
        steps &= (dst[1:] != dst[:-1]) | (time[1:] >= time[:-1])
    return bool(steps.all())


def _mix(values: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """SplitMix64's finaliser (Steele et al. 2014): sums of mixed values tell multisets apart."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
