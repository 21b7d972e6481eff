"""The processes that torchrun has started, as one group."""

from __future__ import annotations

import datetime as dt
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["count_processes", "join_processes"]


def count_processes() -> int:
    """How many processes torchrun has started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def join_processes() -> Iterator[bool]:
    """Makes torchrun's processes a group for the length of the block: by NCCL, a GPU each, where there are any, else by gloo.

    Yields:
        Whether this process is the first one, which speaks for all; True if it is the only one.
    """
    if count_processes() == 1:
        yield True
        return
    import torch  # noqa: PLC0415 - it takes seconds, and --help should not
    import torch.distributed as dist  # noqa: PLC0415

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Others wait while the first one draws examples or writes a model; a process that dies ends them at once all the same.
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=dt.timedelta(days=1))
    try:
        yield dist.get_rank() == 0
        dist.barrier()  # what the first one writes is there when the last one ends
    finally:
        dist.destroy_process_group()
