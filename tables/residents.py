"""The partitions that are in memory: two at work, one on its way in and one on its way out."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from multifacet.tables.partitions import PartitionFiles

__all__ = ["Residents"]

Arrays = dict[str, "NDArray[np.float32]"]


class Residents:
    """Exchanges the partitions in the slots of a block of rows.

    One thread reads and writes, in the order that it is asked to: a partition that is on its way out is on disk before it
    is read again.

    Args:
        files: where partitions are when they are not here.
        slots: for each slot, each table's rows, float32 [ceil(N / P), D], and squares, views of the living block.

    Attributes:
        partitions: what is in each slot; -1 for nothing.
    """

    def __init__(self, files: PartitionFiles, slots: Sequence[tuple[Arrays, Arrays]]) -> None:
        self._files = files
        self._slots = slots
        self.partitions = [-1] * len(slots)
        self._incoming, self._outgoing = self._buffers(), self._buffers()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="multifacet-partitions")
        self._prefetched = -1
        self._read: Future[None] | None = None
        self._write: Future[None] | None = None

    def hold(self, partitions: Sequence[int]) -> None:
        """Bring partitions into the slots, one each; those that leave are written back beside what follows."""
        for slot, partition in enumerate(partitions):
            if self.partitions[slot] == partition:
                continue
            if self.partitions[slot] >= 0:
                self._write_back(slot)
            if self._prefetched != partition or self._read is None:
                self.prefetch(partition)
            assert self._read is not None  # noqa: S101 - set by prefetch
            self._read.result()
            _copy(self._incoming, self._slots[slot])
            self.partitions[slot], self._prefetched, self._read = partition, -1, None

    def prefetch(self, partition: int) -> None:
        """Begin to read a partition that is in no slot, beside what follows."""
        if self._read is not None:
            self._read.result()  # the buffer is still being filled
        self._prefetched = partition
        self._read = self._thread.submit(self._files.read, partition, *self._incoming)

    def finish_writing(self) -> None:
        """Wait until what left is on disk."""
        if self._write is not None:
            self._write.result()
            self._write = None

    def write_all(self) -> None:
        """Write what is in the slots, which stays there."""
        for slot, partition in enumerate(self.partitions):
            if partition >= 0:
                self._write_back(slot)
        self.finish_writing()

    def forget(self, partitions: Sequence[int]) -> None:
        """Take it that these are what is in the slots, which somebody else has filled."""
        self.finish_writing()
        if self._read is not None:
            self._read.result()
        self.partitions, self._prefetched, self._read = list(partitions), -1, None

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True)

    def _write_back(self, slot: int) -> None:
        self.finish_writing()  # the buffer is free
        _copy(self._slots[slot], self._outgoing)
        self._write = self._thread.submit(self._files.write, self.partitions[slot], *self._outgoing)

    def _buffers(self) -> tuple[Arrays, Arrays]:
        shapes: Mapping[str, int] = self._files.partition_rows
        rows = {name: np.empty((count, self._files.dim), dtype=np.float32) for name, count in shapes.items()}
        return rows, {name: np.empty(count, dtype=np.float32) for name, count in shapes.items()}


def _copy(source: tuple[Arrays, Arrays], destination: tuple[Arrays, Arrays]) -> None:
    for arrays, into in zip(source, destination, strict=True):
        for name, array in arrays.items():
            np.copyto(into[name], array)
