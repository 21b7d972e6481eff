"""Threads for kernels that release the GIL: one pool a process, ranges that its threads take, and turns within a kernel.

Numba's own parallel loops are not used: their thread layers abort the process when two Python threads enter them at once (as
a server's do) or after a fork. Kernels compiled with ``nogil=True`` on plain threads have neither fault, and one setting
(``torch.set_num_threads``) holds for both.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

Item = TypeVar("Item")
Result = TypeVar("Result")

_MIN_RANGE: Final = 16_384
_MAX_THREADS: Final = 64
_RANGES_PER_THREAD: Final = 4


class _Pool:
    """The process's one pool; a forked child, which inherits no threads, gets its own."""

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
    global _pool  # noqa: PLW0603 - a fork's child must not touch its parent's lock
    _pool = _Pool()


os.register_at_fork(after_in_child=_reset)


def run_ranges(kernel: Callable[[int, int], object], total: int, *, min_size: int, num_threads: int | None = None) -> None:
    """Run ``kernel(start, stop)`` over ``range(total)``, cut into ranges that some threads take one after another.

    Where other work shares the cores, a thread that is kept waiting holds up no more than the range that it has begun: the
    others take the rest.

    Args:
        kernel: Takes a half-open range; must release the GIL to gain anything, and must not call `run_ranges`.
        total: The length to cut.
        min_size: The smallest share that is worth a thread of its own.
        num_threads: How many; by default as many as torch is set to, which is 1 within a data loader's worker. A process
            that has not imported torch uses a thread for each of its cores.
    """
    num_workers = num_ranges(total, min_size, num_threads)
    if num_workers == 1:
        kernel(0, total)
        return
    num_parts = min(total, _RANGES_PER_THREAD * num_workers)
    bounds = [total * part // num_parts for part in range(num_parts + 1)]
    left = iter(range(num_parts))

    def work() -> None:
        for part in left:  # a range's iterator is safe to share under the GIL
            kernel(bounds[part], bounds[part + 1])

    executor = _pool.executor()
    futures = [executor.submit(work) for _ in range(num_workers - 1)]
    try:
        work()
    finally:
        # What has not begun by now finds nothing left. Even after an error no thread may still write into the caller's arrays.
        begun = [future for future in futures if not future.cancel()]
        for future in begun:
            future.exception()
    for future in begun:
        future.result()


def num_ranges(total: int, min_size: int, num_threads: int | None = None) -> int:
    """Give the number of threads that a total is worth, each with a share of at least `min_size`."""
    return max(1, min(num_threads or _num_threads(), total // max(1, min_size), _MAX_THREADS))


def _num_threads() -> int:
    # A process that has not imported torch, as a lookup server, has not set it either.
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else len(os.sched_getaffinity(0))


class Workers:
    """A set number of the process's threads, for work whose width does not follow torch's setting.

    Args:
        num_threads: How many; the number of cores that this process may use by default.

    Raises:
        ValueError: Fewer than one.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        if num_threads is not None and num_threads < 1:
            msg = f"num_threads is {num_threads}; expected at least 1"
            raise ValueError(msg)
        self.num_threads = num_threads or len(os.sched_getaffinity(0))

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results in the items' order; at most one more than there are threads is ready or under way."""
        executor, pending = _pool.executor(), deque[Future[Result]]()
        busy = threading.Semaphore(self.num_threads)

        def run(item: Item) -> Result:
            with busy:
                return function(item)

        try:
            for item in items:
                pending.append(executor.submit(run, item))
                if len(pending) > self.num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            # After an error, or where the results are no longer wanted, nothing may go on behind the caller's back.
            for future in pending:
                future.cancel()
            for future in pending:
                if not future.cancelled():
                    future.exception()

    def run_ranges(self, kernel: Callable[[int, int], object], total: int) -> None:
        """Runs `kernel(start, stop)` over ranges that make up `range(total)`."""
        run_ranges(kernel, total, min_size=_MIN_RANGE, num_threads=self.num_threads)


def ranges(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `size` that make up `range(total)`.

    Example:
        >>> list(ranges(5, 2))
        [(0, 2), (2, 4), (4, 5)]
    """
    for start in range(0, total, size):
        yield start, min(start + size, total)


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
