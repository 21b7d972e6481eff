"""Publishes a trained model as a delta: what differs from a release that is served."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from multifacet.artifacts import ArtifactError
from multifacet.serving.delta.part import Part, parts_with
from multifacet.serving.delta.writer import MAX_DEPTH, DeltaWriter
from multifacet.serving.lookup.changed_ids import ChangedIds
from multifacet.serving.release.bases import lineage
from multifacet.serving.release.placing.placed_ids import PlacedIds
from multifacet.serving.release.publisher import TrainedModel, publish
from multifacet.serving.release.release import Release
from multifacet.serving.release.sharding.split import ids_by_row
from multifacet.tables.codec import decode
from multifacet.tables.ids import IdMap

if TYPE_CHECKING:
    import numpy.typing as npt

    from multifacet.serving.release.manifest import ReleaseTable
    from multifacet.serving.release.publisher import ModelTable
    from multifacet.serving.release.writer import Layout

logger = logging.getLogger(__name__)

MOST_OF_BASE: Final = 0.25
"""Share of a whole release's bytes above which a delta saves too little to be one."""


class _TooMuchError(Exception):
    """More differs than a delta should hold."""


class _OtherModelError(Exception):
    """The model is another one than the base's."""


def publish_delta(
    model_path: str | os.PathLike[str],
    release_path: str | os.PathLike[str],
    base_path: str | os.PathLike[str],
    *,
    tolerance: float = 0.0,
    other: Literal["refuse", "whole"] = "refuse",
    replace: bool = False,
) -> Release:
    """Write what differs between a trained model and a release.

    The model's rows are encoded in the base's precision and compared with those that the base serves, so differences below
    the tolerance never add up. New ids are added, ids that the model has no more are dropped, and the upper model comes along.
    Where the base has `MAX_DEPTH` deltas below it, or more than a quarter of its bytes differ, the model is published whole
    instead, and the log says why.

    Args:
        model_path: Directory of a trained model (artefact of kind "ranking-model").
        release_path: Directory to write; servers look for the base beside it.
        base_path: The release to lie over, whole or a delta.
        tolerance: A row stays the base's if its distance from it is at most this share of the base's row's length, both
            decoded. 0 keeps only rows of equal bytes.
        other: What to do with a model of other tables, features or sizes than the base's.
        replace: Whether a release that is there already may be replaced.

    Returns:
        The release, opened; `Release.base` is empty where it was published whole.

    Raises:
        ArtifactError: The model or the base is damaged, or the model is another one and `other` says to refuse it.
        ValueError: The tolerance is no number from 0 to 1, or a table cannot be encoded.
    """
    if not 0 <= tolerance <= 1:
        raise ValueError(f"tolerance is {tolerance}: expected 0 to 1, a share of a row's length")
    model = TrainedModel.open(model_path)
    base = Release.open(base_path, verify=False)
    try:
        _check_same(model, base)
        return _write(model, release_path, base, tolerance, replace=replace)
    except _TooMuchError as error:
        why = str(error)
    except _OtherModelError as error:
        if other == "refuse":
            raise ArtifactError(f"{error}: publish it whole") from error
        why = str(error)
    logger.warning("published whole, not as a delta: %s", why)
    return publish(
        model_path, release_path, precision=base.precision, shards=base.num_shards, layout=_layout(base), replace=replace
    )


def _layout(base: Release) -> Layout:
    """The layout of the whole release that a base lies over, or is."""
    shard = 0 if base.num_shards > 1 else None
    whole = lineage(Release.open(base.path, verify=False, half="lookup", shard=shard), verify=False, half="lookup")[0]
    return "placed" if any(table.slot_bytes for table in whole.tables) else "plain"


def _write(model: TrainedModel, path: str | os.PathLike[str], base: Release, tolerance: float, *, replace: bool) -> Release:
    writer = DeltaWriter(
        path,
        base.path,
        parents=(model.artifact.fingerprint,),
        knows_until=model.manifest.lineage.knows_until,
        replace=replace,
    )
    whole_bytes = sum(table.rows * table.row_bytes for table in base.tables)
    changed_maps = set()
    _check_maps(model, writer.parts)
    with writer:
        for table in model.manifest.tables:
            described = next(other for other in base.tables if other.name == table.name)
            id_map = model.id_maps[table.id_map]
            if id_map.index is not None and table.id_map not in changed_maps:
                changed_maps.add(table.id_map)
                _change_ids(writer, described, id_map)
            _compare(writer, model, table, described, tolerance, MOST_OF_BASE * whole_bytes)
        writer.add_upper(model.upper)
        if model.pooling is not None:
            writer.add_pooling(model.pooling)
    release = writer.open()
    logger.info("published %s at %s: %d bytes of rows", release, release.path, writer.num_bytes)
    return release


def _check_same(model: TrainedModel, base: Release) -> None:
    """Refuse a model of other tables, features or sizes than a base's, and a base that has too many below it."""
    manifest = model.manifest
    told = (manifest.name, manifest.dim, manifest.dense_features, manifest.release_sequence())
    served = (base.manifest.name, base.manifest.dim, base.manifest.dense_features, base.manifest.sequence)
    tables = [
        (table.name, table.feature, table.node_type, table.facet, table.id_map, manifest.reads(table), table.list_length)
        for table in manifest.tables
    ]
    others = [
        (table.name, table.feature, table.node_type, table.facet, table.id_map, table.reads, table.list_length)
        for table in base.tables
    ]
    if told != served or tables != others:
        different = next((pair for pair in zip(tables, others, strict=False) if pair[0] != pair[1]), (told, served))
        raise _OtherModelError(
            f"{model.artifact.path} is another model than {base.path} serves ({different[0]}, not {different[1]})"
        )
    for table, other in zip(manifest.tables, base.tables, strict=True):
        id_map = model.id_maps[table.id_map]
        if id_map.id_type != base.manifest.id_types[table.feature]:
            raise _OtherModelError(f"table {table.name!r} has {id_map.id_type} ids, {base.path} others")
        if id_map.index is None and id_map.num_rows != other.rows:
            raise _OtherModelError(
                f"table {table.name!r} is hashed to {id_map.num_rows} rows, that of {base.path} has {other.rows}"
            )
    if base.manifest.base is not None and base.manifest.base.depth >= MAX_DEPTH:
        raise _TooMuchError(f"{base.path} has {MAX_DEPTH} deltas below it")


