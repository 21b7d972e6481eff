"""Integer rows whose scale and bias are fitted to the row by least squares.

Min/max quantisation spends its codes on a row's two outermost values. Here two steps alternate, as in Lloyd's algorithm
with equidistant levels: each value gets the nearest level, then scale and bias are the least squares line through
(code, value)::

    scale = cov(code, value) / var(code)        bias = mean(value) - scale mean(code)

Neither step can raise the row's squared error, but they end in the next local minimum, so they start from several
ranges, cut at either end; the error after a start's first line is known without a second pass over the row, and only the
best starts go on. At the end scale and bias are rounded to FP16, as the format stores them, the codes are chosen anew
for the rounded ones, and the least error wins. Min/max as FBGEMM does it takes part, so that a refitted row is never
worse than that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np
import torch

from multifacet.tables.halves import from_fp16, to_fp16
from multifacet.tables.threads import run_ranges

if TYPE_CHECKING:
    from torch import Tensor

_MIN_ROWS_PER_THREAD: Final = 256
# Shares of the row's range that are cut at either end. Chosen on Gaussian and Student-t rows of 16 to 256 values: coarser
# ones end in worse minima, finer ones and more iterations change the error by less than 0.2%.
_CUTS: Final = (0.0, 0.04, 0.08, 0.12, 0.16)
_NUM_KEPT: Final = 3
_NUM_ITERATIONS: Final = 3


def refit_rows(vectors: Tensor, bits: int) -> Tensor:
    """Encodes rows with fitted scales and biases, in the layout of `tables.codec`.

    Args:
        vectors: float32 [n, D] on the CPU, checked by `check_encodable`.
        bits: 4 or 8.

    Returns:
        uint8 [n, D * bits / 8 + 4].
    """
    dim = vectors.shape[1]
    rows = torch.empty((len(vectors), dim * bits // 8 + 4), dtype=torch.uint8)
    source, target = vectors.detach().contiguous().numpy().reshape(-1), rows.numpy()
    cuts = np.array(_CUTS, np.float32)
    run_ranges(
        lambda start, stop: _refit(source, target, dim, bits, cuts, _NUM_KEPT, _NUM_ITERATIONS, start, stop),
        len(vectors),
        min_size=_MIN_ROWS_PER_THREAD,
    )
    return rows


@numba.njit(nogil=True, cache=True)
def _refit(
    source: Any, target: Any, dim: int, bits: int, cuts: Any, num_kept: int, num_iterations: int, start: int, stop: int
) -> None:
    top = np.float32((1 << bits) - 1)
    values, codes = np.empty(dim, np.float32), np.empty(dim, np.float32)
    errors, lines = np.empty(num_kept, np.float32), np.empty((num_kept, 2), np.float32)
    for row in range(start, stop):
        offset = np.uintp(row * dim)
        for element in range(dim):
            values[np.uintp(element)] = source[offset + np.uintp(element)]
        low, high = _bounds(values)
        # FBGEMM's own choice: the bias is the minimum in FP16, and the scale spans from there to the maximum.
        best_bias = from_fp16(to_fp16(low))
        best_scale = from_fp16(to_fp16((high - best_bias) / top))
        if best_scale == 0:
            best_scale = np.float32(1)
        best_error = _assign(values, codes, best_scale, best_bias, top)
        _start(values, low, high, cuts, top, errors, lines)
        for kept in range(num_kept):
            scale, bias = lines[kept]
            if errors[kept] == np.inf:
                break
            for _ in range(num_iterations):
                if scale > 0:
                    _, scale, bias = _fit(values, scale, bias, top)
            scale, bias = from_fp16(to_fp16(scale)), from_fp16(to_fp16(bias))
            if not 0 < scale < np.inf or not abs(bias) < np.inf:
                continue
            error = _assign(values, codes, scale, bias, top)
            if error < best_error:
                best_error, best_scale, best_bias = error, scale, bias
        _assign(values, codes, best_scale, best_bias, top)
        _pack(codes, target[row], bits, to_fp16(best_scale), to_fp16(best_bias))


@numba.njit(nogil=True, cache=True)
def _start(values: Any, low: Any, high: Any, cuts: Any, top: Any, errors: Any, lines: Any) -> None:
    """Fills `lines` with the best (scale, bias) after one step from each cut range, the best first."""
    errors[:] = np.inf
    for low_cut in cuts:
        for high_cut in cuts:
            scale = (high - low) * (np.float32(1) - low_cut - high_cut) / top
            if scale > 0:
                _try_start(values, scale, low + (high - low) * low_cut, top, errors, lines)


@numba.njit(nogil=True, cache=True)
def _try_start(values: Any, scale: Any, bias: Any, top: Any, errors: Any, lines: Any) -> None:
    """Fits a line and keeps it if it is among the best."""
    error, scale, bias = _fit(values, scale, bias, top)
    place = len(errors)
    while place > 0 and error < errors[place - 1]:
        place -= 1
    if place < len(errors):
        for other in range(len(errors) - 1, place, -1):
            errors[other] = errors[other - 1]
            lines[other] = lines[other - 1]
        errors[place] = error
        lines[place, 0], lines[place, 1] = scale, bias


@numba.njit(nogil=True, cache=True, fastmath=True)
def _bounds(values: Any) -> Any:
    low, high = values[0], values[0]
    for element in range(len(values)):
        low = min(low, values[np.uintp(element)])
        high = max(high, values[np.uintp(element)])
    return low, high


@numba.njit(nogil=True, cache=True, fastmath=True)
def _assign(values: Any, codes: Any, scale: Any, bias: Any, top: Any) -> Any:
    """Gives each value the nearest level; gives the squared error."""
    inverse = np.float32(1) / scale
    error = np.float32(0)
    for element in range(len(values)):
        value = values[np.uintp(element)]
        code = np.rint(min(max((value - bias) * inverse, np.float32(0)), top))
        codes[np.uintp(element)] = code
        rest = value - (code * scale + bias)
        error += rest * rest
    return error


@numba.njit(nogil=True, cache=True, fastmath=True)
def _fit(values: Any, scale: Any, bias: Any, top: Any) -> Any:
    """Gives each value the nearest level, then the least squares line; gives its squared error, scale and bias."""
    inverse = np.float32(1) / scale
    # About the middle level, where sums of large codes do not cancel.
    middle = np.rint(top * np.float32(0.5))
    sum_codes, sum_squares, sum_products = np.float32(0), np.float32(0), np.float32(0)
    sum_values, sum_value_squares = np.float32(0), np.float32(0)
    for element in range(len(values)):
        value = (values[np.uintp(element)] - bias) * inverse - middle
        code = np.rint(min(max(value, -middle), top - middle))
        sum_codes += code
        sum_squares += code * code
        sum_values += value
        sum_value_squares += value * value
        sum_products += code * value
    count = np.float32(len(values))
    spread = sum_squares - sum_codes * sum_codes / count
    if not spread > 0:
        return np.float32(np.inf), scale, bias
    covariance = sum_products - sum_codes * sum_values / count
    slope = covariance / spread
    error = (sum_value_squares - sum_values * sum_values / count - covariance * slope) * scale * scale
    # In units of the old scale, with codes counted from the middle: value = slope * code + shift.
    shift = (sum_values - slope * sum_codes) / count
    return error, slope * scale, bias + (middle + shift - slope * middle) * scale


@numba.njit(nogil=True, cache=True)
def _pack(codes: Any, row: Any, bits: int, scale: Any, bias: Any) -> None:
    if bits == 4:
        for byte in range(len(codes) // 2):
            row[byte] = np.uint8(codes[2 * byte]) | (np.uint8(codes[2 * byte + 1]) << np.uint8(4))
    else:
        for byte in range(len(codes)):
            row[byte] = np.uint8(codes[byte])
    end = len(row) - 4
    row[end], row[end + 1] = np.uint8(scale & np.uint16(255)), np.uint8(scale >> np.uint16(8))
    row[end + 2], row[end + 3] = np.uint8(bias & np.uint16(255)), np.uint8(bias >> np.uint16(8))
