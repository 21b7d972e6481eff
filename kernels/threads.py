"""Threads for kernels that release the GIL: a pool as wide as torch's own setting, and turns that kernels take."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_THREADS: Final = 64


class _Pool:
    """The process's one pool, built at its first use and again in a forked child, which inherits no threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    def executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="multifacet-kernel")
            return self._executor


_pool = _Pool()


def _reset() -> None:
    global _pool  # noqa: PLW0603  (a fork's child must not touch its parent's lock)
    _pool = _Pool()


os.register_at_fork(after_in_child=_reset)


def run_ranges(kernel: Callable[[int, int], object], total: int, *, min_size: int) -> None:
    """Runs ``kernel(start, stop)`` over ``range(total)``, cut evenly over ``torch.get_num_threads()`` threads.

    A process without torch uses a thread for each of its cores.

    Numba's own parallel loops are not used here: their thread layers abort the process when two Python threads enter
    them at once (as a server's do) or after a fork. Kernels compiled with ``nogil=True`` on plain threads have
    neither fault, and one setting (``torch.set_num_threads``) holds for both.

    Args:
        kernel: Takes a half-open range; must release the GIL to gain anything, and must not call `run_ranges`.
        total: The length to cut.
        min_size: The smallest range worth a thread of its own.
    """
    count = num_ranges(total, min_size)
    bounds = [total * part // count for part in range(count + 1)]
    executor = _pool.executor() if count > 1 else None
    futures = []
    if executor is not None:
        futures = [executor.submit(kernel, bounds[part], bounds[part + 1]) for part in range(1, count)]
    try:
        kernel(bounds[0], bounds[1])
    finally:
        # Even after an error no thread may still write into the caller's arrays.
        for future in futures:
            future.exception()
    for future in futures:
        future.result()


def num_ranges(total: int, min_size: int) -> int:
    """How many ranges, of at least `min_size`, `run_ranges` cuts a total into: one a thread."""
    return max(1, min(_num_threads(), total // max(1, min_size), _MAX_THREADS))


def _num_threads() -> int:
    """What torch is set to; a process that has not imported it, as a lookup server, has not set it either."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else len(os.sched_getaffinity(0))


def _take_turn(typing_context: Any, counter: Any) -> tuple[Any, Callable[..., Any]]:
    del typing_context

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


take_turn: Any = intrinsic(_take_turn)
"""``take_turn(counter)``, in kernels: the counter's number (int64 [1]), which is one more for whoever asks next.

Threads that run one kernel with one counter share out its work among themselves, each turn to whoever is free, without
Python between two turns.
"""
