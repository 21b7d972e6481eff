"""Tables cut into partitions, each in a file of its own, for tables that memory does not hold."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from multifacet.artifacts import link_or_copy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["PartitionFiles"]

_CHUNK_ELEMENTS: Final = 1 << 21  # 8 MiB of float32 at a time


class PartitionFiles:
    """Rows and their row-wise optimiser state, on disk by partition.

    Row i of a table is row i // P of partition i % P: neighbours in the order of ids, often alike in age, are spread
    evenly. A partition's file holds for each table its rows, float32 [ceil(N / P), D], then their accumulated squares,
    float32 [ceil(N / P)]; partitions of fewer rows are padded with zeros. A file is never changed: a new one takes its
    place by a rename, so that a hard link to it (a checkpoint's) keeps what it held.

    Plain reads and writes rather than a mapping: the pages of a mapped file count as the process's memory, and when they
    are written is not ours to say.

    Args:
        folder: where the files are; anything that is there is removed.
        num_rows: table -> rows, N.
        dim: width of a row, D.
        num_partitions: P.
    """

    def __init__(self, folder: Path, num_rows: Mapping[str, int], *, dim: int, num_partitions: int) -> None:
        self.folder = folder
        self.num_rows = dict(num_rows)
        self.dim = dim
        self.num_partitions = num_partitions
        self.partition_rows = {name: -(-count // num_partitions) for name, count in num_rows.items()}
        self.num_bytes = sum(self.partition_rows.values()) * (dim + 1) * 4
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_rows}, partitions={self.num_partitions}, bytes={self.num_bytes} each)"

    def initialise(self, *, scale: float, generator: torch.Generator) -> None:
        """Write first values, drawn in the order of the rows, so that they do not depend on the number of partitions."""
        files = [self._path(partition).open("wb") for partition in range(self.num_partitions)]
        try:
            for name, count in self.num_rows.items():
                step = self._chunk_rows(self.dim) * self.num_partitions
                for begin in range(0, count, step):
                    size = min(count - begin, step)
                    drawn = torch.empty(size, self.dim).normal_(std=scale, generator=generator).numpy()
                    for partition, file in enumerate(files):
                        rows = drawn[partition :: self.num_partitions]
                        file.write(np.ascontiguousarray(rows).data)
                for partition, file in enumerate(files):
                    missing = self.partition_rows[name] - len(range(partition, count, self.num_partitions))
                    file.write(bytes(4 * (missing * self.dim + self.partition_rows[name])))
        finally:
            for file in files:
                file.close()

    def read(self, partition: int, rows: Mapping[str, NDArray[np.float32]], squares: Mapping[str, NDArray[np.float32]]) -> None:
        """Fill arrays [ceil(N / P), D] and [ceil(N / P)] of each table with a partition."""
        with self._path(partition).open("rb", buffering=0) as file:
            for name in self.num_rows:
                for array in (rows[name], squares[name]):
                    view = array.data.cast("B")
                    while len(view):
                        num_read = file.readinto(view)
                        if not num_read:
                            raise OSError(f"{self._path(partition)} ends too soon")
                        view = view[num_read:]

    def write(
        self, partition: int, rows: Mapping[str, NDArray[np.float32]], squares: Mapping[str, NDArray[np.float32]]
    ) -> None:
        """Put a new file in the place of a partition's."""
        path = self._path(partition)
        new = path.with_suffix(".new")
        with new.open("wb", buffering=0) as file:
            for name in self.num_rows:
                for array in (rows[name], squares[name]):
                    view = array.data.cast("B")
                    while len(view):
                        view = view[file.write(view) :]
        new.replace(path)

    def paths(self) -> dict[str, Path]:
        """Give the files by a name for each."""
        return {f"partitions/{partition}": self._path(partition) for partition in range(self.num_partitions)}

    def adopt(self, files: Mapping[str, Path]) -> None:
        """Take the place of what `paths` gave, by links where the file system has them.

        Raises:
            ValueError: if a file is missing or of another size.
        """
        for name, path in self.paths().items():
            if name not in files or files[name].stat().st_size != self.num_bytes:
                raise ValueError(f"expected a file {name} of {self.num_bytes} bytes among {dict(files)}")
            path.unlink(missing_ok=True)
            link_or_copy(files[name], path)

    def assemble_rows(self, name: str) -> Tensor:
        """Map a table in the order of its rows, from a file that is written for it and has no name any more.

        Returns:
            float32 [N, D]: pages of a file, which the system may drop from memory and read again. What is written to them
            lives as long as they do.
        """
        return self._assemble(name, self.dim, self._offset(name)).view(-1, self.dim)

    def assemble_squares(self, name: str) -> Tensor:
        """Map a table's accumulated squares likewise, float32 [N]."""
        return self._assemble(name, 1, self._offset(name) + self.partition_rows[name] * self.dim * 4)

    def _offset(self, name: str) -> int:
        """Give where a table begins in each partition's file, in bytes."""
        offset = 0
        for table, count in self.partition_rows.items():
            if table == name:
                return offset
            offset += count * (self.dim + 1) * 4
        raise KeyError(f"there is no table {name!r}; there are {list(self.partition_rows)}")

    def _assemble(self, name: str, width: int, offset: int) -> Tensor:
        path = self.folder / "whole"
        self._interleave(path, name, width, offset)
        mapped = torch.from_file(str(path), shared=True, size=self.num_rows[name] * width, dtype=torch.float32)
        path.unlink()
        return mapped

    def _interleave(self, path: Path, name: str, width: int, offset: int) -> None:
        files = [os.open(self._path(partition), os.O_RDONLY) for partition in range(self.num_partitions)]
        try:
            with path.open("wb") as out:
                step = self._chunk_rows(width)
                for begin in range(0, self.partition_rows[name], step):
                    size = min(step, self.partition_rows[name] - begin)
                    block = np.empty((size, self.num_partitions, width), dtype=np.float32)
                    for partition, file in enumerate(files):
                        raw = os.pread(file, size * width * 4, offset + begin * width * 4)
                        block[:, partition] = np.frombuffer(raw, dtype=np.float32).reshape(size, width)
                    kept = min(size * self.num_partitions, self.num_rows[name] - begin * self.num_partitions)
                    out.write(block.reshape(-1, width)[:kept].data)
        finally:
            for file in files:
                os.close(file)

    def _chunk_rows(self, width: int) -> int:
        """Give a partition's rows of a chunk of all: a multiple of 16, as torch draws 16 normal numbers at a time."""
        return max(16, _CHUNK_ELEMENTS // (width * self.num_partitions) // 16 * 16)

    def remove(self) -> None:
        """Remove the folder; what `assemble` gave stays."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, partition: int) -> Path:
        return self.folder / f"{partition}.rows"