def _check_maps(model: TrainedModel, parts: list[Part]) -> None:
    """Refuse ids that find their rows by another rule than in the base: its rows would be other ids'."""
    for table in model.manifest.tables:
        mine, theirs = model.id_maps[table.id_map], parts[0].id_map(table.id_map)
        rules = [("exact", 0) if known.index is not None else ("hashed", known.seed) for known in (mine, theirs)]
        if rules[0] != rules[1]:
            raise _OtherModelError(
                f"ids of table {table.name!r} are {rules[0][0]} (seed {rules[0][1]}), in the base {rules[1][0]} "
                f"(seed {rules[1][1]})"
            )


def _change_ids(writer: DeltaWriter, table: ReleaseTable, id_map: IdMap) -> None:
    ids = _by_row(id_map)
    added, dropped = [], []
    for part, positions, rows in writer.rows_of(table.name, ids):
        known = part.id_map(table.id_map)
        oov_row = getattr(known, "oov_row", None)
        added.append(ids.take(pa.array(positions[rows == oov_row])))
        held = _known_ids(part, table)
        dropped.append(held.filter(pc.invert(pc.is_in(held, value_set=ids.take(pa.array(positions))))))
    new, gone = pa.concat_arrays(added), pa.concat_arrays(dropped)
    if len(new) or len(gone):
        writer.change_ids(table.id_map, added=new, dropped=gone)


def _known_ids(part: Part, table: ReleaseTable) -> pa.Array:
    known = part.id_map(table.id_map)
    if isinstance(known, IdMap | PlacedIds):
        known = ChangedIds.of(known)
    if not isinstance(known, ChangedIds):
        raise ArtifactError(f"id map {table.id_map!r} is exact in the model and hashed in the base: publish it whole")
    return known.known_ids()


def _by_row(id_map: IdMap) -> pa.Array:
    return pa.array(ids_by_row(id_map), pa.int64() if id_map.id_type == "int64" else pa.large_string())


def _compare(
    writer: DeltaWriter, model: TrainedModel, table: ModelTable, described: ReleaseTable, tolerance: float, most_bytes: float
) -> None:
    """Give the writer a table's rows that differ."""
    places = _places(writer, model.id_maps[table.id_map], described)
    start = 0
    for chunk in model.encoded(table, described.precision):
        content = chunk.numpy()
        for part, targets in places:
            rows = targets[start : start + len(content)]
            there = np.flatnonzero(rows >= 0)
            rows, mine = rows[there], content[there]
            known = rows < part.num_rows(described)
            differs = ~known
            served = part.read(described.name, rows[known])
            differs[known] = _differ(mine[known], served, described, tolerance)
            if differs.any():
                writer.put(described.name, part, rows[differs], mine[differs])
        if writer.num_bytes > most_bytes:
            raise _TooMuchError(
                f"more than {MOST_OF_BASE:.0%} of the bytes of {writer.base.path} differ, at table {described.name!r}. "
                "Tables that were trained anew turn as a whole: align them to the last ones, or go on from them"
            )
        start += len(content)


def _places(writer: DeltaWriter, id_map: IdMap, table: ReleaseTable) -> list[tuple[Part, npt.NDArray[np.int32]]]:
    """For each part, the row there of each row of the model's table; -1 if it is another part's."""
    places = []
    if id_map.index is None:
        rows = np.arange(id_map.num_rows, dtype=np.int32)
        for part in parts_with(table, writer.parts):
            first = getattr(part.id_map(table.id_map), "first_row", 0)
            last = getattr(part.id_map(table.id_map), "oov_row", None)
            local = rows - np.int32(first)
            stop = part.num_rows(table) if last is None else last
            places.append((part, np.where((local >= 0) & (local < stop), local, np.int32(-1))))
        return places
    for part, positions, found in writer.rows_of(table.name, _by_row(id_map)):
        rows = np.full(id_map.num_rows, -1, np.int32)
        rows[positions] = found
        rows[-1] = getattr(part.id_map(table.id_map), "oov_row", -1)
        places.append((part, rows))
    return places


def _differ(
    mine: npt.NDArray[np.uint8], served: npt.NDArray[np.uint8], table: ReleaseTable, tolerance: float
) -> npt.NDArray[np.bool_]:
    """Which rows are others than those that are served: bool [n]."""
    width = np.uint32 if table.row_bytes % 4 == 0 else np.uint16 if table.row_bytes % 2 == 0 else np.uint8
    differs: npt.NDArray[np.bool_] = (np.ascontiguousarray(mine).view(width) != served.view(width)).any(axis=1)
    if tolerance == 0 or not differs.any():
        return differs
    odd = np.flatnonzero(differs)
    new, old = (
        decode(torch.from_numpy(np.ascontiguousarray(rows[odd])), table.dim, table.precision) for rows in (mine, served)
    )
    differs[odd] = ((new - old).norm(dim=1) > tolerance * old.norm(dim=1)).numpy()
    return differs
