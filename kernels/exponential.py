"""exp and log1p on float32 as polynomials, so that LLVM vectorises the loops they stand in.

numba calls the C library for `np.exp`, one number at a time, unless Intel's SVML is installed; a softmax over a few hundred
candidates then spends more time in exp than in the matrix product that gave the scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SMALLEST_EXPONENT", "exp_nonpositive", "log1p_unit"]

# Below it, exp is 0: what is masked by -inf has no probability and so no gradient at all.
SMALLEST_EXPONENT: Final = np.float32(-86.0)

_LOG2_E: Final = np.float32(1.4426950408889634)
# ln 2 in two parts (Cody and Waite), so that the remainder keeps its precision.
_LN_2_HIGH: Final = np.float32(0.693359375)
_LN_2_LOW: Final = np.float32(-2.12194440e-4)
_HALF: Final = np.float32(0.5)
_ONE: Final = np.float32(1.0)
_TWO: Final = np.float32(2.0)
_ZERO: Final = np.float32(0.0)
_EXP: Final = tuple(np.float32(1.0 / divisor) for divisor in (2.0, 6.0, 24.0, 120.0, 720.0))
_ATANH: Final = tuple(np.float32(2.0 / divisor) for divisor in (1.0, 3.0, 5.0, 7.0, 9.0, 11.0))


def _generate_bitcast(typing_context: Any, bits: Any) -> tuple[Any, Callable[..., Any]]:
    del typing_context, bits

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return types.float32(types.int32), generate


_float_of_bits: Any = intrinsic(_generate_bitcast)


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def exp_nonpositive(value: Any) -> Any:
    """Give exp of a number that is not above 0, float32, to a relative error of 3e-7; 0 below `SMALLEST_EXPONENT`."""
    clamped = max(value, SMALLEST_EXPONENT)
    power = np.floor(clamped * _LOG2_E + _HALF)
    rest = (clamped - power * _LN_2_HIGH) - power * _LN_2_LOW
    series = _EXP[3] + rest * _EXP[4]
    series = _EXP[2] + rest * series
    series = _EXP[1] + rest * series
    series = _EXP[0] + rest * series
    series = _ONE + rest * (_ONE + rest * series)
    scale: Any = _float_of_bits(np.int32((np.int32(power) + np.int32(127)) << np.int32(23)))
    return series * scale if value > SMALLEST_EXPONENT else _ZERO


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def log1p_unit(value: Any) -> Any:
    """Give log(1 + value) of a number within 0..1, float32, to an absolute error of 2e-7 (series of artanh)."""
    ratio = value / (_TWO + value)
    square = ratio * ratio
    series = _ATANH[4] + square * _ATANH[5]
    series = _ATANH[3] + square * series
    series = _ATANH[2] + square * series
    series = _ATANH[1] + square * series
    return ratio * (_ATANH[0] + square * series)
