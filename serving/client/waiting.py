"""Waiting for several lookups at once, so that each may do something meanwhile, such as ask a second server."""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multifacet.serving.client.lookups import PendingLookup, WatchedLookup

_WRONG = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Watch:
    """One thread's wait for lookups, which any other thread may end.

    A descriptor must not be closed while somebody polls it. So while the wait lasts, giving up only wakes the thread that
    waits, which then gives up itself.

    Args:
        give_up: Cancels the lookups; called once, by the thread that cancels if nobody waits, or by the one that waits.
    """

    __slots__ = ("_give_up", "_lock", "_waker", "cancelled")

    def __init__(self, give_up: Callable[[], None]):
        self._give_up = give_up
        self._lock = threading.Lock()
        self._waker = -1
        self.cancelled = False

    def cancel(self) -> None:
        """Give the lookups up; safe from any thread."""
        with self._lock:
            if self.cancelled:
                return
            self.cancelled = True
            if self._waker >= 0:
                os.eventfd_write(self._waker, 1)
                return
        self._give_up()

    def wait(self, lookups: Sequence[WatchedLookup]) -> None:
        """Wait until no lookup's `result` would wait, or until cancelled."""
        waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            with self._lock:
                if self.cancelled:
                    return
                self._waker = waker
            self._poll(lookups, waker)
        finally:
            with self._lock:
                self._waker = -1
                give_up = self.cancelled
            os.close(waker)
            if give_up:
                self._give_up()

    def _poll(self, lookups: Sequence[WatchedLookup], waker: int) -> None:
        waiting = list(lookups)
        ready: set[int] = set()
        while True:
            waiting = [lookup for lookup in waiting if not lookup.advance(ready)]
            if not waiting or self.cancelled:
                return
            poller = select.poll()
            poller.register(waker, select.POLLIN)
            for lookup in waiting:
                for descriptor in lookup.descriptors():
                    poller.register(descriptor, select.POLLIN)
            wait_s = min(lookup.due() for lookup in waiting) - time.monotonic()
            wait_ms = None if math.isinf(wait_s) else max(0, math.ceil(wait_s * 1000))
            ready = {descriptor for descriptor, event in poller.poll(wait_ms) if event & (select.POLLIN | _WRONG)}


def descriptor_of(pending: PendingLookup) -> int:
    """What becomes readable once a lookup's answer is there.

    Raises:
        TypeError: The lookup's client has none: connect with a policy that hedges.
    """
    fileno = getattr(pending, "fileno", None)
    if fileno is None:
        raise TypeError(f"{type(pending).__name__} cannot be watched: its client was made without watched=True")
    return int(fileno())
