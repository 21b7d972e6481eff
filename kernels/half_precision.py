"""Half-precision numbers inside numba kernels, which has no type for them: FP16 as uint16 bits, BF16 as int16 bits.

A kernel calls `load(array, index)` and `store(array, index, value)` on one row; its dtype says which format it
holds. Conversions to FP16 are the processor's own (round to nearest, ties to even), those to BF16 round the same way.

A table that is trained in half precision needs another rounding: a step of less than half of the last place would be lost each
time. `store_stochastically` rounds up or down by chance, in proportion to the distance, so that the mean is the number itself.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core.errors import TypingError

if TYPE_CHECKING:
    pass

# numba's own annotations describe what it compiles, not what a caller sees.
_intrinsic: Any = extending.intrinsic
_overload: Any = extending.overload


class NumberFormat(IntEnum):
    """A number format, by the number that kernels know it by where a table comes as raw bits (`tables.tensors.raw_bits`)."""

    FP32 = 0
    FP16 = 1
    BF16 = 2


_SMALLEST_NORMAL_FP16: Final = 113 << 23  # 2^-14 as a float32's bits


def load(array: Any, index: Any) -> Any:
    """Reads one number as float32."""
    raise NotImplementedError("only inside numba kernels")


def store(array: Any, index: Any, value: Any) -> None:
    """Writes one float32, rounded to the array's format."""
    raise NotImplementedError("only inside numba kernels")


def store_stochastically(array: Any, index: Any, value: Any, random: Any) -> None:
    """Writes one float32, rounded to the array's format by chance.

    Args:
        array: as in `store`.
        index: as in `store`.
        value: float32.
        random: uint32, uniform.
    """
    raise NotImplementedError("only inside numba kernels")


@_intrinsic  # type: ignore[untyped-decorator]
def from_fp16(_context: Any, _value: Any) -> Any:
    """Turns FP16 bits (uint16) into float32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@_intrinsic  # type: ignore[untyped-decorator]
def to_fp16(_context: Any, _value: Any) -> Any:
    """Rounds float32 to FP16 bits (uint16)."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@_intrinsic  # type: ignore[untyped-decorator]
def _as_float(_context: Any, _value: Any) -> Any:
    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@_intrinsic  # type: ignore[untyped-decorator]
def _as_bits(_context: Any, _value: Any) -> Any:
    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


# Not strict: the implementations are not annotated as the signatures are.
@_overload(load, strict=False)  # type: ignore[untyped-decorator]
def _load(array: Any, index: Any) -> Any:  # noqa: ARG001
    if array.dtype == types.float32:
        return lambda array, index: array[index]
    if array.dtype == types.uint16:
        return lambda array, index: from_fp16(array[index])
    if array.dtype == types.int16:
        return lambda array, index: _as_float(np.uint32(np.uint16(array[index])) << np.uint32(16))
    raise TypingError(f"no number format is known for {array.dtype}")


@_overload(store, strict=False)  # type: ignore[untyped-decorator]
def _store(array: Any, index: Any, value: Any) -> Any:  # noqa: ARG001
    if array.dtype == types.float32:

        def store_fp32(array: Any, index: Any, value: Any) -> None:
            array[index] = value

        return store_fp32
    if array.dtype == types.uint16:

        def store_fp16(array: Any, index: Any, value: Any) -> None:
            array[index] = to_fp16(np.float32(value))

        return store_fp16
    if array.dtype == types.int16:

        def store_bf16(array: Any, index: Any, value: Any) -> None:
            number = _as_bits(np.float32(value))
            odd = (number >> np.uint32(16)) & np.uint32(1)
            array[index] = np.int16(np.uint16((number + np.uint32(0x7FFF) + odd) >> np.uint32(16)))

        return store_bf16
    raise TypingError(f"no number format is known for {array.dtype}")


@_overload(store_stochastically, strict=False)  # type: ignore[untyped-decorator]
def _store_stochastically(array: Any, index: Any, value: Any, random: Any) -> Any:  # noqa: ARG001
    if array.dtype == types.float32:

        def store_fp32(array: Any, index: Any, value: Any, random: Any) -> None:  # noqa: ARG001
            array[index] = value

        return store_fp32
    if array.dtype == types.uint16:

        def store_fp16(array: Any, index: Any, value: Any, random: Any) -> None:
            number = _as_bits(np.float32(value))
            if (number & np.uint32(0x7FFFFFFF)) >= np.uint32(_SMALLEST_NORMAL_FP16):
                # FP16 keeps 10 of 23 digits: a carry out of the other 13 is the chance to round up.
                number = np.uint32((number + (random & np.uint32(0x1FFF))) & np.uint32(0xFFFFE000))
                array[index] = to_fp16(_as_float(number))
            else:
                # Below, FP16's numbers lie evenly, 2^-24 apart.
                share = np.float32(random >> np.uint32(8)) * np.float32(2.0**-24) - np.float32(0.5)
                array[index] = to_fp16(np.float32(value) + share * np.float32(2.0**-24))

        return store_fp16
    if array.dtype == types.int16:

        def store_bf16(array: Any, index: Any, value: Any, random: Any) -> None:
            number = _as_bits(np.float32(value)) + (random & np.uint32(0xFFFF))
            array[index] = np.int16(np.uint16(np.uint32(number) >> np.uint32(16)))

        return store_bf16
    raise TypingError(f"no number format is known for {array.dtype}")
