"""Writing a window's feed, in memory that does not grow with its edges.

1. DuckDB streams the window's edges. Each goes to a bucket file by its hash: as many buckets as shards, each an even range.
2. Each bucket is put into the order of the hash, and repeated pairs become one.
3. What is held out is chosen, and each bucket becomes a shard without it.

Memory holds one bucket, a few numbers a node, and what is held out.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from multifacet.artifacts import ArtifactError, ArtifactWriter
from multifacet.graphdb.feed.degrees import Degrees
from multifacet.graphdb.feed.edge_hash import EdgeHash, group_by_shard
from multifacet.graphdb.feed.feed import Feed
from multifacet.graphdb.feed.holding_out import HeldOut
from multifacet.graphdb.feed.layout import (
    COUNTS_FILE,
    DEGREES_FILE,
    FORMAT_VERSION,
    HELD_OUT_FILE,
    ID_ROWS,
    KIND,
    KNOWN_FILE,
    MAX_SHARDS,
    FeedRelation,
    first_rows,
    ids_file,
    record_of,
    shard_file,
)
from multifacet.graphdb.feed.records import append, columns_of, in_order, pack
from multifacet.graphdb.sql import GraphError, first_line
from multifacet.inputs import PATH, expect_attributes, number, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from multifacet.graphdb.view import GraphView

logger = logging.getLogger(__name__)

_BATCH_ROWS: Final = 1 << 20
_BUCKETS: Final = "buckets"


def write_feed(
    view: GraphView,
    folder: str | os.PathLike[str],
    *,
    num_shards: int = 64,
    seed: int = 0,
    hold_out: int = 0,
    max_fraction: float = 0.05,
) -> Feed:
    """Write a window as shards in random order, for trainings that do not hold it in memory.

    Each pair of a relation stands in the feed once, with the sum of its edges' weights and its first time. Where it stands
    follows from a hash of its ends, its relation and the seed, so that equal windows, seeds and numbers of shards give equal
    files. A feed of these that stands at `folder` already is left as it is.

    Args:
        view: the window. It is read to its end, and nothing else may be asked of it meanwhile.
        folder: where the feed is to stand; it appears whole or not at all.
        num_shards: parts, which processes share out among themselves: several times as many as there are ever to be
            processes. One of them is held in memory at a time.
        seed: of the order and of what is held out.
        hold_out: pairs to hold out for validation, of all relations together; both of their ends have other edges. Other edges
            between the same two nodes are left out of the shards, as they would tell.
        max_fraction: most of one relation's pairs that may be held out.

    Returns:
        The feed.

    Raises:
        GraphError: The window has no edges, an edge has a negative weight, something else stands at `folder`, or the disk is
            full.
    """
    expect_attributes(
        "view", view, ("stream_edges", "num_nodes", "fingerprint"), "a graph's view, such as GraphStore.view gives"
    )
    PATH("folder", folder)
    whole(1)("num_shards", num_shards)
    if num_shards > MAX_SHARDS:
        raise ValueError(f"num_shards is {num_shards}; expected at most {MAX_SHARDS}")
    whole(0)("seed", seed)
    whole(0)("hold_out", hold_out)
    number(above=0, below=1)("max_fraction", max_fraction)
    path = Path(folder)
    source = {
        "window": view.fingerprint,
        "relations": [relation.name for relation in view.relations],
        "seed": seed,
        "num_shards": num_shards,
        "hold_out": hold_out,
        "max_fraction": float(max_fraction),
    }
    if os.path.lexists(path):
        return _finished(path, source)
    if not sum(view.num_edges.values()):
        msg = f"there are no edges to feed: the window has {view}; widen it"
        raise GraphError(msg)
    try:
        with ArtifactWriter(path, kind=KIND) as writer:
            feeding = _Feeding.begin(view, writer, source)
            feeding.fill_buckets()
            feeding.write_shards()
            feeding.write_ids()
    except (OSError, duckdb.Error) as error:
        told = first_line(error) if isinstance(error, duckdb.Error) else (error.strerror or str(error))
        msg = f"the feed could not be written to {path}, and nothing is left of it: {told}"
        raise GraphError(msg) from error
    except ArtifactError as error:
        raise GraphError(str(error)) from error
    return Feed.open(path, verify=False)


def _finished(path: Path, source: dict[str, Any]) -> Feed:
    """Give the feed that stands at a place already, if it is the one that is asked for."""
    try:
        feed = Feed.open(path, verify=False)
    except ArtifactError as error:
        msg = f"{path} is taken, and not by a whole feed: name another folder, or remove it. {error}"
        raise GraphError(msg) from error
    differing = [
        f"{name} {feed.source.get(name)!r}, not {value!r}" for name, value in source.items() if feed.source.get(name) != value
    ]
    if differing:
        msg = f"{path} holds another feed ({'; '.join(differing)}): name another folder, or remove it"
        raise GraphError(msg)
    logger.info("%s holds this feed already", path)
    return feed


@dataclass(frozen=True, kw_only=True, slots=True)
class _Feeding:
    """One feed that is being written."""

    view: GraphView
    writer: ArtifactWriter
    relations: tuple[FeedRelation, ...]
    num_shards: int
    record: np.dtype[Any]
    hash_of: EdgeHash
    held_out: HeldOut

    @classmethod
    def begin(cls, view: GraphView, writer: ArtifactWriter, source: dict[str, Any]) -> _Feeding:
        """Look whether there is room, and write down what the feed is made of."""
        relations = tuple(FeedRelation(name=part.name, src=part.src, dst=part.dst) for part in view.relations)
        record = record_of(view.relations, view.num_nodes)
        num_edges = [view.num_edges[part.name] for part in relations]
        needed, free = sum(num_edges) * record.itemsize, shutil.disk_usage(writer.directory).free
        if needed > free:
            raise OSError(f"it needs {needed:,} bytes for {sum(num_edges):,} edges, and {free:,} are free there")
        writer.manifest |= {
            "format_version": FORMAT_VERSION,
            "source": source,
            "since": view.since.isoformat() if view.since else None,
            "as_of": view.as_of.isoformat() if view.as_of else None,
            "num_nodes": dict(view.num_nodes),
            "node_types": list(view.num_nodes),
            "relations": [[part.name, part.src, part.dst] for part in relations],
            "record": [[name, record[name].str] for name in record.names or ()],
        }
        return cls(
            view=view,
            writer=writer,
            relations=relations,
            num_shards=source["num_shards"],
            record=record,
            hash_of=EdgeHash(relations, first_rows(view.num_nodes), source["seed"]),
            held_out=HeldOut(
                num_edges,
                wanted=source["hold_out"],
                max_fraction=source["max_fraction"],
                num_nodes=sum(view.num_nodes.values()),
            ),
        )

    def fill_buckets(self) -> None:
        """Send each edge of the window to its bucket."""
        for folder in (_BUCKETS, "shards", "nodes"):
            (self.writer.directory / folder).mkdir()
        for position, relation in enumerate(self.relations):
            for columns in self.view.stream_edges(relation.name, batch_rows=_BATCH_ROWS):
                records = pack(self.record, position, _standing(relation.name, columns))
                relations, src, dst = columns_of(records)
                pairs, edges = self.hash_of(relations, src, dst)
                self.held_out.offer(position, pairs, src, dst)
                order, bounds = group_by_shard(edges, self.num_shards)
                records = records[order]
                for shard in np.flatnonzero(np.diff(bounds)).tolist():
                    with self._bucket(shard).open("ab") as stream:
                        append(stream, records[bounds[shard] : bounds[shard + 1]])
        self.held_out.close_offers()

    def write_shards(self) -> None:
        """Turn each bucket into a shard, and count."""
        if not self.held_out.is_empty:
            self._choose_held_out()
        queries = [
            self.held_out.queries(position, of_one_type=part.src == part.dst) for position, part in enumerate(self.relations)
        ]
        counts = np.zeros((self.num_shards, len(self.relations)), np.int64)
        degrees = Degrees(self.relations, self.view.num_nodes)
        base = np.dtype([(name, self.record[name]) for name in ("relation", "src", "dst")])
        folder = self.writer.directory
        num_held_out = np.zeros(len(self.relations), np.int64)
        with (folder / HELD_OUT_FILE).open("wb") as held_stream, (folder / KNOWN_FILE).open("wb") as known_stream:
            for shard in range(self.num_shards):
                records = self._take_bucket(shard)
                if self.held_out.is_empty:
                    records = in_order(records, self.hash_of)
                else:
                    kept, held = self.held_out.split(records["relation"], self.hash_of(*columns_of(records))[0])
                    append(held_stream, records[held])
                    num_held_out += np.bincount(records["relation"][held], minlength=len(self.relations))
                    records = records[kept]
                    known = np.empty(np.count_nonzero(answers := _answer(records, queries)), base)
                    for name in base.names or ():
                        known[name] = records[name][answers]
                    append(known_stream, known)
                counts[shard] = np.bincount(records["relation"], minlength=len(self.relations))
                degrees.add(*columns_of(records))
                with (folder / shard_file(shard)).open("wb") as stream:
                    append(stream, records)
        shutil.rmtree(folder / _BUCKETS)
        if not counts.sum():
            msg = f"all edges of the window have weight zero: there is none to feed in {self.view}"
            raise GraphError(msg)
        save_file({"counts": counts}, folder / COUNTS_FILE)
        save_file(degrees.to_arrays(), folder / DEGREES_FILE)
        self.writer.manifest |= {
            "num_edges": counts.sum(0).tolist(),
            "num_held_out": num_held_out.tolist(),
            "shard_edges": counts.sum(1).tolist(),
            "degrees_by_relation": degrees.by_relation,
        }

    def write_ids(self) -> None:
        """Write the external ids of each node type, in groups of a fixed number of rows."""
        for position, name in enumerate(self.view.num_nodes):
            kind = pa.int64() if self.view.schema.node(name).id_type == "int64" else pa.string()
            schema = pa.schema([pa.field("id", kind, nullable=False)])
            with pq.ParquetWriter(self.writer.directory / ids_file(position), schema, compression="zstd") as file:
                for part in self._id_groups(name):
                    file.write_table(pa.table([part.cast(kind)], schema=schema), row_group_size=ID_ROWS)

    def _id_groups(self, node_type: str) -> Iterator[pa.ChunkedArray]:
        waiting: list[pa.Array] = []
        for part in self.view.stream_node_ids(node_type, batch_rows=ID_ROWS):
            waiting.append(part)
            while sum(map(len, waiting)) >= ID_ROWS:
                joined = pa.chunked_array(waiting)
                yield joined.slice(0, ID_ROWS)
                rest = joined.slice(ID_ROWS)
                waiting = rest.chunks
        if sum(map(len, waiting)):
            yield pa.chunked_array(waiting)

    def _choose_held_out(self) -> None:
        """Put the buckets into order, and choose among the candidates by what all of them have."""
        num_distinct = np.zeros(len(self.relations), np.int64)
        for shard in range(self.num_shards):
            records = in_order(self._take_bucket(shard), self.hash_of)
            relations, src, dst = columns_of(records)
            self.held_out.learn_ends(self.hash_of, relations, src, dst, self.hash_of(relations, src, dst)[0])
            num_distinct += np.bincount(relations, minlength=len(self.relations))
            with self._bucket(shard).open("wb") as stream:
                append(stream, records)
        self.held_out.choose(self.hash_of, num_distinct.tolist())

    def _bucket(self, shard: int) -> Path:
        return self.writer.directory / _BUCKETS / f"{shard:05d}"

    def _take_bucket(self, shard: int) -> NDArray[Any]:
        """Read a bucket, and give its room back."""
        path = self._bucket(shard)
        if not path.exists():
            return np.empty(0, self.record)
        records = np.fromfile(path, self.record)
        path.unlink()
        return records


def _standing(relation: str, columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Leave edges of weight zero out, and refuse what is below."""
    weight = columns.get("weight")
    if weight is None:
        return columns
    if (weight < 0).any():
        msg = (
            f"relation {relation!r}: an edge has the weight {weight.min():g}. An edge's weight says how often it stands there: "
            "leave such edges out of the window, or load them as a relation of their own"
        )
        raise GraphError(msg)
    return {name: column[weight > 0] for name, column in columns.items()} if (weight == 0).any() else columns


def _answer(records: NDArray[Any], queries: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> NDArray[np.bool_]:
    """Say which pairs answer a query: they share the relation and the head, or the relation and the tail, of a held-out one."""
    answers = np.zeros(len(records), np.bool_)
    order = np.argsort(records["relation"], kind="stable")
    bounds = np.searchsorted(records["relation"][order], np.arange(len(queries) + 1))
    for relation, (heads, tails) in enumerate(queries):
        places = order[bounds[relation] : bounds[relation + 1]]
        for end, asked in (("src", heads), ("dst", tails)):
            if len(asked) and len(places):
                rows = records[end][places]
                found = np.minimum(np.searchsorted(asked, rows), len(asked) - 1)
                answers[places] |= asked[found] == rows
    return answers
