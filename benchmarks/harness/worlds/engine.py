"""Time in a world: what happens next, drawn from one seed, and the trace of what happened."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any


class Violation(AssertionError):  # noqa: N818  (what a world found, not a fault of the world)
    """Something happened that must never happen."""


class Engine:
    """Does what is due, in the order of time.

    Args:
        seed: Of every choice in the world.
        traced: Whether to keep a line of each thing that happens.
    """

    def __init__(self, seed: int, *, traced: bool = False) -> None:
        self.random = random.Random(seed)  # noqa: S311  (a world, not a secret)
        self.now = 0.0
        self.num_events = 0
        self.trace: list[str] | None = [] if traced else None
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._num_queued = 0

    def after(self, seconds: float, work: Callable[..., None], *arguments: Any) -> None:
        """Do something later."""
        self._num_queued += 1
        heapq.heappush(self._queue, (self.now + seconds, self._num_queued, work, arguments))

    def run(self, until: float) -> None:
        """Do all that is due until a time."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, work, arguments = heapq.heappop(queue)
            self.num_events += 1
            work(*arguments)
        self.now = max(self.now, until)

    def say(self, who: str, text: str, *arguments: object) -> None:
        """Keep a line of the trace, if there is one."""
        if self.trace is not None:
            self.trace.append(f"{self.now:9.4f} {who:>6} {text.format(*arguments)}")
