"""A table's tensor as what kernels read, and its memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from multifacet.kernels.half_precision import NumberFormat
from multifacet.kernels.memory import empty_on_huge_pages

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["bits", "empty_table", "number_format", "raw_bits"]

# dtype -> (torch's integer type of the same width, NumPy's type that stands for the format in kernels)
_BITS: Final[dict[torch.dtype, tuple[torch.dtype, type[Any]]]] = {
    torch.float32: (torch.float32, np.float32),
    torch.float16: (torch.int16, np.uint16),
    torch.bfloat16: (torch.int16, np.int16),
}


def number_format(dtype: torch.dtype) -> NumberFormat:
    """Give the format of one of torch's types."""
    return {
        torch.float32: NumberFormat.FP32,
        torch.float16: NumberFormat.FP16,
        torch.bfloat16: NumberFormat.BF16,
    }[dtype]


def bits(tensor: Tensor) -> NDArray[Any]:
    """View a tensor as an array that `load` and `store` of `kernels.half_precision` understand; both share their memory.

    Args:
        tensor: float32, float16 or bfloat16 on the CPU.

    Raises:
        ValueError: The tensor is of another type or on another device.
    """
    if tensor.dtype not in _BITS or tensor.device.type != "cpu":
        raise ValueError(f"the tensor is {tensor.dtype} on {tensor.device}; expected {', '.join(map(str, _BITS))} on cpu.")
    width, kind = _BITS[tensor.dtype]
    array: NDArray[Any] = tensor.detach().view(width).numpy()
    return array.view(kind)


def raw_bits(tensor: Tensor) -> NDArray[np.uint16]:
    """View a contiguous tensor [..., D] as halfwords [..., D or 2 D]: one type for kernels that are compiled once for all."""
    return bits(tensor).view(np.uint16)


def empty_table(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Allocate a tensor, on huge pages if it fills several and the system has them.

    Its contents are undefined (zero on first use).

    Raises:
        MemoryError: The system does not give so much.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if not num_bytes:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(empty_on_huge_pages(num_bytes)).view(dtype).view(shape)
