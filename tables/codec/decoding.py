"""Decodes INT8 and INT4 rows: value = code x scale + bias, bit for bit what FBGEMM's operator gives.

A code times an FP16 scale has at most 19 bits, so that the product is exact in float32 and the sum alone is rounded: whether a
processor multiplies and adds in one step or in two, the bits are the same.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from multifacet.kernels.half_precision import from_fp16


@numba.njit(nogil=True, cache=True)
def decode_int4(rows: Any, vectors: Any, start: int, stop: int) -> None:
    """Fill vectors[start:stop] (float32 [n, D]) from rows (uint8 [n, D / 2 + 4])."""
    half = rows.shape[1] - 4
    # The processor works on many neighbours at once: first all low halves of bytes, then all high ones, and last their order.
    low, high = np.empty(half, np.float32), np.empty(half, np.float32)
    for row in range(start, stop):
        scale, bias = _number(rows, row, half), _number(rows, row, half + 2)
        for byte in range(half):
            low[byte] = np.float32(rows[row, byte] & 15) * scale + bias
        for byte in range(half):
            high[byte] = np.float32(rows[row, byte] >> 4) * scale + bias
        for byte in range(half):
            vectors[row, 2 * byte] = low[byte]
            vectors[row, 2 * byte + 1] = high[byte]


@numba.njit(nogil=True, cache=True)
def decode_int8(rows: Any, vectors: Any, start: int, stop: int) -> None:
    """Fill vectors[start:stop] (float32 [n, D]) from rows (uint8 [n, D + 4])."""
    dim = rows.shape[1] - 4
    for row in range(start, stop):
        scale, bias = _number(rows, row, dim), _number(rows, row, dim + 2)
        for column in range(dim):
            vectors[row, column] = np.float32(rows[row, column]) * scale + bias


@numba.njit(nogil=True, cache=True, inline="always")
def _number(rows: Any, row: Any, byte: Any) -> Any:
    """The float16 at a byte of a row, as float32."""
    return from_fp16(np.uint16(rows[row, byte]) | (np.uint16(rows[row, byte + 1]) << np.uint16(8)))
