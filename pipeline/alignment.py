"""Snapshots in the basis of older ones, whichever pretrainer wrote them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multifacet.tables import Snapshot

__all__ = ["align", "write_aligned"]


def align(path: Path, new: Snapshot, to: Snapshot) -> Snapshot:
    """Writes a snapshot anew in the basis of an older one, by what its pretrainer's scores allow.

    Args:
        path: The snapshot to write; it must not exist.
        new: The snapshot to write anew.
        to: The older one.

    Raises:
        ValueError: The snapshots do not fit each other.
        ArtifactError: Something is at `path`.
    """
    from multifacet import contrastive, kge  # noqa: PLC0415 - they take time to import

    return kge.align(path, new, to) if new.facet == "kge" else contrastive.align(path, new, to)


def write_aligned(path: Path, align_to: Path | None, write: Callable[[Path], Snapshot]) -> Snapshot:
    """Writes a snapshot, in the basis of an older one if one is named.

    Args:
        path: The snapshot to write.
        align_to: The older one; None to write it as it is.
        write: Writes a snapshot to the path that it is given.
    """
    if align_to is None:
        return write(path)
    from multifacet.tables import Snapshot  # noqa: PLC0415 - it takes time to import

    to = Snapshot.load(align_to)
    plain = path.with_name(f".{path.name}.unaligned")
    shutil.rmtree(plain, ignore_errors=True)
    try:
        return align(path, write(plain), to)
    finally:
        shutil.rmtree(plain, ignore_errors=True)
