"""Writes a delta: the rows that changed, new and dropped ids, and the upper model, over a release that is there."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import pyarrow as pa
import torch

from multifacet.artifacts import MANIFEST_NAME, ArtifactError, ArtifactWriter
from multifacet.serving.delta.part import Part, parts_of, parts_with
from multifacet.serving.lookup.changed_ids import ChangedIds, is_placed
from multifacet.serving.release.manifest import ReleaseBase, ReleaseTable, TableDelta
from multifacet.serving.release.parts import shard_folder
from multifacet.serving.release.pooling import Pooling
from multifacet.serving.release.release import ADDED, DROPPED, ID_MAPS, KIND, POOLING, UPPER, Release
from multifacet.serving.release.sharding.hashed_shard import HashedShard
from multifacet.serving.release.sharding.shards import shard_of_keys
from multifacet.serving.release.upper import UpperModel
from multifacet.serving.release.writer import READ_ONLY, copy_programs, make_read_only
from multifacet.tables.ids import IdColumn, IdMap

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor
    from torch.export import ExportedProgram

    from multifacet.serving.lookup.changed_ids import KnownIds
    from multifacet.tables.ids import Ids

logger = logging.getLogger(__name__)

MAX_DEPTH: Final = 8
"""Deltas from a whole release to the last one; the next is published whole, or folded."""


@dataclass
class _Changes:
    """What one table has of its own in one part."""

    rows: list[npt.NDArray[np.int32]] = field(default_factory=list)
    content: list[npt.NDArray[np.uint8]] = field(default_factory=list)


@dataclass
class _IdChanges:
    """What becomes of one id map in one part."""

    known: KnownIds
    added: pa.Array
    dropped: pa.Array


class DeltaWriter:
    """Writes a delta beside its destination, and moves it there in one step when the ``with`` block ends well.

    Rows may come from anywhere: from a trained model (`publish_delta`), or from a tracker of what training touched. Of a row
    that is given twice the last content counts. A delta in which nothing changed is one, too.

    Args:
        path: Directory to write; it appears whole or not at all.
        base: The release to lie over.
        parents: Fingerprints of what the rows come from.
        knows_until: Time until which the rows know of events, ISO 8601, if that is known.
        replace: Whether a release that is there already may be replaced.

    Attributes:
        base: The base, opened.
        num_bytes: Bytes of rows so far.

    Raises:
        ArtifactError: The base is damaged, or has as many deltas below it as there may be: `fold` it.

    Example:
        ``with DeltaWriter(path, base, parents=(fingerprint,)) as writer: writer.change_rows("pin_kge", rows, encoded)``
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        base: str | os.PathLike[str],
        *,
        parents: tuple[str, ...],
        knows_until: str | None = None,
        replace: bool = False,
    ):
        self.base, self.parts = parts_of(base)
        self.num_bytes = 0
        self._depth = 1 + (self.base.manifest.base.depth if self.base.manifest.base is not None else 0)
        if self._depth > MAX_DEPTH:
            raise ArtifactError(f"{base} lies over {MAX_DEPTH} releases: fold it (multifacet fold {base} FOLDED), and use that")
        self._writer = ArtifactWriter(path, kind=KIND, replace=replace)
        self._parents = parents
        self._knows_until = knows_until
        self._tables = {table.name: table for table in self.base.tables}
        self._changes = {
            (table.name, part.shard): _Changes() for table in self.base.tables for part in parts_with(table, self.parts)
        }
        self._ids: dict[tuple[str, int | None], _IdChanges] = {}
        self._has_upper = False

    def __enter__(self) -> Self:
        self._writer.__enter__()
        for folder in ("lookup", "ranker"):
            (self._writer.directory / folder).mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            try:
                self._finish()
            except BaseException as failure:
                self._writer.__exit__(type(failure), failure, failure.__traceback__)
                raise
        self._writer.__exit__(kind, error, trace)
        if kind is None:
            (self._writer.path / MANIFEST_NAME).chmod(READ_ONLY)

    def change_ids(self, id_map: str, *, added: Ids = (), dropped: Ids = ()) -> None:
        """Add ids to an exact id map, or drop ids of it. Call it once a map, before rows of the added ids are given.

        Every table of the map then needs a row for each added id.

        Args:
            id_map: Name of the map.
            added: Ids that the base does not know.
            dropped: Ids that it does; they are unknown from this version on. Their rows and their text stay in the base's
                files.

        Raises:
            ArtifactError: There is no such map, it is hashed, an added id is known already or a dropped one is not.
        """
        table = next((table for table in self.base.tables if table.id_map == id_map), None)
        if table is None:
            raise ArtifactError(f"{self.base.path} has no id map {id_map!r}: {sorted({t.id_map for t in self.base.tables})}")
        if any(name == id_map for name, _ in self._ids):
            raise ArtifactError(f"the ids of {id_map!r} were changed already: give all of them at once")
        kind = pa.int64() if self.base.manifest.id_types[table.feature] == "int64" else pa.large_string()
        parts = parts_with(table, self.parts)
        dealt = [self._deal(pa.array(ids, kind), len(parts)) for ids in (added, dropped)]
        for place, part in enumerate(parts):
            known = part.id_map(id_map)
            if not isinstance(known, ChangedIds):
                if isinstance(known, HashedShard) or known.index is None:
                    raise ArtifactError(f"id map {id_map!r} is hashed: every id has a row already, and none can be dropped")
                known = ChangedIds.of(known)
            new, gone = dealt[0][place], dealt[1][place]
            self._ids[id_map, part.shard] = _IdChanges(known.change(new, gone), new, gone)

    def rows_of(self, table: str, ids: Ids) -> list[tuple[Part, npt.NDArray[np.int64], npt.NDArray[np.int32]]]:
        """Where some ids' rows are.

        Args:
            table: Name of a table.
            ids: [n] of its map's type.

        Returns:
            For each part of the table its ids' positions among those given, and their rows there.
        """
        described = self._table(table)
        parts = parts_with(described, self.parts)
        column = IdColumn.of(ids, self.base.manifest.id_types[described.feature])
        found = []
        shards = shard_of_keys(column.keys, len(parts)) if len(parts) > 1 else np.zeros(len(column), np.int64)
        given = _arrow(ids, column)
        for place, part in enumerate(parts):
            positions = np.flatnonzero(shards == place)
            found.append((part, positions, self.known(described, part).rows(given.take(pa.array(positions)))))
        return found

    def known(self, table: ReleaseTable, part: Part) -> KnownIds:
        """The ids of a table after what was added and dropped so far."""
        changed = self._ids.get((table.id_map, part.shard))
        return part.id_map(table.id_map) if changed is None else changed.known

    def change_vectors(self, table: str, ids: Ids, content: Tensor | npt.NDArray[np.uint8]) -> None:
        """Give ids other rows.

        Args:
            table: Name of a table.
            ids: [n] that the base knows, or that were added.
            content: uint8 [n, row_bytes], encoded in the base's precision.

        Raises:
            ArtifactError: An id is unknown, or the content has another shape.
        """
        rows = self._content(table, content, len(ids))
        for part, positions, found in self.rows_of(table, ids):
            unknown = np.flatnonzero(found == getattr(self.known(self._table(table), part), "oov_row", None))
            if len(unknown):
                raise ArtifactError(f"table {table!r}: id {ids[int(positions[unknown[0]])]!r} is unknown: add it first")
            self.put(table, part, found, rows[positions])

    def change_rows(self, table: str, rows: npt.ArrayLike, content: Tensor | npt.NDArray[np.uint8]) -> None:
        """Give rows another content: what a tracker of touched rows knows.

        Args:
            table: Name of a table that is not split over hosts.
            rows: [n] row numbers of the base's table; those of added ids follow behind it in the order of the ids.
            content: uint8 [n, row_bytes], encoded in the base's precision.

        Raises:
            ArtifactError: A row is beyond the table, the table is split, or the content has another shape.
        """
        described = self._table(table)
        if described.shard_rows:
            raise ArtifactError(
                f"table {table!r} is split over {self.base.num_shards} hosts: change it by ids (change_vectors)"
            )
        if is_placed(self.parts[0].id_map(described.id_map)):
            raise ArtifactError(
                f"table {table!r} has its rows where their ids say, not where training has them: change it by ids "
                "(change_vectors)"
            )
        numbers = np.asarray(rows)
        part = self.parts[0]
        stop = self.known(described, part).num_rows
        if numbers.ndim != 1 or (len(numbers) and not np.issubdtype(numbers.dtype, np.integer)):
            raise ArtifactError(f"table {table!r}: rows are {numbers.dtype} {list(numbers.shape)}, expected integers [n]")
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < stop:
            raise ArtifactError(
                f"table {table!r}: rows {numbers.min()} to {numbers.max()} were given, and it has {stop}, from 0"
            )
        self.put(table, part, numbers.astype(np.int32), self._content(table, content, len(numbers)))

    def change_unknown(self, table: str, content: Tensor | npt.NDArray[np.uint8]) -> None:
        """Give unknown ids another row: uint8 [1, row_bytes]."""
        row = self._content(table, content, 1)
        described = self._table(table)
        for part in parts_with(described, self.parts):
            oov_row = getattr(part.id_map(described.id_map), "oov_row", None)
            if oov_row is None:
                raise ArtifactError(f"table {table!r} is hashed: it has no row of unknown ids")
            self.put(table, part, np.array([oov_row], np.int32), row)

    def put(self, table: str, part: Part, rows: npt.NDArray[np.int32], content: npt.NDArray[np.uint8]) -> None:
        """Give rows of one part another content; rows int32 [n], content uint8 [n, row_bytes], as they are."""
        changes = self._changes[table, part.shard]
        changes.rows.append(rows)
        changes.content.append(content)
        self.num_bytes += content.nbytes

    def add_upper(self, program: ExportedProgram) -> None:
        """Write the upper model; without it, and the pooling, those of the base stay.

        Raises:
            ArtifactError: It does not take the tables.
        """
        program.example_inputs = None
        manifest = self.base.manifest
        UpperModel(program, num_dense=len(manifest.dense_features), num_slots=manifest.num_slots, dim=manifest.dim)
        torch.export.save(program, self._writer.directory / UPPER)
        self._has_upper = True

    def add_pooling(self, program: ExportedProgram) -> None:
        """Write the pooling of the sequence.

        Raises:
            ArtifactError: It does not take the sequence's rows, or the base reads none.
        """
        sequence = self.base.manifest.sequence
        if sequence is None:
            raise ArtifactError(f"{self.base.path} reads no sequence: there is nothing to pool")
        program.example_inputs = None
        Pooling(program, length=sequence.length, num_facets=len(sequence.slots), dim=self.base.manifest.dim)
        torch.export.save(program, self._writer.directory / POOLING)

    def open(self) -> Release:
        """The delta that the block wrote; its files were hashed just now."""
        return Release.open(self._writer.path, verify=False)

    def _table(self, name: str) -> ReleaseTable:
        if name not in self._tables:
            raise ArtifactError(f"{self.base.path} has no table {name!r}, but {', '.join(self._tables)}")
        return self._tables[name]

    def _content(self, table: str, content: Tensor | npt.NDArray[np.uint8], num_rows: int) -> npt.NDArray[np.uint8]:
        given: npt.NDArray[Any] = np.asarray(content)
        row_bytes = self._table(table).row_bytes
        if given.dtype != np.uint8 or given.shape != (num_rows, row_bytes):
            raise ArtifactError(
                f"table {table!r}: content is {given.dtype} {list(given.shape)}, expected uint8 {[num_rows, row_bytes]}, "
                f"encoded as {self._table(table).precision}"
            )
        return given

    def _deal(self, ids: pa.Array, num_parts: int) -> list[pa.Array]:
        if num_parts == 1:
            return [ids]
        shards = shard_of_keys(IdColumn.of(ids).keys, num_parts)
        return [ids.take(pa.array(np.flatnonzero(shards == place))) for place in range(num_parts)]

    def _finish(self) -> None:
        tables = [self._write_table(table) for table in self.base.tables]
        for (name, shard), changes in self._ids.items():
            for folder, ids in ((ADDED, changes.added), (DROPPED, changes.dropped)):
                if len(ids):
                    root = "lookup" if shard is None else shard_folder(shard, self.base.num_shards)
                    split = any(table.id_map == name and table.shard_rows for table in self.base.tables)
                    directory = self._writer.directory / (root if split else "lookup") / ID_MAPS / folder
                    directory.mkdir(parents=True, exist_ok=True)
                    IdMap.exact(ids).save(directory, name)
        sequence = self.base.manifest.sequence
        if not self._has_upper:
            copy_programs(self.base, self._writer.directory)
        elif sequence is not None and not (self._writer.directory / POOLING).exists():
            raise ArtifactError(f"{self._writer.path}: the upper model was given, the pooling of its sequence was not")
        make_read_only(self._writer.directory)
        manifest = self.base.manifest.model_copy(
            update={
                "parents": self._parents,
                "knows_until": self._knows_until,
                "tables": tuple(tables),
                "base": ReleaseBase(version=self.base.version, depth=self._depth),
            }
        )
        self._writer.manifest.update(manifest.model_dump(mode="json", exclude_defaults=True))

    def _write_table(self, table: ReleaseTable) -> ReleaseTable:
        counts: list[tuple[int, int]] = []
        for part in parts_with(table, self.parts):
            shard = part.shard if table.shard_rows else None
            num_rows = part.num_rows(table)
            num_added = self.known(table, part).num_rows - num_rows
            rows, content = _last(self._changes[table.name, part.shard], table.row_bytes)
            num_changed = int(np.searchsorted(rows, num_rows))
            if len(rows) - num_changed != num_added:
                raise ArtifactError(
                    f"table {table.name!r} has {num_added} new ids, and rows of {len(rows) - num_changed} of them were given"
                )
            path = self._writer.directory / table.file(shard)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content.data)
            (self._writer.directory / table.changed_file(shard)).write_bytes(rows[:num_changed].astype("<i4").data)
            counts.append((num_changed, num_added))
        changed, added = (tuple(values) for values in zip(*counts, strict=True))
        shard_rows = tuple(rows + more for rows, more in zip(table.shard_rows, added, strict=False))
        return table.model_copy(
            update={
                "rows": table.rows + sum(added),
                "slot_bytes": 0,  # its own rows lie plainly
                "shard_rows": shard_rows,
                "delta": TableDelta(changed=changed, added=added),
            }
        )


def _last(changes: _Changes, row_bytes: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Rows ascending, each once, with the content that was given last."""
    if not changes.rows:
        return np.empty(0, np.int32), np.empty((0, row_bytes), np.uint8)
    rows, content = np.concatenate(changes.rows), np.concatenate(changes.content)
    if bool((rows[1:] > rows[:-1]).all()):
        return rows, content
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    last = np.append(rows[1:] != rows[:-1], np.ones(min(1, len(rows)), bool))
    return rows[last], content[order[last]]


def _arrow(ids: Ids, column: IdColumn) -> pa.Array:
    return pa.array(ids, pa.int64() if column.id_type == "int64" else pa.large_string())
