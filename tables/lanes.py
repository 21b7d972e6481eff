"""Two programs of small torch operations side by side, instead of each operation on two threads.

A training step is dozens of operations of 10 to 500 microseconds. Split inside each operation, two cores gain little and
wait for each other at every one (and lose very much when another process wants a core). Run as two independent programs
that meet once a step, they keep both cores busy.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

__all__ = ["Lanes"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Lanes:
    """Two lanes and a side track, for the length of a `with` block.

    Inside the block torch's intra-op threads are shared out evenly to the lanes; afterwards they are as before. With one
    thread everything runs in the caller, in the same order and with the same results.

    Example:
        >>> with Lanes() as lanes:
        ...     later = lanes.prepare(lambda: 3)
        ...     lanes.run(lambda: 1, lambda: 2), later.result()
        ((1, 2), 3)
    """

    def __init__(self) -> None:
        self._num_threads = 0
        self._lane: ThreadPoolExecutor | None = None
        self._side_track: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        self._num_threads = torch.get_num_threads()
        if self._num_threads > 1:
            # Threads that start from here on take over this setting.
            torch.set_num_threads(self._num_threads // 2)
            self._lane = ThreadPoolExecutor(1, thread_name_prefix="multifacet-lane")
            self._side_track = ThreadPoolExecutor(1, thread_name_prefix="multifacet-prepare")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for executor in (self._lane, self._side_track):
            if executor is not None:
                executor.shutdown(wait=True, cancel_futures=True)
        self._lane = self._side_track = None
        torch.set_num_threads(self._num_threads)

    def run(self, first: Callable[[], _Result], second: Callable[[], _Result]) -> tuple[_Result, _Result]:
        """Run two programs that share no state that either changes, and wait for both."""
        if self._lane is None:
            return first(), second()
        future = self._lane.submit(second)
        try:
            result = first()
        finally:
            # Even after an error nothing may still run on the caller's tensors.
            error = future.exception()
        if error is not None:
            raise error
        return result, future.result()

    @property
    def num_lanes(self) -> int:
        """How many programs `each` runs at once."""
        return 1 if self._lane is None else 2

    def each(self, program: Callable[[int, _Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        """Run a program for each item, whichever lane is free taking the next, and wait for all.

        Args:
            program: takes the lane's number (0 in the caller) and the item; two lanes run it at once.
            items: taken in order.

        Returns:
            The results, in the items' order.
        """
        results: dict[int, _Result] = {}
        waiting = iter(enumerate(items))  # a step of it is one operation under the interpreter's lock

        def run_lane(lane: int) -> None:
            for position, item in waiting:
                results[position] = program(lane, item)

        if self._lane is None or len(items) < 2:
            run_lane(0)
        else:
            self.run(lambda: run_lane(0), lambda: run_lane(1))
        return [results[position] for position in range(len(items))]

    def prepare(self, program: Callable[[], _Result]) -> Future[_Result]:
        """Start what the next step needs, beside this step; programs run one after the other, in order."""
        if self._side_track is not None:
            return self._side_track.submit(program)
        future: Future[_Result] = Future()
        future.set_result(program())
        return future
