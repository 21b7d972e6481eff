"""Memory that is a process's own: not the files that it maps, which all processes share and the system may drop."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_EVERY_S = 0.01


def own_bytes(pid: int) -> int:
    """Anonymous memory of a process that is in memory now, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


class PeakMemory:
    """The most memory of its own that this process had within the ``with`` block, looked at every hundredth of a second.

    Attributes:
        growth: How much more it had at most than at the block's beginning, in bytes.
    """

    def __init__(self) -> None:
        self.growth = 0
        self._before = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._before = own_bytes(os.getpid())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        self.growth = max(self.growth, own_bytes(os.getpid()) - self._before)
