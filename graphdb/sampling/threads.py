"""Kernels on several threads: plain threads around kernels that release the GIL, as wide as torch's own setting."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_THREADS: Final = 64


class _Pool:
    """The process's one pool; a forked child, which inherits no threads, gets its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    def executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="multifacet-sampling")
            return self._executor


_pool = _Pool()


def _reset() -> None:
    global _pool  # noqa: PLW0603 - a fork's child must not touch its parent's lock
    _pool = _Pool()


os.register_at_fork(after_in_child=_reset)


def run_ranges(kernel: Callable[[int, int], object], total: int, *, min_size: int) -> None:
    """Runs `kernel(start, stop)` over `range(total)`, cut evenly over `torch.get_num_threads()` threads.

    Numba's own parallel loops would abort the process when a data loader forks its workers, or when two Python threads
    enter them at once. Plain threads do neither, and torch's setting (1 within a loader's worker) holds for both.

    Args:
        kernel: Takes a half-open range; must release the GIL to gain anything, and must not call `run_ranges`.
        total: The length to cut.
        min_size: The smallest range that is worth a thread of its own.
    """
    num_ranges = max(1, min(torch.get_num_threads(), total // max(1, min_size), _MAX_THREADS))
    if num_ranges == 1:
        kernel(0, total)
        return
    bounds = [total * part // num_ranges for part in range(num_ranges + 1)]
    executor = _pool.executor()
    futures = [executor.submit(kernel, bounds[part], bounds[part + 1]) for part in range(1, num_ranges)]
    try:
        kernel(bounds[0], bounds[1])
    finally:
        # Even after an error no thread may still write into the caller's arrays.
        for future in futures:
            future.exception()
    for future in futures:
        future.result()
