"""Finds the release that a delta is laid over: beside it, by its version."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Final

from multifacet.artifacts import MANIFEST_NAME, ArtifactError
from multifacet.serving.core import layers
from multifacet.serving.release.mapped_files import open_plain
from multifacet.serving.release.release import Release

if TYPE_CHECKING:
    from pathlib import Path

    from multifacet.serving.release.parts import Half

_MOST_MANIFEST_BYTES: Final = 64 << 20


def find_release(beside: Path, version: str) -> Path | None:
    """The release of a version that lies beside another one, or where that lies in another folder beside its own.

    So releases may lie in one folder (``releases/monday``), or each in a folder of a run (``runs/monday/release``).

    Args:
        beside: The other release.
        version: The wanted version.

    Returns:
        None if there is none.
    """
    folder = beside.absolute().parent
    runs = sorted(folder.parent.iterdir()) if folder != folder.parent else []
    for path in (*sorted(folder.iterdir()), *(run / beside.name for run in runs)):
        manifest = path / MANIFEST_NAME
        if not manifest.is_file() or manifest.stat().st_size > _MOST_MANIFEST_BYTES:
            continue
        with os.fdopen(open_plain(manifest), "rb") as stream:
            if hashlib.sha256(stream.read()).hexdigest() == version:
                return path
    return None


def base_path(release: Release) -> Path:
    """Where a delta's base is.

    Raises:
        ArtifactError: It is not beside the delta.
    """
    found = find_release(release.path, release.base)
    if found is None:
        raise ArtifactError(
            f"{release.path} is a delta over version {release.base}, which is not beside it in "
            f"{release.path.absolute().parent}. Copy that release there, or publish the model whole (without --base)."
        )
    return found


def lineage(release: Release, *, verify: bool = True, half: Half | None = None) -> tuple[Release, ...]:
    """A release and those that it lies over, the whole one first.

    Args:
        release: The release, opened.
        verify: Whether to read the others' files and compare their checksums.
        half: Open this half of the others only.

    Raises:
        ArtifactError: One is missing or damaged, or they do not follow each other.
    """
    found = [release]
    while found[-1].manifest.base is not None:
        above = found[-1]
        below = Release.open(base_path(above), verify=verify, half=half, shard=above.shard)
        check_base(above, below)
        found.append(below)
    return tuple(reversed(found))


def check_base(delta: Release, base: Release) -> None:
    """Refuse a base that a delta does not fit.

    Raises:
        ArtifactError: It is another version, or its tables are others than the delta says.
    """
    fault = layers.misplaced(_layer(delta), _layer(base))
    if fault:
        raise ArtifactError(f"{delta.path}: {fault}")
    if delta.num_shards != base.num_shards or delta.shard != base.shard:
        raise ArtifactError(f"{delta.path} and its base {base.path} are not the same shard of the same number of shards")
    tables = {table.name: table for table in base.tables}
    if list(tables) != [table.name for table in delta.tables]:
        raise ArtifactError(f"{delta.path} has tables {[table.name for table in delta.tables]}, its base {list(tables)}")
    for table in delta.tables:
        other = tables[table.name]
        same = table.model_copy(
            update={"rows": other.rows, "shard_rows": other.shard_rows, "delta": other.delta, "slot_bytes": other.slot_bytes}
        )
        added = table.rows_of(delta.shard) - table.changes(delta.shard)[1]
        if same != other or added != other.rows_of(base.shard):
            raise ArtifactError(
                f"{delta.path}: table {table.name!r} lies over {added} rows of {table.row_bytes} bytes of feature "
                f"{table.feature!r}, its base {base.path} has {other.rows_of(base.shard)} of {other.row_bytes} bytes of "
                f"{other.feature!r}"
            )
    if delta.manifest.id_types != base.manifest.id_types:
        raise ArtifactError(f"{delta.path} has ids of {delta.manifest.id_types}, its base of {base.manifest.id_types}")


def _layer(release: Release) -> layers.Layer:
    base = release.manifest.base
    return layers.Layer(release.version) if base is None else layers.Layer(release.version, base.version, base.depth)
