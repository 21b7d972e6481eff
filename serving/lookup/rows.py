"""Rows out of a table by number, straight from mapped memory to where they are sent from."""

from __future__ import annotations

import mmap
from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt
from numba.core import types

from multifacet.kernels.memory import copy_bytes, prefetch_at

_AHEAD: Final = 16
"""Rows that are fetched into the cache before they are copied; 8 to 64 measure alike, without it is half as fast."""
PROBE_ROWS: Final = 16
DISK_US: Final = 300
"""So many rows take a hundredth of that where they are in memory, and longer where they are on a disk."""
_PAGE_BYTES: Final = mmap.PAGESIZE
_WILL_NEED: Final = mmap.MADV_WILLNEED
_CLOCK_MONOTONIC: Final = 1
_HUGE_PAGE_BYTES: Final = 2 << 20
_LINE_BYTES: Final = 64

_madvise: Any = types.ExternalFunction("madvise", types.int32(types.uintp, types.uintp, types.int32))
_clock_gettime: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.uintp))

Memory = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]
"""The same bytes as words of 8 and of 1 bytes."""


class SendBuffer:
    """Memory that answers are gathered into, one after the other; for one thread."""

    def __init__(self) -> None:
        self._memory: Memory = _views(np.empty(0, np.uint64))

    def take(self, num_bytes: int) -> Memory:
        """Memory of at least that length, aligned to 8 bytes; what was taken before is overwritten.

        Args:
            num_bytes: Length, a multiple of 8.
        """
        if num_bytes > self._memory[0].nbytes:
            self._memory = _views(np.empty(num_bytes // 8, np.uint64))
        return self._memory

    @property
    def words(self) -> npt.NDArray[np.uint64]:
        """All of the memory."""
        return self._memory[0]

    def read(self, start: int, stop: int) -> memoryview:
        """A part of what was gathered; valid until memory is taken again."""
        return self._memory[1].data[start:stop]


class MappedRows:
    """A table's rows in memory.

    Args:
        table: uint8 [num_rows, stored_bytes], contiguous, its start aligned to 8 bytes.
        row_bytes: Bytes of a row, the last ones of the stored bytes but for those that pad them; None if they are all.
        start: Where a row begins within its stored bytes.
        huge_pages: Whether to copy it into huge pages; see `huge_copy`.

    Attributes:
        stored: The table itself, uint8 [num_rows, stored_bytes]: what was given, or its copy.
        stride: Bytes from one row to the next.
        address: Where the first byte of the first row is.
        layout: Address, stride and bytes of a row, as kernels take them.

    Raises:
        ValueError: The table is not aligned, or its rows do not fit.

    Example:
        >>> table = MappedRows(np.arange(12, dtype=np.uint8).reshape(3, 4))
        >>> send = SendBuffer()
        >>> table.gather(np.array([2, 0, 1], np.int32), send.take(16), 0)
        16
        >>> list(send.read(0, 16))
        [8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0]
    """

    def __init__(self, table: npt.NDArray[np.uint8], row_bytes: int | None = None, start: int = 0, *, huge_pages: bool = False):
        if table.ctypes.data & 7 or not table.flags.c_contiguous:
            raise ValueError(f"a table of {table.shape} bytes is not contiguous or not aligned to 8 bytes")
        self.num_rows: int = table.shape[0]
        self.stride: int = table.shape[1]
        self.row_bytes: int = self.stride if row_bytes is None else row_bytes
        if not 0 <= start <= self.stride - self.row_bytes:
            raise ValueError(f"rows of {self.row_bytes} bytes from byte {start} do not fit into {self.stride} bytes")
        self.stored = huge_copy(table) if huge_pages else table
        self.address: int = int(self.stored.ctypes.data) + start
        self.layout = np.uintp(self.address), np.uintp(self.stride), np.uintp(self.row_bytes)

    def gather(self, rows: npt.NDArray[np.int32] | npt.NDArray[np.uint64], memory: Memory, start: int) -> int:
        """Copy rows, releasing the interpreter's lock while it does.

        Args:
            rows: int32 [n], each within the table: the caller's id map guarantees it. Or uint64 [n]: their distance from the
                table's first row, in rows and modulo 2^64, wherever they are.
            memory: Where to; long enough.
            start: The byte to begin at, a multiple of 8.

        Returns:
            The byte after the rows and the zeros that pad them to a multiple of 8.
        """
        stop = start + len(rows) * self.row_bytes
        if stop & 7:
            memory[0][stop >> 3] = 0
        gather_mapped(*self.layout, rows, memory[1], start)
        return (stop + 7) & ~7


def huge_copy(table: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Copy a table into memory of this process that the system backs with huge pages where it can.

    Random rows of a large table miss the processor's table of pages nearly always; with pages of 2 MiB that table
    covers it. Where the system maps files with them by itself (ext4 from Linux 6.16 on, for files that were written or read in
    long runs; FilePmdMapped in /proc/PID/smaps_rollup tells), this gains nothing. Elsewhere only anonymous memory has
    them, so they cost a copy: the rows then are this process's own and no longer shared with others.

    Args:
        table: uint8 [num_rows, row_bytes].

    Returns:
        Read-only uint8 [num_rows, row_bytes].
    """
    copy = huge_memory(table.nbytes).reshape(table.shape)
    np.copyto(copy, table)
    copy.flags.writeable = False
    return copy


def huge_memory(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Memory of this process that the system backs with huge pages where it can; zeros, uint8 [num_bytes]."""
    area = mmap.mmap(-1, num_bytes + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(area, np.uint8)
    start = -memory.ctypes.data % _HUGE_PAGE_BYTES
    return memory[start : start + num_bytes]


def _views(memory: npt.NDArray[np.uint64]) -> Memory:
    return memory, memory.view(np.uint8)


@numba.njit(nogil=True, cache=True)
def gather_rows(address: Any, stride: Any, row_bytes: Any, rows: Any, out: Any) -> None:
    """Copy rows from one place in memory to another, which does not overlap it.

    Args:
        address: Of the first row, uintp.
        stride: Bytes from one row to the next, uintp.
        row_bytes: Bytes of a row, uintp.
        rows: As `MappedRows.gather`.
        out: Address to copy to, uintp.
    """
    for position in range(min(_AHEAD, len(rows))):
        prefetch_row(address + np.uintp(rows[position]) * stride, row_bytes)
    for position in range(len(rows)):
        if position + _AHEAD < len(rows):
            prefetch_row(address + np.uintp(rows[position + _AHEAD]) * stride, row_bytes)
        copy_bytes(out, address + np.uintp(rows[position]) * stride, row_bytes)
        out += row_bytes


@numba.njit(nogil=True, cache=True, inline="always")
def prefetch_row(first: Any, row_bytes: Any) -> None:
    """Begin to load every cache line of a row."""
    line = first & ~np.uintp(_LINE_BYTES - 1)
    while line < first + row_bytes:
        prefetch_at(line)
        line += np.uintp(_LINE_BYTES)


@numba.njit(nogil=True, cache=True)
def now_us(clock: Any) -> Any:
    """Microseconds of the monotonic clock; `clock` is int64 [2] to work in."""
    _clock_gettime(np.int32(_CLOCK_MONOTONIC), np.uintp(clock.ctypes.data))
    return clock[0] * 1_000_000 + clock[1] // 1000


@numba.njit(nogil=True, cache=True)
def gather_mapped(address: Any, stride: Any, row_bytes: Any, rows: Any, memory: Any, start: int) -> None:
    """As `gather_rows`, to a byte of memory; if the first rows had to come from the disk, all others are asked for at once."""
    out = np.uintp(memory.ctypes.data) + np.uintp(start)
    if len(rows) > PROBE_ROWS:
        clock = np.empty(2, np.int64)
        started_us = now_us(clock)
        gather_rows(address, stride, row_bytes, rows[:PROBE_ROWS], out)
        if now_us(clock) - started_us > DISK_US:
            ask_disk(address, stride, row_bytes, rows[PROBE_ROWS:])
    gather_rows(address, stride, row_bytes, rows, out)


@numba.njit(nogil=True, cache=True)
def ask_disk(address: Any, stride: Any, row_bytes: Any, rows: Any) -> None:
    """Have the system read the pages of rows of a mapped file, and do not wait for them.

    A page fault waits for its one page: rows on a disk would come one after the other, each at the disk's latency. Asked for
    together they come as fast as it can read.

    Args:
        address: Of the first row.
        stride: Bytes from one row to the next.
        row_bytes: Bytes of a row.
        rows: int32 [n].
    """
    for row in rows:
        first = address + np.uintp(row) * stride
        page = first & ~np.uintp(_PAGE_BYTES - 1)
        _madvise(page, first + row_bytes - page, np.int32(_WILL_NEED))


def touch(memory: npt.NDArray[Any]) -> None:
    """Read a byte of each page of mapped memory, without the interpreter's lock.

    `MAP_POPULATE` fills the page table of this process, which on a machine is all that a first access would wait for. A virtual
    machine has a second table, the host's, whose entries are made when the guest first reads a page, and what the guest's disk
    wrote into the page cache has none. Without this each random row of a table that was just read from the disk takes
    microseconds, once.

    Args:
        memory: Contiguous.
    """
    _touch(memory.reshape(-1).view(np.uint8), _PAGE_BYTES)


@numba.njit(nogil=True, cache=True)
def _touch(memory: Any, step: Any) -> Any:
    total = np.uint8(0)
    for place in range(0, len(memory), step):
        total ^= memory[place]
    return total  # or the compiler would leave the reading out
