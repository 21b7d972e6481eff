"""A release: both halves of a trained model, ready to serve, under one version.

On disk::

    manifest.json              kind "release"; the sha256 of its canonical bytes IS the version
    lookup/<table>.rows        quantised rows back to back, row i at byte i x row_bytes: made to be mapped
    lookup/id_maps/...         external id -> row
    ranker/upper.pt2           torch.export program: dense, embeddings -> logits
    ranker/pooling.pt2         of a model that reads a sequence: its rows, their number, candidates' rows -> pooled rows

A delta says in its manifest which release it is laid over, and has only what differs::

    lookup/<table>.rows        the rows that changed, and behind them those of new ids
    lookup/<table>.changed     int32 row numbers of the former, ascending
    lookup/id_maps/added/...   new ids, in the order of their rows; lookup/id_maps/dropped/... ids that it forgets

A table that is split over N lookup hosts has its rows and its id map in ``lookup/shard-<s>-of-<N>/`` instead, once for each
shard s. A host needs the manifest and its own part of the files: see `serving.release.parts`.

This module does not import torch: a lookup server ships bytes and never decodes them.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from multifacet.artifacts import MANIFEST_NAME, Artifact, ArtifactError
from multifacet.serving.release.index_check import check_index
from multifacet.serving.release.manifest import KEY_BYTES, ReleaseManifest
from multifacet.serving.release.mapped_files import MappedFiles, open_plain
from multifacet.serving.release.parts import choose_shard, files_of
from multifacet.serving.release.placing.placed_ids import PlacedIds
from multifacet.tables.ids import IdMap

if TYPE_CHECKING:
    from multifacet.serving.release.manifest import Precision, ReleaseTable
    from multifacet.serving.release.parts import Half

KIND = "release"
UPPER = "ranker/upper.pt2"
POOLING = "ranker/pooling.pt2"
ID_MAPS = "id_maps"
"""Folder of id maps, beside the rows that they are for."""
ADDED = "added"
DROPPED = "dropped"
"""Folders of a delta's ids, in that of id maps."""
_MAPPED = (".rows", ".safetensors", ".changed")
_ROW_NUMBER = np.dtype("<i4")


