"""Releases of a world: what their files hold, and what may be served of each version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.harness.worlds.disk import TORN
from multifacet.serving.core import layers
from multifacet.serving.core.layers import Layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness.worlds.disk import Disk

FOLDER = "/releases"
CELLS = 2
"""Rows of each release: a delta changes the first, and leaves the last to its base."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a release says of itself.

    Attributes:
        layer: Its version, and its base if it is a delta.
        rows: The content of its file of rows.
    """

    layer: Layer
    rows: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Half:
    """The lookup half of a release, opened: each row names the version that wrote it."""

    layer: Layer
    cells: tuple[str, ...]


class Catalog:
    """All releases of a world, and the truth about their rows."""

    def __init__(self) -> None:
        self.manifests: dict[str, Manifest] = {}
        self.truth: dict[str, tuple[str, ...]] = {}

    def add(self, version: str, base: str = "") -> Manifest:
        """A release that is whole, or a delta over another."""
        rows = (version,) if base else (version,) * CELLS
        depth = self.manifests[base].layer.depth + 1 if base else 0
        manifest = Manifest(Layer(version, base, depth), rows)
        self.manifests[version] = manifest
        self.truth[version] = (*rows, *self.truth[base][1:]) if base else rows
        return manifest


def identify(disk: Disk, path: str) -> Manifest | None:
    """What a folder's manifest says; None if there is none that is whole."""
    found = disk.read(f"{path}/manifest.json")
    return found if isinstance(found, Manifest) else None


def open_release(disk: Disk, path: str, held: Callable[[str], Half | None]) -> Half | str:
    """Open and check a release and, if it is a delta, what it lies over.

    Returns:
        What is served of it, or why it is refused.
    """
    manifest = identify(disk, path)
    if manifest is None:
        return f"{path} has no whole manifest"
    for name, expected in (("rows", manifest.rows), ("upper", manifest.layer.version)):
        found = disk.read(f"{path}/{name}")
        if found is TORN or found != expected:
            return f"{path}: {name} is not what the manifest says"
    if not manifest.layer.base:
        return Half(manifest.layer, manifest.rows)
    base = held(manifest.layer.base)
    if base is not None and not layers.misplaced(manifest.layer, base.layer):
        return Half(manifest.layer, (*manifest.rows, *base.cells[len(manifest.rows) :]))
    for other in sorted(name for name in disk.names if name.endswith("/manifest.json")):
        beside = identify(disk, other.removesuffix("/manifest.json"))
        if beside is None or beside.layer == manifest.layer or layers.misplaced(manifest.layer, beside.layer):
            continue
        below = open_release(disk, other.removesuffix("/manifest.json"), held)
        if isinstance(below, Half):
            return Half(manifest.layer, (*manifest.rows, *below.cells[len(manifest.rows) :]))
    return f"{path} is a delta over {manifest.layer.base}, which is not there"
