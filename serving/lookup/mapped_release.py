"""The lookup half of one release: ids in, rows out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from multifacet.artifacts import ArtifactError
from multifacet.serving.lookup.changed_ids import ChangedIds, KnownIds
from multifacet.serving.lookup.changed_rows import ChangedRows, lay_over
from multifacet.serving.lookup.kernel_plan import LookupPlan
from multifacet.serving.lookup.placed_rows import gather_placed
from multifacet.serving.lookup.rows import MappedRows, SendBuffer, touch
from multifacet.serving.protocol import lookup_pb2
from multifacet.serving.release.bases import check_base
from multifacet.serving.release.manifest import KEY_BYTES
from multifacet.serving.release.placing.placed_ids import PlacedIds
from multifacet.serving.release.release import keys_of
from multifacet.serving.release.sharding.hashed_shard import HashedShard
from multifacet.serving.release.sharding.split import ids_by_row
from multifacet.serving.wire.frames import padded
from multifacet.serving.wire.packing import IdArray
from multifacet.tables.ids import IdMap

if TYPE_CHECKING:
    from multifacet.serving.release.manifest import ReleaseTable
    from multifacet.serving.release.mapped_files import MappedFiles
    from multifacet.serving.release.release import Release

_NO_ROWS = np.empty(0, np.int32)


class FetchedRows(NamedTuple):
    """Rows of one table, gathered.

    Attributes:
        table: The table.
        num_rows: How many rows: one for each id.
        num_unknown_ids: How many of them are the out-of-vocabulary row.
        start: Where its first byte stands in the send buffer; each table's rows are padded as frames ask for.
    """

    table: ReleaseTable
    num_rows: int
    num_unknown_ids: int
    start: int

    @property
    def num_bytes(self) -> int:
        """The length of the rows, back to back."""
        return self.num_rows * self.table.row_bytes

    def describe(self, *, rows: bytes = b"", num_rows: int = 0) -> lookup_pb2.TableRows:
        """The table's part of an answer, with the rows or with their number."""
        table = self.table
        return lookup_pb2.TableRows(
            table=table.name,
            rows=rows,
            row_bytes=table.row_bytes,
            dim=table.dim,
            precision=table.precision,
            num_unknown_ids=self.num_unknown_ids,
            num_rows=num_rows,
        )


