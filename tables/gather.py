"""Rows of a table copied into one block, inside kernels."""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np

from multifacet.tables.halves import load
from multifacet.tables.prefetch import prefetch

__all__ = ["gather_rows"]

_AHEAD: Final = 8  # rows that are on their way from memory while one is copied


@numba.njit(nogil=True, cache=True)
def gather_rows(table: Any, rows: Any, block: Any) -> None:
    """Copy rows [n] of a table [num_rows, D], of any format of `tables.halves`, to a float32 block [n, D].

    They must lie within the table, as nothing checks them.
    """
    dim = table.shape[1]
    for position in range(len(rows)):
        if position + _AHEAD < len(rows):
            place = np.int64(rows[position + _AHEAD]) * dim * table.itemsize
            for line in range(0, dim * table.itemsize, 64):
                prefetch(table, place + line)
        source, target = table[rows[position]], block[position]
        for column in range(dim):
            target[column] = load(source, column)
