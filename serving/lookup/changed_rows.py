"""A table's rows of which some are others than those of the table below: a delta's.

The table below is mapped and shared by all versions that lie over it. What a version has of its own is small: its rows, and for
every 32 rows one word of eight bytes, which tells the changed ones and counts those before them::

    bits  0 to 31   whether each of the 32 rows is changed
    bits 32 to 63   how many rows before these 32 are

A lookup reads one such word a row, and then the row from where it is. Pages copied on write would cost more: one changed row in
a hundred, anywhere, is a row in two pages of three.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np

from multifacet.kernels.memory import prefetch
from multifacet.serving.lookup.rows import huge_memory

if TYPE_CHECKING:
    import numpy.typing as npt

    from multifacet.serving.lookup.rows import MappedRows, Memory

_AHEAD: Final = 32
_ROWS_A_WORD: Final = 32


class ChangedRows:
    """Rows laid over a table.

    Args:
        below: The whole table.
        num_rows: Rows of this one: those of the table below, and behind them added ones.
        rows: int32 [k], ascending: which rows are here, the added ones all among them.
        content: uint8 [k, row_bytes]: the rows themselves; copied.

    Attributes:
        stride: Bytes from one row to the next, there and here.
        words: uint64 [num_rows / 32, rounded up], as the module's text says.
        first: The distance of the first changed row from the first row of the table below, in rows and modulo 2^64.

    Example:
        >>> from multifacet.serving.lookup.rows import MappedRows, SendBuffer
        >>> table = ChangedRows(
        ...     MappedRows(np.arange(12, dtype=np.uint8).reshape(3, 4)),
        ...     4,
        ...     np.array([1, 3], np.int32),
        ...     np.array([[50, 50, 50, 50], [60, 60, 60, 60]], np.uint8),
        ... )
        >>> send = SendBuffer()
        >>> table.gather(np.array([3, 0, 1, 2], np.int32), send.take(16), 0)
        16
        >>> list(send.read(0, 16))
        [60, 60, 60, 60, 0, 1, 2, 3, 50, 50, 50, 50, 8, 9, 10, 11]
    """

    def __init__(self, below: MappedRows, num_rows: int, rows: npt.NDArray[np.int32], content: npt.NDArray[np.uint8]) -> None:
        self.below = below
        self.num_rows = num_rows
        self.row_bytes = below.row_bytes
        self.stride = below.stride
        self.words = huge_memory(8 * -(-num_rows // _ROWS_A_WORD)).view(np.uint64)
        _mark(rows, self.words)
        # Rows are told by their distance from the table below, so that one loop copies both: it must be a whole number.
        stride = self.stride
        memory = huge_memory((len(content) + 1) * stride)
        skipped = (below.address - memory.ctypes.data) % stride
        self._content = memory[skipped : skipped + len(content) * stride].reshape(-1, stride)[:, : self.row_bytes]
        np.copyto(self._content, content)
        self.first = np.uint64(((memory.ctypes.data + skipped - below.address) // stride) % (1 << 64))

    @property
    def address(self) -> int:
        """Where the first byte of the table below is."""
        return self.below.address

    def changes(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """Which rows are laid over the table, int32 [k], ascending; and they themselves, uint8 [k, row_bytes]."""
        return _marked(self.words, len(self._content)), self._content

    def gather(self, rows: npt.NDArray[np.int32], memory: Memory, start: int) -> int:
        """As `MappedRows.gather`."""
        places = np.empty(len(rows), np.uint64)
        locate(self.words, self.first, rows, places)
        return self.below.gather(places, memory, start)


def lay_over(
    table: MappedRows | ChangedRows, num_rows: int, rows: npt.NDArray[np.int32], content: npt.NDArray[np.uint8]
) -> ChangedRows:
    """Lay changes over a table that may have some already: lookups never go through more than one layer.

    Args:
        table: The table before.
        num_rows: Its rows, and those that are added.
        rows: int32 [k], ascending.
        content: uint8 [k, row_bytes].
    """
    if not isinstance(table, ChangedRows):
        return ChangedRows(table, num_rows, rows, content)
    earlier_rows, earlier = table.changes()
    all_rows = np.union1d(earlier_rows, rows)
    merged = np.empty((len(all_rows), content.shape[1]), np.uint8)
    merged[np.searchsorted(all_rows, earlier_rows)] = earlier
    merged[np.searchsorted(all_rows, rows)] = content
    return ChangedRows(table.below, num_rows, all_rows, merged)


@numba.njit(nogil=True, cache=True)
def _mark(rows: Any, words: Any) -> None:
    for row in rows:
        words[row >> 5] |= np.uint64(1) << np.uint64(row & 31)
    before = np.uint64(0)
    for place in range(len(words)):
        marks = words[place]
        words[place] = marks | (before << np.uint64(32))
        before += _count(marks)


@numba.njit(nogil=True, cache=True)
def _marked(words: Any, num_rows: Any) -> Any:
    rows = np.empty(num_rows, np.int32)
    found = 0
    for place in range(len(words)):
        marks = words[place] & np.uint64(0xFFFFFFFF)
        row = place * 32
        while marks:
            if marks & np.uint64(1):
                rows[found] = row
                found += 1
            row += 1
            marks >>= np.uint64(1)
    return rows


@numba.njit(nogil=True, cache=True, inline="always")
def _count(marks: Any) -> Any:
    """How many of 32 bits are set."""
    marks = marks - ((marks >> np.uint64(1)) & np.uint64(0x55555555))
    marks = (marks & np.uint64(0x33333333)) + ((marks >> np.uint64(2)) & np.uint64(0x33333333))
    marks = (marks + (marks >> np.uint64(4))) & np.uint64(0x0F0F0F0F)
    return ((marks * np.uint64(0x01010101)) & np.uint64(0xFFFFFFFF)) >> np.uint64(24)


@numba.njit(nogil=True, cache=True)
def locate(words: Any, first: Any, rows: Any, places: Any) -> None:
    """Where rows are: their distance from the table below's first row, in rows and modulo 2^64.

    Args:
        words: uint64, as the module's text says.
        first: uint64, the distance of the first changed row.
        rows: int32 [n].
        places: uint64 [n], written.
    """
    for position in range(min(_AHEAD, len(rows))):
        prefetch(words, np.intp(rows[position] >> 5) * 8)
    for position in range(len(rows)):
        if position + _AHEAD < len(rows):
            prefetch(words, np.intp(rows[position + _AHEAD] >> 5) * 8)
        row = rows[position]
        word = words[row >> 5]
        bit = np.uint64(1) << np.uint64(row & 31)
        place = np.uint64(row)
        if word & bit:
            place = first + (word >> np.uint64(32)) + _count(word & (bit - np.uint64(1)))
        places[position] = place