class LookupHalf:
    """The lookup half of one release, mapped into memory.

    Args:
        release: An open release, of one in shards a shard.
        populate: Whether to have all pages of tables and id maps in memory before the first request.
        huge_pages: Whether to copy the tables into memory of this process that has huge pages, instead.
        max_ids: Most ids in one request, for `plan`.
        files: Its mapped files, watched since before they were checked; None watches them from now on.
        base: Of a delta what it lies over, whose memory both then share.

    Attributes:
        shard_fields: What descriptions and answers say of the shard; empty for a whole release.
        files: Its mapped files: rows may be sent only if these are still intact after they were gathered.
        id_maps: Its id maps by name.
        rows: The rows of each table by name.
        plan: The same tables for the lookup kernel; for one thread.

    Raises:
        ArtifactError: An id map does not belong to its table, or names rows beyond it; a delta came without its base.
    """

    def __init__(
        self,
        release: Release,
        *,
        populate: bool = True,
        huge_pages: bool = False,
        max_ids: int = 16384,
        files: MappedFiles | None = None,
        base: LookupHalf | None = None,
    ):
        self.release = release
        if release.base and base is None:
            raise ArtifactError(f"{release.path} is a delta over version {release.base}: load that first")
        # A delta's own files are read whole; those that stay mapped are its base's.
        self.files: MappedFiles = base.files if base is not None else files or release.mapped_files(rows=not huge_pages)
        self.id_types: Mapping[str, str] = release.manifest.id_types
        self.shard_fields: dict[str, int] = {}
        if release.shard is not None:
            self.shard_fields = {"shard_index": release.shard, "num_shards": release.num_shards}
        self.id_maps: dict[str, KnownIds] = {}
        self.rows: dict[str, MappedRows | ChangedRows] = {}
        if base is None:
            self._map(populate=populate, huge_pages=huge_pages)
        else:
            self._lay_over(base)
        self._tables = [
            (table.feature, table.row_bytes, table, (table.feature, table.id_map), self.rows[table.name])
            for table in release.tables
        ]
        tables = [(table, rows) for _, _, table, _, rows in self._tables]
        self.plan = LookupPlan(release, tables, self.id_maps, max_ids)
        self._warm()

    def _map(self, *, populate: bool, huge_pages: bool) -> None:
        """Open the tables and id maps of a whole release."""
        release = self.release
        for table in release.tables:
            mapped = _map(release, table, populate=populate and not huge_pages)
            start = KEY_BYTES if table.slot_bytes else 0
            self.rows[table.name] = rows = MappedRows(mapped, table.row_bytes, start, huge_pages=huge_pages)
            if table.slot_bytes:
                self.id_maps[table.id_map] = release.id_map(table.id_map, keys_of(rows.stored))
        for table in release.tables:
            if table.id_map not in self.id_maps:
                self.id_maps[table.id_map] = _load_id_map(release, table)
            self._check_size(table)
        for id_map in self.id_maps.values() if populate else ():
            for array in id_map.index.arrays.values() if id_map.index is not None else ():
                touch(array)

    def _lay_over(self, base: LookupHalf) -> None:
        """Take the base's tables and id maps, with a delta's changes."""
        release = self.release
        check_base(release, base.release)
        for table in release.tables:
            if table.id_map not in self.id_maps:
                self.id_maps[table.id_map] = _change_ids(release, table, base.id_maps[table.id_map])
            self._check_size(table)
            self.rows[table.name] = _lay_over(release, table, base.rows[table.name])

    def _check_size(self, table: ReleaseTable) -> None:
        id_map, num_rows = self.id_maps[table.id_map], table.rows_of(self.release.shard)
        if id_map.num_rows != num_rows or id_map.num_hashes != 1:
            raise ArtifactError(
                f"{self.release.path}: table {table.name!r} has {num_rows} rows, its id map maps to {id_map.num_rows} "
                f"by {id_map.num_hashes} hashes; publish the model again"
            )

    def fetch(self, ids: Mapping[str, IdArray], send: SendBuffer) -> list[FetchedRows]:
        """Gather the rows of every table that the features feed.

        Args:
            ids: External ids [n] by feature; each feature one of the release's, its ids of its type.
            send: Where the rows go to; what it held is overwritten.

        Returns:
            One entry a table, in the release's order of tables.
        """
        found: dict[tuple[str, str], tuple[npt.NDArray[np.int32], int]] = {}
        length = 0
        for feature, row_bytes, *_ in self._tables:
            if feature in ids:
                length += padded(len(ids[feature]) * row_bytes)
        memory = send.take(length)
        fetched = []
        start = 0
        for feature, _, table, key, rows in self._tables:
            if feature not in ids:
                continue
            mapping, given = self.id_maps[table.id_map], ids[feature]
            together = key not in found and table.slot_bytes and len(given)
            if together and isinstance(mapping, PlacedIds) and isinstance(rows, MappedRows):
                places = np.empty(len(given), np.int32)
                num_unknown_ids, stop = gather_placed(
                    mapping, rows, cast("npt.NDArray[np.int64]", given), places, memory, start
                )
                found[key] = places, num_unknown_ids
                fetched.append(FetchedRows(table, len(places), num_unknown_ids, start))
                start = stop
                continue
            if key not in found:
                found[key] = self._find(*key, ids)
            places, num_unknown_ids = found[key]
            fetched.append(FetchedRows(table, len(places), num_unknown_ids, start))
            start = rows.gather(places, memory, start)
        return fetched

    def _find(self, feature: str, id_map: str, ids: Mapping[str, IdArray]) -> tuple[npt.NDArray[np.int32], int]:
        given = ids[feature]
        if not len(given):
            return _NO_ROWS, 0
        mapping = self.id_maps[id_map]
        if given.dtype == np.int64:
            rows = np.empty(len(given), np.int32)
            return rows, mapping.find(cast("npt.NDArray[np.int64]", given), rows)
        rows = mapping.rows(given)
        if mapping.oov_row is None:  # hashed: every id has a row
            return rows, 0
        return rows, int(np.count_nonzero(rows == mapping.oov_row))

    def _warm(self) -> None:
        """Compile the kernels, or read their cache, before the first request."""
        one_id: dict[str, IdArray] = {
            feature: np.frombuffer(bytes(8), np.int64) if id_type == "int64" else np.array([""], np.object_)
            for feature, id_type in self.id_types.items()
        }
        self.fetch(one_id, SendBuffer())
        self.plan.warm(SendBuffer())


def _change_ids(release: Release, table: ReleaseTable, below: KnownIds) -> KnownIds:
    added, dropped = release.changed_ids(table, "added"), release.changed_ids(table, "dropped")
    num_added = table.changes(release.shard)[1]
    if (0 if added is None else added.num_rows - 1) != num_added:
        raise ArtifactError(f"{release.path}: table {table.name!r} has {num_added} added rows, and not as many added ids")
    if added is None and dropped is None:
        return below
    if isinstance(below, HashedShard) or below.index is None:
        raise ArtifactError(f"{release.path}: id map {table.id_map!r} is hashed: no ids can be added to it, nor dropped")
    known = below if isinstance(below, ChangedIds) else ChangedIds.of(below)
    return known.change(*(ids_by_row(part) if part is not None else [] for part in (added, dropped)))


def _lay_over(release: Release, table: ReleaseTable, below: MappedRows | ChangedRows) -> MappedRows | ChangedRows:
    num_rows, (_, num_added) = table.rows_of(release.shard), table.changes(release.shard)
    changed = release.changed_rows(table)
    if not len(changed) + num_added:
        return below
    rows = np.concatenate([changed, np.arange(num_rows - num_added, num_rows, dtype=np.int32)])
    return lay_over(below, num_rows, rows, release.map_rows(table))


def _load_id_map(release: Release, table: ReleaseTable) -> IdMap | HashedShard | PlacedIds:
    id_map = release.id_map(table.id_map)
    if isinstance(id_map, IdMap) and table.shard_rows and release.shard is not None and id_map.index is None:
        return HashedShard(id_map, release.shard, release.num_shards)
    return id_map


def _map(release: Release, table: ReleaseTable, *, populate: bool) -> npt.NDArray[np.uint8]:
    rows = release.map_slots(table, populate=populate)
    if populate:
        touch(rows)
    return rows
