"""What the lookup kernel has to know of a release, as numbers: addresses, lengths, and the bytes that answers begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from multifacet.kernels.hashing import seed_stream
from multifacet.serving.errors import InvalidRequestError
from multifacet.serving.lookup.changed_ids import ChangedIds, KnownIds
from multifacet.serving.lookup.changed_rows import ChangedRows
from multifacet.serving.lookup.kernel import RESULTS, TOO_LITTLE_ROOM, VERSION_BYTES, answer
from multifacet.serving.lookup.plan_fields import AMEND_FIELDS, CHANGE_FIELDS, EXACT, HASHED, HASHED_SHARD, PLACED
from multifacet.serving.protocol import lookup_pb2
from multifacet.serving.release.placing.placed_ids import PlacedIds
from multifacet.serving.release.sharding.hashed_shard import HashedShard
from multifacet.serving.wire.frames import HEADER_BYTES, Kind, pack_header
from multifacet.serving.wire.packing import pack_lookup

if TYPE_CHECKING:
    import numpy.typing as npt

    from multifacet.serving.framed.connection import Buffer
    from multifacet.serving.lookup.rows import MappedRows, SendBuffer
    from multifacet.serving.release.manifest import ReleaseTable
    from multifacet.serving.release.release import Release
    from multifacet.tables.ids import IdIndex

VERSION_HEAD = b"\x0a\x40"
"""Tag and length of a request's version, which its message begins with."""


class KernelAnswer(NamedTuple):
    """What the kernel did.

    Attributes:
        frame: The whole answer; valid until the next one.
        num_sent: How many of its bytes were sent already.
        elapsed_us: How long it took.
        counts: For each table of the release, how many rows and how many unknown ids.
    """

    frame: memoryview
    num_sent: int
    elapsed_us: int
    counts: list[int]


