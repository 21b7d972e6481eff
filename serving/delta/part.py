"""The parts of a release that a delta is made against: the whole of it, or each of its shards."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from multifacet.serving.lookup.mapped_release import LookupHalf
from multifacet.serving.lookup.rows import SendBuffer
from multifacet.serving.release.bases import lineage
from multifacet.serving.release.release import Release

if TYPE_CHECKING:
    import numpy.typing as npt

    from multifacet.serving.lookup.changed_ids import KnownIds
    from multifacet.serving.release.manifest import ReleaseTable


@dataclass(frozen=True)
class Part:
    """A release that is not split, or one of its shards, with all deltas that it lies over.

    Attributes:
        shard: Which shard; None for a release that is not split.
        half: Its tables and id maps.
    """

    shard: int | None
    half: LookupHalf

    def id_map(self, name: str) -> KnownIds:
        """An id map of this part."""
        return self.half.id_maps[name]

    def num_rows(self, table: ReleaseTable) -> int:
        """Rows of a table of this part."""
        return table.rows_of(self.shard)

    def read(self, table: str, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
        """Rows of a table as they are stored, a copy: uint8 [n, row_bytes]."""
        stored = self.half.rows[table]
        send = SendBuffer()
        num_bytes = len(rows) * stored.row_bytes
        stored.gather(rows, send.take((num_bytes + 7) & ~7), 0)
        return np.frombuffer(send.read(0, num_bytes), np.uint8).reshape(len(rows), stored.row_bytes)


def parts_of(path: str | os.PathLike[str]) -> tuple[Release, list[Part]]:
    """Open a release and all of its parts; their checksums are compared where they are served.

    Raises:
        ArtifactError: One is missing, or does not fit the others.
    """
    release = Release.open(path, verify=False)
    parts = []
    for shard in range(release.num_shards) if release.num_shards > 1 else (None,):
        half: LookupHalf | None = None
        for member in lineage(Release.open(path, verify=False, half="lookup", shard=shard), verify=False, half="lookup"):
            half = LookupHalf(member, populate=False, base=half)
        if half is not None:
            parts.append(Part(shard, half))
    return release, parts


def parts_with(table: ReleaseTable, parts: list[Part]) -> list[Part]:
    """The parts that have other rows of a table: one alone if each has all of them."""
    return parts if table.shard_rows else parts[:1]
