"""The lookup half of one release: ids in, rows out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from multifacet.artifacts import ArtifactError
from multifacet.serving.lookup.kernel_plan import LookupPlan
from multifacet.serving.lookup.rows import MappedRows, SendBuffer, touch
from multifacet.serving.protocol import lookup_pb2
from multifacet.serving.release.sharding.hashed_shard import HashedShard
from multifacet.serving.wire.frames import padded
from multifacet.serving.wire.packing import IdArray

if TYPE_CHECKING:
    from multifacet.serving.release.manifest import ReleaseTable
    from multifacet.serving.release.mapped_files import MappedFiles
    from multifacet.serving.release.release import Release
    from multifacet.tables.ids import IdMap

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

    Attributes:
        shard_fields: What descriptions and answers say of the shard; empty for a whole release.
        files: Its mapped files: rows may be sent only if these are still intact after they were gathered.
        plan: The same tables for the lookup kernel; for one thread.

    Raises:
        ArtifactError: An id map does not belong to its table, or names rows beyond it.
    """

    def __init__(
        self,
        release: Release,
        *,
        populate: bool = True,
        huge_pages: bool = False,
        max_ids: int = 16384,
        files: MappedFiles | None = None,
    ):
        self.release = release
        self.files = release.mapped_files(rows=not huge_pages) if files is None else files
        self.id_types: Mapping[str, str] = release.manifest.id_types
        self.shard_fields: dict[str, int] = {}
        if release.shard is not None:
            self.shard_fields = {"shard_index": release.shard, "num_shards": release.num_shards}
        self._id_maps = {table.id_map: _load_id_map(release, table) for table in release.tables}
        if populate:
            for id_map in self._id_maps.values():
                for array in id_map.index.arrays.values() if id_map.index is not None else ():
                    touch(array)
        for table in release.tables:
            id_map, num_rows = self._id_maps[table.id_map], table.rows_of(release.shard)
            if id_map.num_rows != num_rows or id_map.num_hashes != 1:
                raise ArtifactError(
                    f"{release.path}: table {table.name!r} has {num_rows} rows, its id map maps to {id_map.num_rows} "
                    f"by {id_map.num_hashes} hashes; publish the model again"
                )
        self._tables = [
            (
                table.feature,
                table.row_bytes,
                table,
                (table.feature, table.id_map),
                MappedRows(_map(release, table, populate=populate and not huge_pages), huge_pages=huge_pages),
            )
            for table in release.tables
        ]
        tables = [(table, rows) for _, _, table, _, rows in self._tables]
        self.plan = LookupPlan(release, tables, self._id_maps, max_ids)
        self._warm()

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
        mapping = self._id_maps[id_map]
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


def _load_id_map(release: Release, table: ReleaseTable) -> IdMap | HashedShard:
    id_map = release.id_map(table.id_map)
    if table.shard_rows and release.shard is not None and id_map.index is None:
        return HashedShard(id_map, release.shard, release.num_shards)
    return id_map


def _map(release: Release, table: ReleaseTable, *, populate: bool) -> npt.NDArray[np.uint8]:
    rows = release.map_rows(table, populate=populate)
    if populate:
        touch(rows)
    return rows
