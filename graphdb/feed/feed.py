"""A feed: what a training reads of a window, part by part, with what it has to know of the whole."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multifacet.artifacts import Artifact, ArtifactError, map_tensors
from multifacet.graphdb.feed.degrees import group_relations
from multifacet.graphdb.feed.layout import (
    COUNTS_FILE,
    DEGREES_FILE,
    FORMAT_VERSION,
    HELD_OUT_FILE,
    ID_ROWS,
    KIND,
    KNOWN_FILE,
    FeedRelation,
    ids_file,
    shard_file,
)
from multifacet.inputs import FLAG, whole

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray


class Feed:
    """A window's pairs in shards, on disk; `write_feed` writes one.

    Attributes:
        path: its folder.
        fingerprint: SHA-256 (hex) of its manifest, and so of all its files.
        source: what it was made of: the window's fingerprint, relations, the seed, the number of shards, what is held out.
        since: start of the window (UTC, within it), or None.
        as_of: end of the window (UTC, not within it), or None.
        relations: its relations, by whose positions the records name them.
        num_nodes: node type -> rows.
        num_edges: relation name -> pairs in the shards.
        num_held_out: relation name -> pairs that are held out.
        record: how a pair is written: relation, src and dst, and weight (how often it stands in the window) and time (its
            first, in microseconds) where the window has them.
        counts: pairs of each shard and relation, int64 [S, R].
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        manifest = artifact.manifest
        self.path: Path = artifact.path
        self.fingerprint: str = artifact.fingerprint
        try:
            version = manifest["format_version"]
            if version != FORMAT_VERSION:
                raise ArtifactError(
                    f"{self.path} has feed format {version!r}, this version reads {FORMAT_VERSION}; write it again."
                )
            self.source: dict[str, Any] = dict(manifest["source"])
            self.since, self.as_of = (_time(manifest[name]) for name in ("since", "as_of"))
            self.relations = tuple(FeedRelation(name=name, src=src, dst=dst) for name, src, dst in manifest["relations"])
            self.num_nodes: dict[str, int] = {name: manifest["num_nodes"][name] for name in manifest["node_types"]}
            names = [relation.name for relation in self.relations]
            self.num_edges: dict[str, int] = dict(zip(names, manifest["num_edges"], strict=True))
            self.num_held_out: dict[str, int] = dict(zip(names, manifest["num_held_out"], strict=True))
            self.record: np.dtype[Any] = np.dtype([(name, kind) for name, kind in manifest["record"]])
            self._by_relation = bool(manifest["degrees_by_relation"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(f"{self.path} is not a feed that this version reads: {error!r}.") from error
        self.counts: NDArray[np.int64] = np.array(map_tensors(artifact.file(COUNTS_FILE))["counts"])

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Self:
        """Open a feed, and refuse one that is not as it was written.

        Args:
            path: its folder.
            verify: whether to read all files and compare their sha256. Without that the files have to be there in their sizes,
                and each shard is compared when it has been read to its end.

        Raises:
            ArtifactError: There is no feed, or a file is missing, cut or changed; the message names it.
        """
        FLAG("verify", verify)
        return cls(Artifact.open(path, kind=KIND, verify=verify))

    @property
    def num_shards(self) -> int:
        """Shards."""
        return len(self.counts)

    @property
    def window(self) -> str:
        """Fingerprint of the window."""
        return str(self.source["window"])

    def shard(self, number: int) -> ShardReader:
        """Open a shard, to be read from its start."""
        _below("number", number, self.num_shards)
        return self._reader(shard_file(number))

    def held_out(self) -> NDArray[Any]:
        """Give the records that are held out, in the order of their hash."""
        with self._reader(HELD_OUT_FILE) as reader:
            return reader.read(sum(self.num_held_out.values()))

    def known(self) -> NDArray[Any]:
        """Give relation, src and dst of those pairs in the shards that answer a query of a held-out one."""
        record = np.dtype([(name, self.record[name]) for name in ("relation", "src", "dst")])
        with self._reader(KNOWN_FILE, record) as reader:
            return reader.read(self._artifact.manifest["files"][KNOWN_FILE]["bytes"] // record.itemsize)

    @property
    def degree_groups(self) -> list[int]:
        """The group in which each relation's degrees are counted: its own, or that of its node types where they are many."""
        return group_relations(self.relations, by_relation=self._by_relation)

    def degrees(self, group: int, end: Literal["head", "tail"]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Give the rows that are an end of a group's pairs, ascending, and of how many, [n] each."""
        _below("group", group, 1 + max(self.degree_groups))
        if end not in {"head", "tail"}:
            raise ValueError(f"end is {end!r}; expected head or tail")
        arrays = map_tensors(self._artifact.file(DEGREES_FILE))
        return arrays[f"{group}/{end}/rows"], arrays[f"{group}/{end}/counts"]

    def node_ids(self, type: str, begin: int = 0, end: int | None = None) -> pa.Array:  # noqa: A002 - as in GraphView
        """External ids of a node type by row: of all, or of those from `begin` up to `end`."""
        if type not in self.num_nodes:
            raise ValueError(f"node type {type!r} is not in this feed, which has {list(self.num_nodes)}")
        count = self.num_nodes[type]
        end = count if end is None else end
        _below("end", end, count + 1)
        _below("begin", begin, end + 1)
        file = pq.ParquetFile(self._artifact.file(ids_file(list(self.num_nodes).index(type))))
        first = begin // ID_ROWS
        column = file.read_row_groups(list(range(first, -(-end // ID_ROWS))))["id"].slice(begin - first * ID_ROWS, end - begin)
        return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], file.schema_arrow.field("id").type)

    def _reader(self, name: str, record: np.dtype[Any] | None = None) -> ShardReader:
        return ShardReader(
            self._artifact.file(name), record or self.record, sha256=self._artifact.manifest["files"][name]["sha256"]
        )

    def __repr__(self) -> str:
        parts = [f"{name}={count}" for name, count in self.num_nodes.items()]
        parts += [f"({part.src}, {part.name}, {part.dst})={self.num_edges[part.name]}" for part in self.relations]
        return f"Feed({', '.join(parts)}, held_out={sum(self.num_held_out.values())}, shards={self.num_shards})"


class ShardReader:
    """Reads the records of one file in order, once, and compares the file's sha256 when it has come to the end.

    Args:
        path: the file.
        record: of a pair.
        sha256: of the file, hex.
    """

    def __init__(self, path: Path, record: np.dtype[Any], *, sha256: str) -> None:
        self._path = path
        self._record = record
        self._sha256 = sha256
        self._digest = hashlib.sha256()
        self._stream = path.open("rb", buffering=0)
        self._left = os.fstat(self._stream.fileno()).st_size // record.itemsize
        self._is_checked = False

    def __len__(self) -> int:
        """Records that are left."""
        return self._left

    def read(self, count: int) -> NDArray[Any]:
        """Read the next records: fewer than `count` at the end.

        Raises:
            ArtifactError: The file is not as it was written.
        """
        records = np.empty(min(count, self._left), self._record)
        room, filled = records.view(np.uint8).data, 0
        while filled < len(room):
            got = self._stream.readinto(room[filled:])
            if not got:
                raise ArtifactError(f"{self._path} ended while it was read; write the feed again or fetch an intact copy.")
            filled += got
        self._digest.update(room)
        self._left -= len(records)
        if not self._left and not self._is_checked:
            self._is_checked = True
            if self._stream.read(1) or self._digest.hexdigest() != self._sha256:
                raise ArtifactError(
                    f"{self._path} is not what its feed's manifest says; write the feed again or fetch an intact copy."
                )
        return records

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _below(name: str, value: int, bound: int) -> None:
    whole(0)(name, value)
    if value >= bound:
        raise ValueError(f"{name} is {value}; expected at most {bound - 1}")


def _time(given: str | None) -> dt.datetime | None:
    return None if given is None else dt.datetime.fromisoformat(given)
