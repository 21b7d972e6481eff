"""Rows of ids that stand with their rows: found and copied in one go, each cache line waited for once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from multifacet.kernels.memory import copy_bytes, load_at
from multifacet.serving.lookup.rows import DISK_US, PROBE_ROWS, ask_disk, now_us, prefetch_row
from multifacet.serving.release.manifest import KEY_BYTES
from multifacet.serving.release.placing.perfect_hash import PILOTS_AHEAD, RING, ROWS_AHEAD, ask_pilot, number_id, number_ids

if TYPE_CHECKING:
    import numpy.typing as npt

    from multifacet.serving.lookup.rows import MappedRows, Memory
    from multifacet.serving.release.placing.placed_ids import PlacedIds


def gather_placed(
    placed: PlacedIds,
    table: MappedRows,
    ids: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int32],
    memory: Memory,
    start: int,
) -> tuple[int, int]:
    """As `PlacedIds.find` and then `MappedRows.gather`, in less time.

    Args:
        placed: The ids.
        table: The table in which they stand.
        ids: int64 [n].
        rows: int32 [n], written: their rows.
        memory: Where the rows go to; long enough.
        start: The byte to begin at, a multiple of 8.

    Returns:
        How many ids are unknown; and the byte after the rows and the zeros that pad them to a multiple of 8.
    """
    stop = start + len(ids) * table.row_bytes
    if stop & 7:
        memory[0][stop >> 3] = 0
    num_unknown: int = copy_placed(*placed.numbering, *table.layout, ids, rows, memory[1], start)
    return num_unknown, (stop + 7) & ~7


@numba.njit(nogil=True, cache=True)
def copy_placed(
    pilots: Any,
    moved: Any,
    num_ids: Any,
    offset: Any,
    address: Any,
    stride: Any,
    row_bytes: Any,
    ids: Any,
    rows: Any,
    memory: Any,
    start: Any,
) -> Any:
    """Find and copy: `serving.release.placing.perfect_hash.find_placed` with the copying in it.

    If the first rows have to come from the disk, all others are asked for at once.

    Args:
        pilots: As `find_placed`.
        moved: Likewise.
        num_ids: Likewise; the row of unknown ids is this one.
        offset: Likewise.
        address: Of row 0, behind its id, uintp.
        stride: Bytes from one row to the next, uintp.
        row_bytes: Bytes of a row, uintp.
        ids: int64 [n].
        rows: int32 [n], written.
        memory: uint8, where to copy to.
        start: The byte to begin at.

    Returns:
        How many ids are unknown.
    """
    out = np.uintp(memory.ctypes.data) + np.uintp(start)
    keys, slot_bytes = address - np.uintp(KEY_BYTES), row_bytes + np.uintp(KEY_BYTES)
    hashes, buckets = np.empty(RING, np.uint64), np.empty(RING, np.int64)
    clock = np.empty(2, np.int64)
    started_us = now_us(clock)
    num_missing = np.int64(0)
    for step in range(len(ids) + PILOTS_AHEAD + ROWS_AHEAD):
        if step < len(ids):
            ask_pilot(pilots, offset, ids[step], step, hashes, buckets)
        position = step - PILOTS_AHEAD
        if 0 <= position < len(ids):
            row = number_id(pilots, moved, num_ids, position, hashes, buckets) if num_ids else np.int64(0)
            rows[position] = row
            prefetch_row(keys + np.uintp(row) * stride, slot_bytes)
        position -= ROWS_AHEAD
        if position < 0:
            continue
        if position == PROBE_ROWS and now_us(clock) - started_us > DISK_US:
            _ask_disk(pilots, moved, num_ids, offset, address, stride, row_bytes, ids[PROBE_ROWS:])
        source = address + np.uintp(rows[position]) * stride
        if num_ids == 0 or load_at(source - np.uintp(KEY_BYTES)) != ids[position]:
            rows[position] = num_ids
            source = address + np.uintp(num_ids) * stride
            num_missing += 1
        copy_bytes(out, source, row_bytes)
        out += row_bytes
    return num_missing


@numba.njit(nogil=True, cache=True)
def _ask_disk(pilots: Any, moved: Any, num_ids: Any, offset: Any, address: Any, stride: Any, row_bytes: Any, ids: Any) -> None:
    rows = np.empty(len(ids), np.int32)
    number_ids(pilots, moved, num_ids, offset, ids, rows)
    ask_disk(address, stride, row_bytes, rows)
