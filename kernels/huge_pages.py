"""Memory on huge pages, for tables whose rows are read in no order.

A table of hundreds of megabytes has more pages of 4 KiB than the processor remembers addresses of: nearly every row then waits
for a walk through the page table before it waits for its own bytes. Pages of 2 MiB make it 512 times fewer. The system gives
them to who asks (`madvise`), where its setting is "madvise" or "always"; elsewhere this is ordinary memory.
"""

from __future__ import annotations

import math
import mmap
from typing import Final

import torch

__all__ = ["empty_on_huge_pages"]

_HUGE_PAGE_BYTES: Final = 1 << 21


def empty_on_huge_pages(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Allocate a tensor, on huge pages if it fills several and the system has them; its numbers are any, at first 0.

    Raises:
        MemoryError: The system does not give so much.
    """
    num_values = math.prod(shape)
    num_bytes = num_values * dtype.itemsize
    if num_bytes < 2 * _HUGE_PAGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype)
    try:
        mapped = mmap.mmap(-1, num_bytes + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"a tensor of {list(shape)}, {num_bytes} bytes, could not be allocated: {error}") from error
    try:
        mapped.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them
        return torch.empty(shape, dtype=dtype)
    address = torch.frombuffer(mapped, dtype=torch.uint8, count=1).data_ptr()
    # A page that begins before the tensor does would hold less of it.
    return torch.frombuffer(mapped, dtype=dtype, count=num_values, offset=-address % _HUGE_PAGE_BYTES).view(shape)