class Release:
    """A published model, opened.

    Attributes:
        version: sha256 (hex) of the manifest: equal content has an equal version. All shards and the ranker half have the
            same one.
        manifest: The release's description.
        shard: Which of `num_shards` shards was opened; None for a release that is not split, or was opened for all of them.
    """

    def __init__(self, artifact: Artifact, manifest: ReleaseManifest, shard: int | None = None):
        self._artifact = artifact
        self.manifest = manifest
        self.version: str = artifact.fingerprint
        self.shard = shard

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        verify: bool = True,
        half: Half | None = None,
        shard: int | None = None,
    ) -> Release:
        """Open a release.

        Args:
            path: Its directory.
            verify: Whether to read the files and compare their checksums. Names and sizes are compared in any case.
            half: Open this half only. The files of the other need not be there: a ranker needs no tables.
            shard: With half="lookup", for a release in shards: which of them. The others need not be there. None takes the
                only one that is there.

        Raises:
            ArtifactError: A file is missing, extra, truncated or changed (named in the message), the manifest is not
                a release's, a table's file does not have rows x row_bytes bytes, or there is no such shard.
        """
        chosen: list[tuple[ReleaseManifest, int | None]] = []

        def select(artifact: Artifact) -> list[str]:
            manifest = _read(artifact)
            chosen.append((manifest, choose_shard(artifact.path, manifest.num_shards, half, shard)))
            return files_of(artifact.manifest["files"], half, chosen[-1][1])

        if os.path.lexists(Path(path) / MANIFEST_NAME):
            os.close(open_plain(Path(path) / MANIFEST_NAME))  # a pipe in its place would be waited for
        artifact = Artifact.open(path, kind=KIND, verify=verify, select=select)
        return cls(artifact, *chosen[-1])

    @property
    def path(self) -> Path:
        """The release's directory."""
        return self._artifact.path

    @property
    def precision(self) -> Precision:
        """The precision asked for at publishing."""
        return self.manifest.precision

    @property
    def tables(self) -> tuple[ReleaseTable, ...]:
        """The tables; see `ReleaseManifest` for the upper model's slots."""
        return self.manifest.tables

    @property
    def num_shards(self) -> int:
        """How many lookup hosts its tables are split over."""
        return self.manifest.num_shards

    @property
    def base(self) -> str:
        """Version of the release that it is laid over; empty for a whole release."""
        return self.manifest.base.version if self.manifest.base is not None else ""

    @property
    def lookup_bytes(self) -> int:
        """Bytes of the lookup half, or of this shard of it: what it takes of memory once all of it was read.

        Those of a delta are its own, without its base's.
        """
        files: Mapping[str, Mapping[str, int]] = self._artifact.manifest["files"]
        return sum(files[name]["bytes"] for name in files_of(files, "lookup", self.shard))

    @property
    def upper_path(self) -> Path:
        """The exported upper model."""
        return self._artifact.file(UPPER)

    @property
    def pooling_path(self) -> Path:
        """The exported pooling of the sequence.

        Raises:
            ArtifactError: The model reads none.
        """
        return self._artifact.file(POOLING)

    def map_rows(self, table: ReleaseTable, *, populate: bool = False) -> npt.NDArray[np.uint8]:
        """As `map_slots`, without what stands before the rows: uint8 [rows, row_bytes], not contiguous if there is any."""
        start = KEY_BYTES if table.slot_bytes else 0
        return self.map_slots(table, populate=populate)[:, start : start + table.row_bytes]

    def map_slots(self, table: ReleaseTable, *, populate: bool = False) -> npt.NDArray[np.uint8]:
        """Map a table into memory, read-only; of a split table the part of the shard that was opened.

        Args:
            table: One of `tables`.
            populate: Whether to map every page at once instead of at its first use.

        Returns:
            uint8 [rows, stored_bytes]; the file stays mapped as long as the array lives.

        Raises:
            ArtifactError: The table is split, and no shard was opened.
        """
        self._check_opened(table)
        if not table.stored_rows(self.shard):
            return np.empty((0, table.stored_bytes), np.uint8)
        flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
        descriptor = open_plain(self._artifact.file(table.file(self.shard)))
        try:
            mapped = mmap.mmap(descriptor, 0, flags=flags, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, dtype=np.uint8).reshape(table.stored_rows(self.shard), table.stored_bytes)

    def changed_rows(self, table: ReleaseTable) -> npt.NDArray[np.int32]:
        """Read which of the base's rows a delta changes.

        Args:
            table: One of `tables`.

        Returns:
            int32 [changed], ascending, in the order of the table's file.

        Raises:
            ArtifactError: They do not ascend, or are beyond the base's rows.
        """
        self._check_opened(table)
        path = self._artifact.file(table.changed_file(self.shard))
        descriptor = open_plain(path)
        with os.fdopen(descriptor, "rb") as stream:
            rows = np.fromfile(stream, _ROW_NUMBER)
        num_changed, num_added = table.changes(self.shard)
        base_rows = table.rows_of(self.shard) - num_added
        ascend = len(rows) == num_changed and bool((rows[1:] > rows[:-1]).all())
        if not ascend or (len(rows) and not 0 <= rows[0] <= rows[-1] < base_rows):
            raise ArtifactError(
                f"{path}: {num_changed} ascending rows below {base_rows} were expected. Publish the delta again."
            )
        return rows.astype(np.int32, copy=False)

    def changed_ids(self, table: ReleaseTable, folder: Literal["added", "dropped"]) -> IdMap | None:
        """Load the ids that a delta adds to a table's id map, or drops of it.

        Returns:
            An exact map of them, their rows in the order of the added ones; None if there are none.

        Raises:
            ArtifactError: It is no such map.
        """
        self._check_opened(table)
        directory = self.path / table.folder(self.shard) / ID_MAPS / folder
        if f"{directory.relative_to(self.path)}/{table.id_map}.json" not in self._artifact.manifest["files"]:
            return None
        return self._load_map(directory, table)

    def mapped_files(self, *, rows: bool = True) -> MappedFiles:
        """Watch the files that are mapped while the lookup half is served.

        Args:
            rows: Whether the tables are among them, beside the id maps.

        Raises:
            ArtifactError: One is not a plain file.
        """
        files: Mapping[str, Mapping[str, str]] = self._artifact.manifest["files"]
        names = [
            name for name in files_of(files, "lookup", self.shard) if name.endswith(".safetensors" if not rows else _MAPPED)
        ]
        return MappedFiles(self.path, [(name, files[name]["sha256"]) for name in names])

    def id_map(self, name: str, keys: npt.NDArray[np.int64] | None = None) -> IdMap | PlacedIds:
        """Load an id map by its name.

        Args:
            name: Its name.
            keys: Where ids that stand in a table are in memory (`keys_of`); None maps the table once more.

        Returns:
            Of a split table, an exact map of the ids of the shard that was opened, or a hashed map of the whole table.

        Raises:
            ArtifactError: Another release has taken this one's place since it was opened, the tables are split and no shard
                was opened, or the map is none, of another type, or names rows beyond its table.
        """
        table = next(table for table in self.tables if table.id_map == name)
        self._check_opened(table)
        if self.base:
            raise ArtifactError(f"{self.path} is a delta: its ids are those of {self.base[:12]} and its own changes to them")
        keyed = self.manifest.keyed_table(name)
        folder = self.path / table.folder(self.shard) / ID_MAPS
        if keyed is None:
            return self._load_map(folder, table)
        try:
            placed = PlacedIds.load(folder, name, keys_of(self.map_slots(keyed)) if keys is None else keys)
        except (ValueError, OSError) as error:
            raise ArtifactError(f"{folder / name} cannot be read as placed ids: {error}. Publish the model again.") from error
        self._artifact.check_unreplaced()
        return placed

    def _load_map(self, folder: Path, table: ReleaseTable) -> IdMap:
        name = table.id_map
        try:
            loaded = IdMap.load(folder, name)
        except (ValueError, OSError) as error:
            raise ArtifactError(f"{folder / name} cannot be read as an id map: {error}. Publish the model again.") from error
        self._artifact.check_unreplaced()
        if loaded.index is not None:
            check_index(loaded.index.arrays, loaded.num_rows, folder / name)
        expected = self.manifest.id_types[table.feature]
        if loaded.id_type != expected:
            raise ArtifactError(
                f"{folder / name} is of {loaded.id_type} ids, the manifest says {expected}. Publish the model again."
            )
        return loaded

    def _check_opened(self, table: ReleaseTable) -> None:
        if table.shard_rows and self.shard is None:
            raise ArtifactError(
                f"{self.path}: table {table.name!r} is split into {self.num_shards} shards: open one of them, "
                'Release.open(path, half="lookup", shard=0)'
            )

    def __repr__(self) -> str:
        num_rows = sum(table.rows_of(self.shard) for table in self.tables)
        over = f", over={self.base[:12]}" if self.base else ""
        shards = "" if self.num_shards == 1 else f", shards={self.num_shards}"
        shards = shards if self.shard is None else f", shard={self.shard} of {self.num_shards}"
        sequence = self.manifest.sequence
        reads = "" if sequence is None else f", {sequence.feature}={sequence.length}"
        return (
            f"Release({self.manifest.name}, tables={len(self.tables)}, rows={num_rows}, dim={self.manifest.dim}{reads}, "
            f"precision={self.precision}{shards}{over}, version={self.version[:12]})"
        )


