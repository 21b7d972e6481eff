"""A training step on all cores: as two programs of torch operations, or as kernels that every core enters.

Dozens of operations of 10 to 500 microseconds, each split over two threads, gain little and wait for each other at every one
(and lose very much when another process wants a core). Programs that meet once or twice a step keep the cores busy.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Lanes", "Preparation", "PreparingThread"]

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
        self._others: list[_Worker] = []
        self._side_track: _Worker | None = None
        self._to_prepare: deque[Preparation[Any]] = deque()
        self._preparing = threading.Lock()

    def __enter__(self) -> Self:
        self._num_threads = torch.get_num_threads()
        if self._num_threads > 1:
            # Threads that start from here on take over this setting.
            torch.set_num_threads(self._num_threads // 2)
            self._others = [_Worker(f"multifacet-lane-{lane}") for lane in range(1, self._num_threads)]
            self._side_track = _Worker("multifacet-prepare")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._to_prepare.clear()
        for worker in (*self._others, self._side_track):
            if worker is not None:
                worker.stop()
        self._others, self._side_track = [], None
        torch.set_num_threads(self._num_threads)

    def run(self, first: Callable[[], _Result], second: Callable[[], _Result]) -> tuple[_Result, _Result]:
        """Run two programs that share no state that either changes, and wait for both; a third thread prepares."""
        if self._side_track is None:
            return first(), second()
        if self._to_prepare:
            self._side_track.start(self._prepare_all)
        results: list[_Result] = []
        # Even after an error nothing may still run on the caller's tensors.
        meeting = _Meeting(2)
        beside = Preparation(second, lambda: None)

        def run_beside() -> None:
            beside.run()
            meeting.arrive()

        self._others[0].start(run_beside)
        try:
            results.append(first())
        finally:
            meeting.arrive()
            meeting.wait()
        return results[0], beside.result()

    @property
    def num_lanes(self) -> int:
        """How many lanes run a phase: torch's intra-op threads before the block."""
        return 1 + len(self._others)

    def phases(self, *programs: Callable[[int], None]) -> None:
        """Run programs one after the other, each on every lane at once, and wait for all.

        Kernels inside share their work out by turns (`kernels.threads.take_turn`). No lane begins a program before all have
        ended the one before; a lane that comes first to such a meeting prepares what is to be prepared, instead of waiting
        while a thread more than there are cores does so.

        Args:
            programs: each takes the lane's number, 0 in the caller.
        """
        meetings = [_Meeting(self.num_lanes) for _ in programs]
        errors: list[BaseException] = []

        def run_lane(lane: int) -> None:
            for meeting, program in zip(meetings, programs, strict=True):
                try:
                    if not errors:
                        program(lane)
                except BaseException as error:  # noqa: BLE001 - raised below, after all lanes have ended
                    errors.append(error)
                is_last = meeting is meetings[-1]
                if not meeting.arrive() and not is_last:
                    self._prepare_all()
                if lane == 0 or not is_last:
                    meeting.wait()

        for lane, worker in enumerate(self._others, start=1):
            worker.start(partial(run_lane, lane))
        run_lane(0)
        if errors:
            raise errors[0]

    def prepare(self, program: Callable[[], _Result]) -> Preparation[_Result]:
        """Have what a later step needs made beside the next one; programs run one after the other, in order."""
        preparation = Preparation(program, self._prepare_all)
        self._to_prepare.append(preparation)
        return preparation

    def _prepare_all(self) -> None:
        with self._preparing:
            while self._to_prepare:
                self._to_prepare.popleft().run()


class PreparingThread:
    """One thread that prepares, for the length of a `with` block: for steps that are not programs of `Lanes`.

    So it does where torch has a single thread, as under torchrun, and the step waits for a GPU or for other processes.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="multifacet-prepare")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._executor.shutdown(cancel_futures=True)

    def prepare(self, program: Callable[[], _Result]) -> Future[_Result]:
        """Have what a later step needs made beside this one; programs run one after the other, in order."""
        return self._executor.submit(program)


class _Worker:
    """A thread that runs programs one after the other; its programs hand their errors on by themselves."""

    def __init__(self, name: str) -> None:
        self._programs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def start(self, program: Callable[[], object]) -> None:
        """Run a program after those before it."""
        self._programs.put(program)

    def stop(self) -> None:
        """End after the programs that were started."""
        self._programs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (program := self._programs.get()) is not None:
            program()


class _Meeting:
    """Where lanes wait for the last of them."""

    def __init__(self, num_lanes: int) -> None:
        self._missing = num_lanes
        self._counting = threading.Lock()
        self._door = threading.Lock()  # locked until all have come
        self._door.acquire()

    def arrive(self) -> bool:
        """Take part; gives whether all have come."""
        with self._counting:
            self._missing -= 1
            if not self._missing:
                self._door.release()
            return not self._missing

    def wait(self) -> None:
        """Wait for the last."""
        with self._door:
            pass
