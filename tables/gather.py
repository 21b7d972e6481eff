"""Rows of a table copied into one block, without the index checks and dispatch of a general gather."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["gather_rows"]


def gather_rows(table: NDArray[np.float32], rows: NDArray[np.int32], block: NDArray[np.float32]) -> None:
    """Copy rows of a table.

    Args:
        table: float32 [num_rows, D].
        rows: int32 [C, n], all within the table: they are not checked.
        block: float32 [C, n, D], written.
    """
    _gather(table, rows, block)


@numba.njit(nogil=True, cache=True)
def _gather(table: Any, rows: Any, block: Any) -> None:
    for chunk in range(rows.shape[0]):
        for position in range(rows.shape[1]):
            source = table[rows[chunk, position]]
            target = block[chunk, position]
            for column in range(len(target)):
                target[column] = source[column]
