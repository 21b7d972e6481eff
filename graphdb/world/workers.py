"""Threads that run kernels which release the GIL, and hand their results back in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MIN_RANGE: Final = 16_384


class Workers:
    """A few plain threads; numba's own parallel loops would abort the process where two callers enter them at once.

    Args:
        num_threads: How many; the number of cores that this process may use by default.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        if num_threads is not None and num_threads < 1:
            msg = f"num_threads is {num_threads}; expected at least 1"
            raise ValueError(msg)
        self.num_threads = num_threads or len(os.sched_getaffinity(0))
        self._executor = ThreadPoolExecutor(self.num_threads, thread_name_prefix="multifacet-world")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._executor.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results in the items' order; at most one more than there are threads is ready or under way."""
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(self._executor.submit(function, item))
            if len(pending) > self.num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def run_ranges(self, kernel: Callable[[int, int], object], total: int) -> None:
        """Runs `kernel(start, stop)` over ranges that make up `range(total)`."""
        size = max(_MIN_RANGE, -(-total // (4 * self.num_threads)))
        for _ in self.map(lambda bounds: kernel(*bounds), ranges(total, size)):
            pass


def ranges(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `size` that make up `range(total)`.

    Example:
        >>> list(ranges(5, 2))
        [(0, 2), (2, 4), (4, 5)]
    """
    for start in range(0, total, size):
        yield start, min(start + size, total)
