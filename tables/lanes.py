"""A training step on all cores: as two programs of torch operations, or as kernels that every core enters.

Dozens of operations of 10 to 500 microseconds, each split over two threads, gain little and wait for each other at every one
(and lose very much when another process wants a core). Programs that meet once or twice a step keep the cores busy.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Lanes", "Preparation"]

_Result = TypeVar("_Result")


class Preparation(Generic[_Result]):
    """What a later step needs; see `Lanes.prepare`."""

    def __init__(self, program: Callable[[], _Result], prepare: Callable[[], None]) -> None:
        self._program = program
        self._prepare = prepare
        self._future: Future[_Result] = Future()

    def run(self) -> None:
        """Run the program; for `Lanes`, which sees to it that it happens once and in order."""
        try:
            self._future.set_result(self._program())
        except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
            self._future.set_exception(error)

    def result(self) -> _Result:
        """Give the program's result, after running it here if nobody has begun to."""
        self._prepare()
        return self._future.result()


class Lanes:
    """Lanes for the length of a `with` block.

    Inside the block torch's intra-op threads are shared out evenly to two lanes; afterwards they are as before. With one
    thread everything runs in the caller, in the same order and with the same results.

    Example:
        >>> with Lanes() as lanes:
        ...     later = lanes.prepare(lambda: 3)
        ...     lanes.run(lambda: 1, lambda: 2), later.result()
        ((1, 2), 3)
    """

    def __init__(self) -> None:
        self._num_threads = 1
        self._others: ThreadPoolExecutor | None = None
        self._side_track: ThreadPoolExecutor | None = None
        self._to_prepare: deque[Preparation[Any]] = deque()
        self._preparing = threading.Lock()

    def __enter__(self) -> Self:
        self._num_threads = torch.get_num_threads()
        if self._num_threads > 1:
            # Threads that start from here on take over this setting.
            torch.set_num_threads(self._num_threads // 2)
            self._others = ThreadPoolExecutor(self._num_threads - 1, thread_name_prefix="multifacet-lane")
            self._side_track = ThreadPoolExecutor(1, thread_name_prefix="multifacet-prepare")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for executor in (self._others, self._side_track):
            if executor is not None:
                executor.shutdown(wait=True, cancel_futures=True)
        self._others = self._side_track = None
        self._to_prepare.clear()
        torch.set_num_threads(self._num_threads)

    def run(self, first: Callable[[], _Result], second: Callable[[], _Result]) -> tuple[_Result, _Result]:
        """Run two programs that share no state that either changes, and wait for both; a third thread prepares."""
        if self._others is None or self._side_track is None:
            return first(), second()
        if self._to_prepare:
            self._side_track.submit(self._prepare_all)
        future = self._others.submit(second)
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
        """How many lanes run a phase: torch's intra-op threads before the block."""
        return 1 if self._others is None else self._num_threads

    def phases(self, *programs: Callable[[int], None]) -> None:
        """Run programs one after the other, each on every lane at once, and wait for all.

        Kernels inside share their work out by turns (`tables.threads.take_turn`). No lane begins a program before all have
        ended the one before; a lane that comes first to such a meeting prepares what is to be prepared, instead of waiting
        while a thread more than there are cores does so.

        Args:
            programs: each takes the lane's number, 0 in the caller.
        """
        others = self._others
        meetings = [_Meeting(self.num_lanes) for _ in programs[1:]]

        def run_lane(lane: int) -> None:
            try:
                programs[0](lane)
                for meeting, program in zip(meetings, programs[1:], strict=True):
                    if not meeting.arrive():
                        self._prepare_all()
                    meeting.wait()
                    program(lane)
            except BaseException:
                for meeting in meetings:
                    meeting.call_off()
                raise

        futures = [others.submit(run_lane, lane) for lane in range(1, self.num_lanes)] if others is not None else []
        errors: list[BaseException] = []
        try:
            run_lane(0)
        except BaseException as error:  # noqa: BLE001 - raised below, after the others have ended
            errors.append(error)
        errors += [other for future in futures if (other := future.exception()) is not None]
        if errors:
            raise min(errors, key=lambda error: isinstance(error, _CalledOffError))

    def prepare(self, program: Callable[[], _Result]) -> Preparation[_Result]:
        """Have what a later step needs made beside the next one; programs run one after the other, in order."""
        preparation = Preparation(program, self._prepare_all)
        self._to_prepare.append(preparation)
        return preparation

    def _prepare_all(self) -> None:
        with self._preparing:
            while self._to_prepare:
                self._to_prepare.popleft().run()


class _CalledOffError(Exception):
    """Another lane has failed."""


class _Meeting:
    """Where lanes wait for the last of them."""

    def __init__(self, num_lanes: int) -> None:
        self._missing = num_lanes
        self._lock = threading.Lock()
        self._is_complete = threading.Event()
        self._is_off = False

    def arrive(self) -> bool:
        """Take part; gives whether all have come."""
        with self._lock:
            self._missing -= 1
            if not self._missing:
                self._is_complete.set()
        return self._is_complete.is_set()

    def wait(self) -> None:
        """Wait for the last; raises _CalledOffError if a lane has failed."""
        self._is_complete.wait()
        if self._is_off:
            raise _CalledOffError

    def call_off(self) -> None:
        """Let nobody wait any longer."""
        self._is_off = True
        self._is_complete.set()
