"""Row codecs: FP32 and FP16 rows, and FBGEMM's fused INT8 and INT4 rows with an FP16 scale and bias.

One encoded row, with D the dimension and little-endian numbers throughout::

    fp32 | D x float32                                        | 4 D bytes
    fp16 | D x float16                                        | 2 D bytes
    int8 | D x uint8                   | fp16 scale | fp16 bias | D + 4 bytes
    int4 | D/2 x (element 2i+1, 2i)    | fp16 scale | fp16 bias | D/2 + 4 bytes   (low nibble first)

The integer rows are FBGEMM's ``FusedNBitRowwiseQuantizedSBHalf`` layout: value = code * scale + bias.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import fbgemm_gpu  # noqa: F401  (registers torch.ops.fbgemm)
import torch
from torch import Tensor

from tables.threads import run_ranges

Precision = Literal["fp32", "fp16", "int8", "int4"]

_BITS: Final[dict[str, int]] = {"int8": 8, "int4": 4}
# FBGEMM writes codes in units of two bytes, so that scale and bias are aligned.
_DIM_MULTIPLE: Final[dict[str, int]] = {"int8": 2, "int4": 4}
_FP16_MAX: Final = 65504.0
_CHUNK_BYTES: Final = 4 << 20


def row_bytes(dim: int, precision: Precision) -> int:
    """Gives the bytes of one encoded row.

    Args:
        dim: The vectors' dimension; even for int8, a multiple of 4 for int4.
        precision: One of "fp32", "fp16", "int8", "int4".

    Raises:
        ValueError: The precision is unknown, or it cannot hold this dimension.

    Example:
        >>> [row_bytes(64, precision) for precision in ("fp32", "fp16", "int8", "int4")]
        [256, 128, 68, 36]
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}; expected one of {', '.join(get_args(Precision))}.")
    if dim < 1:
        raise ValueError(f"dim is {dim}; expected at least 1.")
    if precision == "fp32":
        return 4 * dim
    if precision == "fp16":
        return 2 * dim
    multiple = _DIM_MULTIPLE[precision]
    if dim % multiple:
        raise ValueError(
            f"{precision} rows need a dim that is a multiple of {multiple}, not {dim}: train the table with "
            f"dim={dim + multiple - dim % multiple}, or choose fp16."
        )
    return dim * _BITS[precision] // 8 + 4


def encode(vectors: Tensor, precision: Precision) -> Tensor:
    """Encodes vectors row by row.

    Values that a format would silently turn into NaN or Inf are refused. For int8 and int4 the error of a value is
    at most half of its row's scale plus FP16's rounding of the row's minimum and of the scale.

    Args:
        vectors: float32 [n, D] on the CPU.
        precision: The rows' format.

    Returns:
        uint8 [n, row_bytes(D, precision)].

    Raises:
        ValueError: Wrong dtype or shape, a dimension that the format cannot hold, or a row with NaN, Inf, or (for
            all but fp32) a value or a range (maximum - minimum) above 65504, FP16's largest number. The row is named.
    """
    _check_tensor(vectors, "vectors", torch.float32)
    num_rows, dim = vectors.shape
    width = row_bytes(dim, precision)
    rows = torch.empty((num_rows, width), dtype=torch.uint8)
    chunk = _chunk_rows(dim)

    def encode_range(start: int, stop: int) -> None:
        with torch.inference_mode():
            for first in range(start, stop, chunk):
                part = vectors[first : min(first + chunk, stop)].contiguous()
                _check_rows(part, first, precision)
                rows[first : first + len(part)] = _encode_rows(part, precision)

    run_ranges(encode_range, num_rows, min_size=chunk)
    return rows


def decode(rows: Tensor, dim: int, precision: Precision) -> Tensor:
    """Decodes rows that `encode` wrote; int8 and int4 bit for bit as FBGEMM does.

    Args:
        rows: uint8 [n, row_bytes(dim, precision)] on the CPU.
        dim: The vectors' dimension D.
        precision: The rows' format.

    Returns:
        float32 [n, D].

    Raises:
        ValueError: Wrong dtype, shape, dimension or precision.
    """
    _check_tensor(rows, "rows", torch.uint8)
    width = row_bytes(dim, precision)
    if rows.shape[1] != width:
        raise ValueError(f"rows have {rows.shape[1]} bytes; {precision} rows of dim {dim} have {width}.")
    vectors = torch.empty((len(rows), dim), dtype=torch.float32)
    chunk = _chunk_rows(dim)

    def decode_range(start: int, stop: int) -> None:
        with torch.inference_mode():
            for first in range(start, stop, chunk):
                part = rows[first : min(first + chunk, stop)].contiguous()
                vectors[first : first + len(part)] = _decode_rows(part, precision)

    run_ranges(decode_range, len(rows), min_size=chunk)
    return vectors


def _encode_rows(vectors: Tensor, precision: Precision) -> Tensor:
    if precision in _BITS:
        encoded: Tensor = torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(vectors, _BITS[precision])
        return encoded
    return (vectors.half() if precision == "fp16" else vectors).view(torch.uint8)


def _decode_rows(rows: Tensor, precision: Precision) -> Tensor:
    if precision in _BITS:
        decoded: Tensor = torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(rows, _BITS[precision])
        return decoded
    return rows.view(torch.float16 if precision == "fp16" else torch.float32)


def _check_rows(vectors: Tensor, first_row: int, precision: Precision) -> None:
    low, high = torch.aminmax(vectors, dim=1)  # NaN wins over every number in both
    if precision == "fp32":
        good = torch.isfinite(low) & torch.isfinite(high)
    else:
        good = (low >= -_FP16_MAX) & (high <= _FP16_MAX)
        if precision in _BITS:
            good &= (high - low) <= _FP16_MAX
    if bool(good.all()):
        return
    bad = int((~good).nonzero()[0])
    row = vectors[bad]
    finite = bool(torch.isfinite(row).all())
    detail = (
        f"its values reach from {float(low[bad]):g} to {float(high[bad]):g}; {precision} rows hold values"
        f"{' and ranges' if precision in _BITS else ''} up to {_FP16_MAX:g}"
        if finite
        else f"its element {int((~torch.isfinite(row)).nonzero()[0])} is {float(row[~torch.isfinite(row)][0])}"
    )
    raise ValueError(
        f"Row {first_row + bad} cannot be encoded as {precision}: {detail}. "
        "Such a row comes from a training that diverged; lower its learning rate, or mend the row."
    )


def _check_tensor(tensor: Tensor, name: str, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype or tensor.dim() != 2 or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; expected {dtype} [rows, columns] on cpu."
        )


def _chunk_rows(dim: int) -> int:
    return max(1, _CHUNK_BYTES // (4 * dim))
