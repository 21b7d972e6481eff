"""Rows out of a table by number, straight from mapped memory to where they are sent from."""

from __future__ import annotations

import mmap
from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt

from tables.prefetch import prefetch

_AHEAD: Final = 16
"""Rows that are fetched into the cache before they are copied; 8 to 64 measure alike, without it is half as fast."""
_HUGE_PAGE_BYTES: Final = 2 << 20


def gather(table: npt.NDArray[np.uint8], rows: npt.NDArray[np.int32], out: npt.NDArray[np.uint8]) -> None:
    """Copy rows of a table, releasing the interpreter's lock while it does.

    Args:
        table: uint8 [num_rows, row_bytes], contiguous, its start aligned to 8 bytes.
        rows: int32 [n], each below num_rows and not negative: the caller's id map guarantees it.
        out: uint8 [n x row_bytes], contiguous, its start aligned to 8 bytes; every byte is overwritten.

    Raises:
        ValueError: `out` is not of that length, or an array is not aligned.

    Example:
        >>> out = np.empty(8, np.uint8)
        >>> gather(np.arange(12, dtype=np.uint8).reshape(3, 4), np.array([2, 0], np.int32), out)
        >>> out.tolist()
        [8, 9, 10, 11, 0, 1, 2, 3]
    """
    row_bytes = table.shape[1]
    if out.shape != (len(rows) * row_bytes,) or (table.ctypes.data | out.ctypes.data) & 7:
        raise ValueError(
            f"out has shape {out.shape} for {len(rows)} rows of {row_bytes} bytes, or it or the table is not aligned to 8 bytes"
        )
    unit = _UNITS[row_bytes & 7]
    _gather(table.view(unit), rows, out.view(unit).reshape(len(rows), row_bytes // unit().itemsize))


class SendBuffer:
    """Memory that answers are gathered into, one after the other."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint64)

    def take(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """The buffer's first bytes, aligned; what was taken before is overwritten.

        Args:
            num_bytes: Length, a multiple of 8.
        """
        if num_bytes > self._memory.nbytes:
            self._memory = np.empty(num_bytes // 8, np.uint64)
        return self._memory.view(np.uint8)[:num_bytes]


def huge_copy(table: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Copy a table into memory of this process that the system backs with huge pages where it can.

    Random rows of a large table miss the processor's table of pages nearly always; with pages of 2 MiB that table
    covers it. Linux gives them to anonymous memory only (not to files mapped from a disk), so they cost a copy: the
    rows then are this process's own and no longer shared with others.

    Args:
        table: uint8 [num_rows, row_bytes].

    Returns:
        Read-only uint8 [num_rows, row_bytes].
    """
    area = mmap.mmap(-1, table.nbytes + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(area, np.uint8)
    start = -memory.ctypes.data % _HUGE_PAGE_BYTES
    copy = memory[start : start + table.nbytes].reshape(table.shape)
    np.copyto(copy, table)
    copy.flags.writeable = False
    return copy


def _unit_of(row_bytes: int) -> type[np.unsignedinteger[Any]]:
    units: dict[int, type[np.unsignedinteger[Any]]] = {8: np.uint64, 4: np.uint32, 2: np.uint16, 1: np.uint8}
    return units[max(size for size in units if row_bytes % size == 0)]


_UNITS: Final = [_unit_of(remainder or 8) for remainder in range(8)]


@numba.njit(nogil=True, cache=True)
def _gather(table: Any, rows: Any, out: Any) -> None:
    width = table.shape[1]
    row_bytes = np.intp(width * table.itemsize)
    for position in range(min(_AHEAD, len(rows))):
        prefetch(table, np.intp(rows[position]) * row_bytes)
        prefetch(table, np.intp(rows[position]) * row_bytes + row_bytes - 1)
    for position in range(len(rows)):
        if position + _AHEAD < len(rows):
            ahead = np.intp(rows[position + _AHEAD]) * row_bytes
            for line in range(0, row_bytes, 64):
                prefetch(table, ahead + line)
            prefetch(table, ahead + row_bytes - 1)
        row = rows[position]
        for word in range(width):
            out[position, word] = table[row, word]
