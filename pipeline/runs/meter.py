"""Wall time and peak memory of a piece of work, child processes included."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import Self

import psutil


class Meter:
    """Measures what happens inside its `with` block.

    Memory is sampled, so a peak shorter than the interval can be missed; pages that processes share count once for each.

    Attributes:
        seconds: Wall time of the block.
        cpu_seconds: CPU time of this process, and of children that ended within the block.
        peak_rss_bytes: Largest resident memory of this process and its children together.
    """

    def __init__(self, interval_seconds: float = 0.05) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.peak_rss_bytes = 0
        self._interval_seconds = interval_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._started = self._cpu_started = 0.0

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        self._cpu_started = sum(os.times()[:4])
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.seconds = time.perf_counter() - self._started
        self.cpu_seconds = sum(os.times()[:4]) - self._cpu_started
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        process = psutil.Process()
        while True:
            self.peak_rss_bytes = max(self.peak_rss_bytes, _resident_bytes(process))
            if self._stop.wait(self._interval_seconds):
                return


def _resident_bytes(process: psutil.Process) -> int:
    total = 0
    for member in (process, *process.children(recursive=True)):
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:  # a child may end between being listed and being read
            continue
    return total
