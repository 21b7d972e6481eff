"""Writes the rows of a table to where their ids say, in whatever order the table comes."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Self

import numpy as np

from multifacet.serving.release.manifest import KEY_BYTES

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import numpy.typing as npt


class PlacedFile:
    """A table's file that takes rows one after the other, as a file does, and puts each where it belongs.

    The file is mapped and written here and there, which is fast while it fits into memory.

    Args:
        path: The file.
        numbers: int32 [n], the place of each row but the last, which stays the last.
        keys: int64 [n], the id of each of those rows, to stand before it; None leaves them out.
        row_bytes: Bytes of a row.
        slot_bytes: Bytes from one row to the next.
    """

    def __init__(
        self,
        path: Path,
        numbers: npt.NDArray[np.int32],
        keys: npt.NDArray[np.int64] | None,
        row_bytes: int,
        slot_bytes: int,
    ):
        self._places = np.append(numbers, np.int32(len(numbers)))
        self._row_bytes = row_bytes
        self._start = KEY_BYTES if keys is not None else 0
        self._written = 0
        size = len(self._places) * slot_bytes
        with path.open("w+b") as stream:
            stream.truncate(size)
            self._memory = mmap.mmap(stream.fileno(), size)
        self._slots = np.frombuffer(self._memory, np.uint8).reshape(-1, slot_bytes)
        if keys is not None:
            self._slots[numbers, :KEY_BYTES] = keys.astype("<i8", copy=False).view(np.uint8).reshape(-1, KEY_BYTES)

    def write(self, rows: bytes | memoryview) -> int:
        """Put the next rows to their places; how many bytes they were."""
        if not memoryview(rows).nbytes:
            return 0
        given = np.frombuffer(rows, np.uint8).reshape(-1, self._row_bytes)
        places = self._places[self._written : self._written + len(given)]
        self._slots[places, self._start : self._start + self._row_bytes] = given
        self._written += len(given)
        return given.nbytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._slots = np.empty((0, 0), np.uint8)  # or the memory could not be closed
        self._memory.flush()
        self._memory.close()
