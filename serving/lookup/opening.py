"""Opens the lookup half of a release for a server: checked, mapped, and laid over its base if it is a delta."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multifacet.artifacts import ArtifactError
from multifacet.serving.lookup.mapped_release import LookupHalf
from multifacet.serving.release.bases import base_path, lineage
from multifacet.serving.release.release import Release
from multifacet.serving.server.deployed import Identity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from multifacet.serving.config import LookupConfig


def open_half(path: Path, config: LookupConfig, held: Callable[[str], LookupHalf | None]) -> LookupHalf:
    """Open a release, and those that it lies over.

    Args:
        path: Its folder.
        config: What the server is told of its releases.
        held: What the server has open already under a version: a delta shares its base's memory.

    Raises:
        ArtifactError: A release is damaged or was changed meanwhile, or a delta's base is missing or another.
    """
    unchecked = Release.open(path, verify=False, half="lookup", shard=config.shard)
    files = unchecked.mapped_files(rows=not config.huge_pages or bool(unchecked.base))  # before they are checked
    release = Release.open(path, verify=config.verify, half="lookup", shard=config.shard)
    base = None
    if release.base:
        base = held(release.base)
        if base is not None and not base.files.examine():
            base = None  # an intact copy may lie beside the delta
        if base is None:
            base = open_half(base_path(release), config, held)
    half = LookupHalf(
        release,
        populate=config.populate,
        huge_pages=config.huge_pages,
        max_ids=config.max_ids_per_request,
        files=files,
        base=base,
    )
    if release.version != unchecked.version or not files.examine():
        raise ArtifactError(f"{path} was changed while it was loaded ({files.fault or 'replaced'}): load it again")
    return half


def identify(path: Path, config: LookupConfig) -> Identity:
    """What a release's manifest says of its memory, before its files are read.

    A delta's own memory is that of all deltas up to it: each version has its changed rows for itself, and shares the whole
    release.
    """
    release = Release.open(path, verify=False, half="lookup", shard=config.shard)
    if not release.base:
        return Identity(release.version, release.lookup_bytes)
    whole, *deltas = lineage(release, verify=False, half="lookup")
    words = sum(table.rows_of(release.shard) // 4 for table in release.tables)
    own = sum(delta.lookup_bytes for delta in deltas) + words
    return Identity(release.version, own, whole.version, whole.lookup_bytes)
