"""Contrastive snapshots in the basis of older ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multifacet.inputs import PATH, expect_attributes, takes
from multifacet.tables import Snapshot, align_snapshot

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["align"]


@takes(path=PATH)
def align(path: str | Path, new: Snapshot, to: Snapshot) -> Snapshot:
    """Write a snapshot anew in the basis of an older one, by one rotation of all tables, which keeps every product and cosine.

    Args:
        path: directory to write; it must not exist.
        new: the snapshot to write anew.
        to: the older one.

    Returns:
        The aligned snapshot.

    Raises:
        ValueError: if the snapshots are of other facets or widths, or share no trained row.
        ArtifactError: if something is at `path`.
    """
    for name, given in (("new", new), ("to", to)):
        expect_attributes(name, given, ("config", "vectors", "parameters"), "Snapshot")
    return align_snapshot(path, new, to, "rotation")