def keys_of(slots: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The ids that stand before the rows of a table but the last: int64 [rows - 1], a view of uint8 [rows, slot_bytes]."""
    keys: npt.NDArray[np.int64] = slots[:-1, :KEY_BYTES].view("<i8")[:, 0]
    return keys


def _read(artifact: Artifact) -> ReleaseManifest:
    """The manifest, checked: of every part, whether it is there or not."""
    try:
        manifest = ReleaseManifest.model_validate(artifact.manifest)
    except ValidationError as error:
        raise ArtifactError(f"{artifact.path}: the manifest is not a release's: {error}") from error
    files: Mapping[str, Mapping[str, object]] = artifact.manifest["files"]
    for table in manifest.tables:
        for shard in range(manifest.num_shards) if table.shard_rows else (None,):
            sizes = {table.file(shard): (table.stored_rows(shard), table.stored_bytes)}
            if table.delta is not None:
                sizes[table.changed_file(shard)] = (table.changes(shard)[0], _ROW_NUMBER.itemsize)
            for name, (rows, row_bytes) in sizes.items():
                if name not in files or files[name]["bytes"] != rows * row_bytes:
                    given = files.get(name, {}).get("bytes", "no")
                    raise ArtifactError(
                        f"{artifact.path}: {name} has {given} bytes: {rows} rows of {row_bytes} bytes "
                        f"take {rows * row_bytes}. Publish the model again."
                    )
    for program in (UPPER, POOLING) if manifest.sequence is not None else (UPPER,):
        if program not in files:
            raise ArtifactError(f"{artifact.path}: there is no {program}. Publish the model again.")
    return manifest
