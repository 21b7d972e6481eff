"""Row codecs: FP32 and FP16 rows, and FBGEMM's fused INT8 and INT4 rows with an FP16 scale and bias.

One encoded row, with D the dimension and little-endian numbers throughout::

    fp32 | D x float32                                        | 4 D bytes
    fp16 | D x float16                                        | 2 D bytes
    int8 | D x uint8                   | fp16 scale | fp16 bias | D + 4 bytes
    int4 | D/2 x (element 2i+1, 2i)    | fp16 scale | fp16 bias | D/2 + 4 bytes   (low nibble first)

The integer rows are FBGEMM's ``FusedNBitRowwiseQuantizedSBHalf`` layout: value = code * scale + bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import fbgemm_gpu  # noqa: F401  (registers torch.ops.fbgemm)
import numba
import numpy as np
import torch
from torch import Tensor

from multifacet.inputs import expect_type
from multifacet.kernels.threads import run_ranges
from multifacet.tables.codec.decoding import decode_int4, decode_int8
from multifacet.tables.codec.refit import refit_rows
from multifacet.tables.sharded_rows import encode_sharded, is_sharded

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Precision = Literal["fp32", "fp16", "int8", "int4"]
Rounding = Literal["minmax", "greedy", "refit"]

_BITS: Final[dict[str, int]] = {"int8": 8, "int4": 4}
# FBGEMM writes codes in units of two bytes, so that scale and bias are aligned.
_DIM_MULTIPLE: Final[dict[str, int]] = {"int8": 2, "int4": 4}
# What PyTorch's and FBGEMM's documentation use.
_GREEDY_BINS: Final = 200
_GREEDY_RATIO: Final = 0.16
_FP16_MAX: Final = 65504.0
_CHUNK_VALUES: Final = 1 << 17


def row_bytes(dim: int, precision: Precision) -> int:
    """Gives the bytes of one encoded row.

    Args:
        dim: The vectors' dimension; even for int8, a multiple of 4 for int4.
        precision: One of "fp32", "fp16", "int8", "int4".

    Raises:
        ValueError: The precision is unknown, or it cannot hold this dimension.

    Example:
        >>> {precision: row_bytes(64, precision) for precision in ("fp32", "fp16", "int8", "int4")}
        {'fp32': 256, 'fp16': 128, 'int8': 68, 'int4': 36}
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}; expected one of {', '.join(get_args(Precision))}.")
    if isinstance(dim, bool) or not isinstance(dim, int | np.integer):
        raise TypeError(f"dim is {dim!r}; expected a whole number")
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


def encode(vectors: Tensor, precision: Precision, rounding: Rounding = "minmax") -> Tensor:
    """Encodes vectors row by row.

    Values that a format would silently turn into NaN or Inf are refused.

    Args:
        vectors: float32 [n, D] on the CPU; float16 and bfloat16 rows are widened, which changes no value. A sharded table
            (ShardedTensor, DTensor) is encoded where its rows are, and every process of its group, each of which must
            call this, gets the whole encoded table. One that is too long for that is encoded a part at a time:
            ``encode(vectors.local_shards()[0].tensor, ...)``.
        precision: The rows' format.
        rounding: How int8 and int4 choose a row's scale and bias; fp32 and fp16 have none, and take "minmax" only.
            "minmax": from the row's minimum to its maximum, so that the error of a value is at most half of the scale
            plus FP16's rounding of minimum and scale. "refit": fitted by least squares (see `tables.codec.refit`), which
            takes about 17% off INT4's squared error. "greedy": PyTorch's search, int4 only; ten times slower than
            "refit". All are decoded alike.

    Returns:
        uint8 [n, row_bytes(D, precision)].

    Raises:
        ValueError: Wrong dtype or shape, a dimension that the format cannot hold, or a row that `check_encodable`
            refuses; of a sharded table in every process.
        TypeError: No tensor.
    """
    _check_rounding(precision, rounding)
    if is_sharded(vectors):
        width = row_bytes(vectors.shape[1] if vectors.dim() == 2 else 0, precision)
        return encode_sharded(vectors, lambda rows: encode(rows, precision, rounding), width)
    vectors = _widened(vectors)
    if precision not in _BITS:
        check_encodable(vectors, precision)
        stored = vectors.detach().to(torch.float16 if precision == "fp16" else torch.float32, copy=True)
        return stored.contiguous().view(torch.uint8)
    if rounding == "refit":
        check_encodable(vectors, precision)
        return refit_rows(vectors, _BITS[precision])
    first_refused = _refusal(vectors, precision)
    rows = torch.empty((len(vectors), row_bytes(vectors.shape[1], precision)), dtype=torch.uint8)
    refused = _convert(vectors.detach(), rows, _row_encoder(precision, rounding), first_refused)
    if refused is not None:
        raise ValueError(_describe_refused(refused, vectors[refused].detach().numpy(), precision))
    return rows


