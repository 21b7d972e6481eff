"""Writes a release piece by piece: a table need not fit into memory, nor exist as floats anywhere."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, get_args

import numpy as np
import torch

from multifacet.artifacts import MANIFEST_NAME, ArtifactError, ArtifactWriter
from multifacet.serving.release.manifest import Precision, ReleaseManifest, ReleaseSequence, ReleaseTable
from multifacet.serving.release.parts import shard_folder
from multifacet.serving.release.placing.perfect_hash import PerfectHash
from multifacet.serving.release.placing.placed_file import PlacedFile
from multifacet.serving.release.placing.placed_ids import save_places, slot_bytes
from multifacet.serving.release.pooling import Pooling
from multifacet.serving.release.release import ID_MAPS, KIND, POOLING, UPPER, Release
from multifacet.serving.release.sharding.shards import MAX_SHARDS, SHARD_SEED
from multifacet.serving.release.sharding.split import RowStream, TableSplit, ids_by_row, split_of
from multifacet.serving.release.upper import UpperModel
from multifacet.tables.codec import row_bytes

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from torch import Tensor
    from torch.export import ExportedProgram

    from multifacet.tables.ids import IdMap

logger = logging.getLogger(__name__)

Layout = Literal["plain", "placed"]
"""How the rows of a release lie: see `ReleaseWriter`."""
READ_ONLY = 0o444
_FOLDER = 0o755


class _Placing(NamedTuple):
    """Ids in the order of the rows that come, and where these rows go."""

    ids: npt.NDArray[np.int64]
    places: PerfectHash


class ReleaseWriter:
    """Writes a release beside its destination, and moves it there in one step when the ``with`` block ends well.

    Args:
        path: Directory to write; it appears whole or not at all.
        name: Name of the trained model (the arm).
        parents: Fingerprints of what the release was made of.
        dense_features: Names of the dense features, in the order of the columns.
        dim: Dimension of every embedding.
        precision: Format of the rows.
        id_maps: The id maps by name.
        num_shards: How many lookup hosts to split the tables over; 1 for a release that each holds whole.
        sequence: The sequence that the model reads, if any; `add_pooling` then too.
        knows_until: Time until which the model knows of events, ISO 8601, if that is known.
        layout: How rows lie: one behind the other (plain), or, where ids are exact int64, each where its id says (placed).
        replace: Whether a release that is there already may be replaced.

    Raises:
        ValueError: `num_shards` is out of range.

    Example:
        ``with ReleaseWriter(path, ...) as writer: writer.add_table("pin_kge", chunks, ...); writer.add_upper(program)``
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str,
        parents: tuple[str, ...],
        dense_features: tuple[str, ...],
        dim: int,
        precision: Precision,
        id_maps: dict[str, IdMap],
        num_shards: int = 1,
        sequence: ReleaseSequence | None = None,
        knows_until: str | None = None,
        layout: Layout = "plain",
        replace: bool = False,
    ):
        if layout not in get_args(Layout):
            raise ValueError(f"layout is {layout!r}: expected one of {', '.join(get_args(Layout))}")
        if not 1 <= num_shards <= MAX_SHARDS:
            raise ValueError(f"num_shards is {num_shards}: expected 1 to {MAX_SHARDS}")
        self._writer = ArtifactWriter(path, kind=KIND, replace=replace)
        self._name = name
        self._parents = parents
        self._dense_features = dense_features
        self._dim = dim
        self._precision = precision
        self._id_maps = id_maps
        self._num_shards = num_shards
        self._sequence = sequence
        self._knows_until = knows_until
        self._layout = layout
        self._placings: dict[tuple[str, int | None], _Placing] = {}
        self._splits: dict[str, TableSplit | None] = {}
        self._tables: list[ReleaseTable] = []

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

    def add_table(
        self,
        name: str,
        chunks: Iterable[Tensor],
        *,
        feature: str,
        node_type: str,
        facet: str | None,
        id_map: str,
        reads: Literal["id", "sequence", "both"] = "id",
        list_length: int = 0,
    ) -> None:
        """Write a table; those that read an id have their slots in the upper model's input in the order of the tables.

        Args:
            name: Unique name of the table.
            chunks: Its encoded rows, uint8 [n, row_bytes] each, one after the other.
            feature: Id feature whose ids choose the rows.
            node_type: Node type of the graph that the ids belong to.
            facet: Pretraining that the table started from, if any.
            id_map: Name of the id map that finds the row of an id.
            reads: Whether its rows are of the feature's id, of the ids of the sequence, or of both.
            list_length: Ids that the feature has at most, whose rows' mean is the slot; 0 for a feature of one id.

        Raises:
            ArtifactError: The rows are not as many or as long as they must be.
        """
        split = self._split(id_map)
        is_placed = self._is_placed(id_map)
        is_keyed = is_placed and all(other.id_map != id_map for other in self._tables)
        stored_bytes = row_bytes(self._dim, self._precision)
        table = ReleaseTable(
            name=name,
            feature=feature,
            node_type=node_type,
            facet=facet,
            rows=self._id_maps[id_map].num_rows,
            dim=self._dim,
            precision=self._precision,
            row_bytes=stored_bytes,
            slot_bytes=slot_bytes(stored_bytes) if is_keyed else 0,
            id_map=id_map,
            reads=reads,
            list_length=list_length,
            shard_rows=() if split is None else split.shard_rows,
        )
        with ExitStack() as opened:
            streams: list[RowStream] = []
            for shard in range(self._num_shards) if split is not None else (None,):
                path = self._writer.directory / table.file(shard)
                path.parent.mkdir(exist_ok=True)
                opening: AbstractContextManager[RowStream] = self._stream(path, table, shard) if is_placed else path.open("wb")
                streams.append(opened.enter_context(opening))
            num_rows = 0
            for chunk in chunks:
                if chunk.dtype != torch.uint8 or chunk.ndim != 2 or chunk.shape[1] != table.row_bytes:
                    raise ArtifactError(
                        f"table {name!r}, chunk from row {num_rows}: {chunk.dtype} {list(chunk.shape)}, expected uint8 "
                        f"[n, {table.row_bytes}]"
                    )
                rows = chunk.contiguous().numpy()
                if num_rows + len(rows) > table.rows:
                    raise ArtifactError(f"table {name!r} came with more rows than the {table.rows} of its id map {id_map!r}")
                if split is None:
                    streams[0].write(rows.data)
                else:
                    split.write(rows, num_rows, streams)
                num_rows += len(rows)
        if num_rows != table.rows:
            raise ArtifactError(f"table {name!r} came with {num_rows} rows, its id map {id_map!r} maps to {table.rows}")
        self._tables.append(table)

    def _is_placed(self, id_map: str) -> bool:
        """Whether rows stand where the ids of a map say."""
        given = self._id_maps[id_map]
        return self._layout == "placed" and given.index is not None and given.id_type == "int64"

    def _stream(self, path: Path, table: ReleaseTable, shard: int | None) -> PlacedFile:
        placing = self._placing(table.id_map, shard)
        keys = placing.ids if table.slot_bytes else None
        return PlacedFile(path, placing.places.numbers(placing.ids), keys, table.row_bytes, table.stored_bytes)

    def _placing(self, id_map: str, shard: int | None) -> _Placing:
        if (id_map, shard) not in self._placings:
            split = self._split(id_map)
            ordered = ids_by_row(self._id_maps[id_map] if split is None or shard is None else split.id_map(shard))
            ids = ordered.astype(np.int64, copy=False)
            self._placings[id_map, shard] = _Placing(ids, PerfectHash.build(ids))
        return self._placings[id_map, shard]

    def _split(self, id_map: str) -> TableSplit | None:
        if id_map not in self._splits:
            self._splits[id_map] = split_of(self._id_maps[id_map], self._num_shards)
            if self._num_shards > 1 and self._splits[id_map] is None:
                logger.warning(
                    "tables of id map %r lie whole in each of %d shards: %r of seed %d cannot be split, as ids of every shard "
                    "have any of its rows; train them with a hash of seed %d",
                    id_map,
                    self._num_shards,
                    self._id_maps[id_map],
                    self._id_maps[id_map].seed,
                    SHARD_SEED,
                )
        return self._splits[id_map]

    def add_upper(self, program: ExportedProgram) -> None:
        """Write the upper model, which must take the tables that were added, and the sequence.

        Raises:
            ArtifactError: It does not.
        """
        # Sample inputs are the one pickle in a plain program: see serving.upper. Without them, saving is deterministic.
        program.example_inputs = None
        num_slots = sum(table.reads != "sequence" for table in self._tables)
        num_slots += len(self._sequence.slots) if self._sequence is not None else 0
        UpperModel(program, num_dense=len(self._dense_features), num_slots=num_slots, dim=self._dim)
        torch.export.save(program, self._writer.directory / UPPER)

    def add_pooling(self, program: ExportedProgram) -> None:
        """Write the pooling of the sequence.

        Raises:
            ArtifactError: It does not take the sequence's rows.
            ValueError: The release has no sequence.
        """
        if self._sequence is None:
            raise ValueError(f"{self._writer.path}: a pooling was added, but the release has no sequence")
        program.example_inputs = None
        Pooling(program, length=self._sequence.length, num_facets=len(self._sequence.slots), dim=self._dim)
        torch.export.save(program, self._writer.directory / POOLING)

    def copy_programs(self, release: Release) -> None:
        """Take the upper model, and the pooling of the sequence, from a release that has the same tables."""
        copy_programs(release, self._writer.directory)

    def _finish(self) -> None:
        for name, id_map in self._id_maps.items():
            split = self._split(name)
            for shard in range(self._num_shards) if split is not None else (None,):
                folder = shard_folder(shard, self._num_shards) if shard is not None else "lookup"
                directory = self._writer.directory / folder / ID_MAPS
                directory.mkdir(parents=True, exist_ok=True)
                if self._is_placed(name):
                    save_places(self._placing(name, shard).places, directory, name)
                else:
                    (id_map if split is None or shard is None else split.id_map(shard)).save(directory, name)
        if not (self._writer.directory / UPPER).exists():
            raise ArtifactError(f"{self._writer.path}: no upper model was added")
        if self._sequence is not None and not (self._writer.directory / POOLING).exists():
            raise ArtifactError(f"{self._writer.path}: no pooling of the sequence was added")
        if self._num_shards > 1 and not any(table.shard_rows for table in self._tables):
            raise ArtifactError(
                f"{self._writer.path}: none of its tables can be split into {self._num_shards} shards; publish it whole"
            )
        make_read_only(self._writer.directory)
        tasks: tuple[Literal["ctr"], Literal["cvr"]] = ("ctr", "cvr")
        manifest = ReleaseManifest(
            name=self._name,
            parents=self._parents,
            precision=self._precision,
            dim=self._dim,
            dense_features=self._dense_features,
            tasks=tasks,
            tables=tuple(self._tables),
            num_shards=self._num_shards,
            sequence=self._sequence,
            knows_until=self._knows_until,
            id_types={table.feature: self._id_maps[table.id_map].id_type for table in self._tables},
        )
        # Without what a release does not have: its version then is the same as before there were shards and sequences.
        self._writer.manifest.update(manifest.model_dump(mode="json", exclude_defaults=True))

    def open(self) -> Release:
        """The release that the block wrote; its files were hashed just now."""
        return Release.open(self._writer.path, verify=False)


def copy_programs(release: Release, directory: Path) -> None:
    """Copy a release's programs, byte by byte."""
    shutil.copyfile(release.upper_path, directory / UPPER)
    if release.manifest.sequence is not None:
        shutil.copyfile(release.pooling_path, directory / POOLING)


def make_read_only(directory: Path) -> None:
    """Let everybody read a release, and nobody write to it.

    Servers have it mapped, as other users too, whatever the umask of who publishes: it is never written to again.
    """
    for path in (directory, *directory.rglob("*")):
        path.chmod(READ_ONLY if path.is_file() else _FOLDER)
