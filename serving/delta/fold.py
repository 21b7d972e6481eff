"""Folds a delta and all that it lies over into a whole release."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from multifacet.serving.delta.part import Part, parts_of, parts_with
from multifacet.serving.lookup.changed_ids import ChangedIds, is_placed
from multifacet.serving.release.placing.placed_ids import PlacedIds
from multifacet.serving.release.release import Release
from multifacet.serving.release.sharding.split import ids_by_row
from multifacet.serving.release.writer import ReleaseWriter
from multifacet.tables.ids import IdMap

if TYPE_CHECKING:
    import numpy.typing as npt

    from multifacet.serving.release.manifest import ReleaseTable

logger = logging.getLogger(__name__)

_CHUNK_BYTES: Final = 64 << 20


def fold(path: str | os.PathLike[str], folded_path: str | os.PathLike[str], *, replace: bool = False) -> Release:
    """Write the whole release that a delta is.

    Every id has the same row, every request the same score, under another version. Ids that were dropped are nowhere in it.
    Rows go through in blocks; the ids, and where their rows are, are in memory at once. Run it beside what serves (`nice`), and
    roll the folded release out like any other.

    Args:
        path: The delta, its base beside it.
        folded_path: Directory to write.
        replace: Whether a release that is there already may be replaced.

    Returns:
        The release, opened.

    Raises:
        ArtifactError: A release is damaged or missing, or the release exists already.
    """
    release, parts = parts_of(path)
    manifest = release.manifest
    names = {table.id_map: table for table in manifest.tables}
    orders = {name: _order(table, parts) for name, table in names.items()}
    writer = ReleaseWriter(
        folded_path,
        name=manifest.name,
        parents=manifest.parents,
        dense_features=manifest.dense_features,
        dim=manifest.dim,
        precision=manifest.precision,
        id_maps={name: id_map for name, (id_map, _) in orders.items()},
        num_shards=manifest.num_shards,
        sequence=manifest.sequence,
        knows_until=manifest.knows_until,
        layout="placed" if any(is_placed(known) for part in parts for known in part.half.id_maps.values()) else "plain",
        replace=replace,
    )
    with writer:
        for table in manifest.tables:
            writer.add_table(
                table.name,
                _chunks(table, orders[table.id_map][1]),
                feature=table.feature,
                node_type=table.node_type,
                facet=table.facet,
                id_map=table.id_map,
                reads=table.reads,
                list_length=table.list_length,
            )
        writer.copy_programs(release)
    folded = writer.open()
    logger.info("folded %r into %r", release, folded)
    return folded


class ServedTable(NamedTuple):
    """A table as a lookup server answers from it: shards put together, deltas laid over.

    Attributes:
        table: Its description.
        ids: The id of each row but the last, which unknown ids have; None where ids are hashed to rows.
        rows: uint8 [num_rows, row_bytes], encoded.
    """

    table: ReleaseTable
    ids: npt.NDArray[Any] | None
    rows: torch.Tensor


def read_tables(path: str | os.PathLike[str]) -> Iterator[ServedTable]:
    """Read a release's tables, one whole table at a time: of a release in shards all shards, of a delta its bases too.

    Raises:
        ArtifactError: A release or a shard is damaged or missing.
    """
    release, parts = parts_of(path)
    for table in release.tables:
        id_map, rows = _order(table, parts)
        yield ServedTable(table, None if id_map.index is None else ids_by_row(id_map), torch.cat(list(_chunks(table, rows))))


def _order(table: ReleaseTable, parts: list[Part]) -> tuple[IdMap, list[tuple[Part, npt.NDArray[np.int32]]]]:
    """The whole id map, and where its rows are, in their order: rows int32 of one part after the other."""
    rows: list[tuple[Part, npt.NDArray[np.int32]]] = []
    ids: list[pa.Array] = []
    sharing = parts_with(table, parts)
    for part in sharing:
        known = part.id_map(table.id_map)
        if isinstance(known, PlacedIds) or (isinstance(known, IdMap) and known.index is not None):
            known = ChangedIds.of(known)
        if not isinstance(known, ChangedIds):
            oov_row = getattr(known, "oov_row", None)
            rows.append((part, np.arange(known.num_rows if oov_row is None else oov_row, dtype=np.int32)))
            continue
        held = known.known_ids()
        held_rows = known.rows(held)
        order = np.argsort(held_rows, kind="stable")
        ids.append(held.take(pa.array(order)))
        rows.append((part, held_rows[order]))
    first = sharing[0].id_map(table.id_map)
    if not ids:
        size = sum(len(part_rows) for _, part_rows in rows)
        return IdMap.hashed(size, id_type=first.id_type, seed=first.seed), rows
    rows.append((sharing[0], np.array([first.oov_row], np.int32)))
    return IdMap.exact(pa.concat_arrays(ids)), rows


def _chunks(table: ReleaseTable, rows: list[tuple[Part, npt.NDArray[np.int32]]]) -> Iterator[torch.Tensor]:
    step = max(1, _CHUNK_BYTES // table.row_bytes)
    for part, part_rows in rows:
        for start in range(0, len(part_rows), step):
            yield torch.from_numpy(part.read(table.name, part_rows[start : start + step]).copy())