class LookupPlan:
    """The lookup half of one release for the kernel; for one thread.

    Features of string ids are left out: requests that name them are answered without the kernel.

    Args:
        release: The release, or its shard.
        tables: The tables and their rows, in the release's order.
        id_maps: The id maps by name.
        max_ids: Most ids in one request.
    """

    def __init__(
        self,
        release: Release,
        tables: Sequence[tuple[ReleaseTable, MappedRows | ChangedRows]],
        id_maps: Mapping[str, KnownIds],
        max_ids: int,
    ):
        version = release.version
        self._held = [rows for _, rows in tables]  # their memory is known to the kernel by its address only
        self._held_maps = dict(id_maps)
        self._held_seeds: list[npt.NDArray[np.uint64]] = []
        integer = [(table, rows) for table, rows in tables if id_maps[table.id_map].id_type == "int64"]
        self.tables = [table.name for table, _ in integer]
        features = list(dict.fromkeys(table.feature for table, _ in integer))
        keys = list(dict.fromkeys((table.feature, table.id_map) for table, _ in integer))
        text = bytearray(VERSION_HEAD + version.encode())
        if release.shard is not None:
            text += lookup_pb2.LookupAnswer(shard_index=release.shard, num_shards=release.num_shards).SerializeToString()
        plan = [len(features), len(keys), len(integer), max_ids, len(text)]
        for feature in features:
            plan += (len(text), len(feature.encode()))
            text += feature.encode()
        for feature, name in keys:
            plan += (features.index(feature), *self._map_fields(id_maps[name]))
        for table, rows in integer:
            head = lookup_pb2.TableRows(
                table=table.name, row_bytes=table.row_bytes, dim=table.dim, precision=table.precision
            ).SerializeToString()
            plan += (
                keys.index((table.feature, table.id_map)),
                rows.address,
                table.rows_of(release.shard),
                table.row_bytes,
                len(text),
                len(head),
                rows.stride,
                _is_keyed(table, rows, id_maps[table.id_map]),
                *_change_fields(rows),
            )
            text += head
        self._plan = np.array(plan, np.int64)
        self._text = np.frombuffer(bytes(text), np.uint8).copy()
        self._spans = np.empty((len(features), 2), np.int64)
        self._ids = np.empty(max_ids, np.int64)
        self._found = np.empty(max_ids * max(1, len(keys)), np.int32)
        self._results = np.empty(RESULTS + 2 * len(integer), np.int64)
        self._version = version
        self._features = features

    def answer(self, frame: Buffer, send: SendBuffer, descriptor: int = -1) -> KernelAnswer | None:
        """Answer a request of this version.

        Args:
            frame: The request's frame, writable memory; its header was read.
            send: Where the answer is put together.
            descriptor: The socket to send it to as it comes, all but its end; -1 sends nothing.

        Returns:
            The answer; None if the request is not for the kernel.
        """
        given = np.frombuffer(frame, np.uint8)
        for _ in range(2):
            memory = send.words
            status = answer(
                given,
                len(given),
                self._plan,
                self._text,
                self._spans,
                self._ids,
                self._found,
                memory,
                self._results,
                descriptor,
            )
            if status != TOO_LITTLE_ROOM:
                break
            send.take(-(-int(self._results[0]) // 8) * 8)
        if status:
            return None
        length, num_sent, elapsed_us, *counts = self._results.tolist()
        return KernelAnswer(send.read(0, length), num_sent, elapsed_us, counts)

    def warm(self, send: SendBuffer) -> None:
        """Compile the kernel, or read its cache.

        Raises:
            InvalidRequestError: A feature's name is longer than a request can say.
        """
        for feature in self._features:
            parts = pack_lookup(self._version, {feature: np.zeros(1, np.int64)})
            message = b"".join(parts)
            frame = bytearray(pack_header(Kind.LOOKUP, len(message), 0, 0) + message)
            if self.answer(frame, send) is None:
                raise InvalidRequestError(f"a lookup of feature {feature!r} is not understood by the kernel")

    def _map_fields(self, id_map: KnownIds) -> tuple[int, ...]:
        return *self._whole_fields(id_map), *_amend_fields(id_map)

    def _whole_fields(self, id_map: KnownIds) -> tuple[int, ...]:
        index = id_map.index
        if not isinstance(id_map, ChangedIds) and index is None:
            seeds = seed_stream(id_map.seed, 1)
            self._held_seeds.append(seeds)
            seed = seeds.ctypes.data
            if isinstance(id_map, HashedShard):
                part = id_map.shard, id_map.num_shards, id_map.first_row, id_map.whole_rows
                return HASHED_SHARD, *part, 0, seed, 0, 0, id_map.oov_row
            return HASHED, 0, 0, 0, 0, 0, seed, 0, 0, id_map.num_rows
        if isinstance(index, PlacedIds):
            return PLACED, *_place_fields(index), index.oov_row
        return EXACT, *_index_fields(index), 0, 0, id_map.oov_row or 0


def _is_keyed(table: ReleaseTable, rows: MappedRows | ChangedRows, id_map: KnownIds) -> bool:
    """Whether the kernel may find and copy in one go: ids stand with these rows, and nothing lies over ids or rows."""
    return bool(table.slot_bytes) and isinstance(id_map, PlacedIds) and not isinstance(rows, ChangedRows)


def _change_fields(rows: MappedRows | ChangedRows) -> tuple[int, ...]:
    if not isinstance(rows, ChangedRows):
        return (0,) * CHANGE_FIELDS
    return rows.words.ctypes.data, len(rows.words), int(rows.first.view(np.int64))


def _amend_fields(id_map: KnownIds) -> tuple[int, ...]:
    if not isinstance(id_map, ChangedIds):
        return (0,) * AMEND_FIELDS
    return *_index_fields(id_map.added), *_index_fields(id_map.dropped)


def _place_fields(placed: PlacedIds) -> tuple[int, ...]:
    places, keys = placed.places, placed.keys
    return (
        places.pilots.ctypes.data,
        len(places.pilots),
        keys.ctypes.data,
        places.moved.ctypes.data,
        places.num_ids,
        int(places.offset.view(np.int64)),
        keys.strides[0],
        len(places.moved),
    )


def _index_fields(index: IdIndex | None) -> tuple[int, ...]:
    if index is None:
        raise TypeError("an exact map has an index")
    starts, ids, rows = index.arrays["starts"], index.arrays["keys"], index.arrays["rows"]
    return starts.ctypes.data, len(starts), ids.ctypes.data, rows.ctypes.data, len(ids), index.shift


def version_of(frame: Buffer) -> str:
    """The version that a request's frame begins with, where the library's own clients put it; empty if it is elsewhere."""
    start = HEADER_BYTES + len(VERSION_HEAD)
    if bytes(frame[HEADER_BYTES:start]) != VERSION_HEAD:
        return ""
    return bytes(frame[start : start + VERSION_BYTES]).decode("ascii", "replace")
