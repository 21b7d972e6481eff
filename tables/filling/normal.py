"""First values of a table: normal noise that does not depend on how the table's rows are shared out to processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["fill_normal"]

# Rows that one random stream fills.
_BLOCK_ROWS: Final = 1 << 16


def fill_normal(rows: Tensor, first: int, *, scale: float, seed: Sequence[int]) -> None:
    """Fill a range of a table's rows with normal noise, from one stream for each block of the table.

    Args:
        rows: float [n, D], any type and device; overwritten.
        first: The number of the first of them in the table.
        scale: Standard deviation.
        seed: Non-negative integers; another table should have others.

    Raises:
        ValueError: A value is beyond the rows' type; the rows are then filled in part.
    """
    limit = torch.finfo(rows.dtype).max
    last = first + len(rows)
    for block in range(first // _BLOCK_ROWS, -(-last // _BLOCK_ROWS)):
        start = block * _BLOCK_ROWS
        begin, end = max(first, start), min(last, start + _BLOCK_ROWS)
        # A stream's rows follow each other, so that those beyond the last one need not be drawn.
        drawn = np.random.default_rng((*seed, block)).standard_normal((end - start, rows.shape[1]), dtype=np.float32)
        part = drawn[begin - start :] * np.float32(scale)
        if part.size and not (largest := np.abs(part).max()) <= limit:
            raise ValueError(
                f"noise of standard deviation {scale:g} reaches {largest:g}, and {rows.dtype} ends at {limit:g}; ask for "
                "shorter rows, or keep the table in a wider type"
            )
        rows[begin - first : end - first] = torch.from_numpy(part).to(rows)