def _row_encoder(precision: Precision, rounding: Rounding) -> Callable[[Tensor], Tensor]:
    if rounding == "greedy":
        prepack = torch.ops.quantized.embedding_bag_4bit_prepack
        return lambda chunk: prepack(chunk, True, _GREEDY_BINS, _GREEDY_RATIO)
    to_rows = torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf
    return lambda chunk: to_rows(chunk, _BITS[precision])


def _check_rounding(precision: Precision, rounding: Rounding) -> None:
    if rounding not in get_args(Rounding):
        raise ValueError(f"rounding is {rounding!r}; expected one of {', '.join(get_args(Rounding))}.")
    if (rounding == "refit" and precision not in _BITS) or (rounding == "greedy" and precision != "int4"):
        raise ValueError(f"rounding {rounding!r} does not apply to {precision} rows; leave it out.")


def decode(rows: Tensor, dim: int, precision: Precision) -> Tensor:
    """Decodes rows that `encode` wrote; int8 and int4 bit for bit as FBGEMM does.

    Args:
        rows: uint8 [n, row_bytes(dim, precision)] on the CPU, at any alignment.
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
    if precision not in _BITS:
        # The copy is aligned, as the view needs; a part of a mapped file need not be.
        stored = rows.clone(memory_format=torch.contiguous_format)
        return stored.view(torch.float16 if precision == "fp16" else torch.float32).float()
    vectors = torch.empty((len(rows), dim), dtype=torch.float32)
    source, target = rows.contiguous().numpy(), vectors.numpy()
    fill = decode_int4 if precision == "int4" else decode_int8
    run_ranges(lambda start, stop: fill(source, target, start, stop), len(rows), min_size=_chunk_rows(dim))
    return vectors


def relative_error(vectors: Tensor, decoded: Tensor) -> float:
    """Gives the squared error of decoded vectors, as a share of the vectors' sum of squares.

    Raises:
        ValueError: The shapes differ.
    """
    expect_type("vectors", vectors, Tensor)
    expect_type("decoded", decoded, Tensor)
    if vectors.shape != decoded.shape:
        raise ValueError(f"vectors are {list(vectors.shape)} and decoded {list(decoded.shape)}; expected one shape")
    return float((decoded.double() - vectors.double()).square().sum() / vectors.double().square().sum())


def check_encodable(vectors: Tensor, precision: Precision) -> None:
    """Refuses vectors that a format would store as something else without a word.

    Args:
        vectors: float32 [n, D] on the CPU.
        precision: The rows' format.

    Raises:
        ValueError: Wrong dtype or shape, or a row with NaN, Inf, a value above 65504 (FP16's largest number) for all
            formats but fp32, or a range (maximum - minimum) above it for int8 and int4. The row is named.
    """
    vectors = _widened(vectors)
    first_refused = _refusal(vectors, precision)
    refused: list[int] = []

    def check(start: int, stop: int) -> None:
        row = first_refused(start, stop)
        if row >= 0:
            refused.append(row)

    run_ranges(check, len(vectors), min_size=_chunk_rows(vectors.shape[1]))
    if refused:
        raise ValueError(_describe_refused(min(refused), vectors[min(refused)].detach().numpy(), precision))


def _refusal(vectors: Tensor, precision: Precision) -> Callable[[int, int], int]:
    """Gives a function of a range of rows: the first row that the format cannot hold, or -1."""
    _check_tensor(vectors, "vectors", torch.float32)
    row_bytes(vectors.shape[1], precision)
    limit = np.float32(np.finfo(np.float32).max if precision == "fp32" else _FP16_MAX)
    range_limit = limit if precision in _BITS else np.float32(np.inf)
    values = vectors.detach().numpy()
    return lambda start, stop: int(_first_refused(values, limit, range_limit, start, stop))


def _describe_refused(row: int, values: NDArray[np.float32], precision: Precision) -> str:
    unusable = np.flatnonzero(~np.isfinite(values))
    if len(unusable):
        reason = f"element {unusable[0]} is {values[unusable[0]]}"
    else:
        limited = "values and ranges" if precision in _BITS else "values"
        reason = (
            f"its values reach from {values.min():g} to {values.max():g}; {precision} rows hold {limited} up to {_FP16_MAX:g}"
        )
    return (
        f"Row {row} cannot be encoded as {precision}: {reason}. Such a row comes from a training that diverged: "
        "lower its learning rate, or mend the row."
    )


def _convert(
    source: Tensor,
    target: Tensor,
    convert: Callable[[Tensor], Tensor],
    first_refused: Callable[[int, int], int] = lambda _start, _stop: -1,
) -> int | None:
    """Converts row by row in chunks small enough for the cache, where FBGEMM's operators are several times faster.

    Returns:
        The first refused row; the target is then incomplete.
    """
    destination = target.numpy()
    chunk = _chunk_rows(max(source.shape[1], target.shape[1]))
    refused: list[int] = []

    def convert_range(start: int, stop: int) -> None:
        for first in range(start, stop, chunk):
            last = min(first + chunk, stop)
            row = first_refused(first, last)
            if row >= 0:
                refused.append(row)
                return
            destination[first:last] = convert(source[first:last].contiguous()).numpy()

    run_ranges(convert_range, len(source), min_size=chunk)
    return min(refused, default=None)


@numba.njit(nogil=True, cache=True)
def _first_refused(values: Any, limit: Any, range_limit: Any, start: int, stop: int) -> int:
    """The first row with a value beyond the limit (NaN is beyond every limit) or with too wide a range, or -1."""
    for row in range(start, stop):
        low, high = np.float32(np.inf), np.float32(-np.inf)
        within = True
        for column in range(values.shape[1]):
            value = values[row, column]
            within &= abs(value) <= limit
            low = min(low, value)
            high = max(high, value)
        if not within or high - low > range_limit:
            return row
    return -1


def _widened(vectors: Tensor) -> Tensor:
    """Take rows in half precision as float32."""
    if is_sharded(vectors):
        raise TypeError(
            f"vectors are a {type(vectors).__name__}, of which this process holds a part: give each part, such as "
            "`vectors.local_shards()[0].tensor`, or bring the table together with `tables.gather_rows`"
        )
    if not isinstance(vectors, Tensor):
        raise TypeError(f"vectors are a {type(vectors).__name__}; expected a float tensor [n, D] on the CPU")
    return vectors.float() if vectors.dtype in (torch.float16, torch.bfloat16) else vectors


def _check_tensor(tensor: Tensor, name: str, dtype: torch.dtype) -> None:
    expect_type(name, tensor, Tensor)
    if tensor.dtype != dtype or tensor.dim() != 2 or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; expected {dtype} [rows, columns] on cpu."
        )


def _chunk_rows(width: int) -> int:
    return max(1, _CHUNK_VALUES // max(1, width))
