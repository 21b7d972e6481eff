"""How many requests are worked on at once, and how many may wait for that."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING

from multifacet.serving.errors import DeadlineExceededError, OverloadedError

if TYPE_CHECKING:
    import grpc

_LOOK_S = 1.0


class Gate:
    """Lets some requests in at once; others wait, as long as they are not too many and not too large.

    Args:
        places: Requests that are worked on at once.
        max_waiting: Requests that may wait.
        max_waiting_bytes: Bytes that their messages may have together.

    Attributes:
        num_inside: Requests that are worked on now.
        num_waiting: Requests that wait now.
    """

    def __init__(self, places: int, max_waiting: int, max_waiting_bytes: int):
        self._num_places = places
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._changed = threading.Condition(threading.Lock())
        self.num_inside = 0
        self.num_waiting = 0
        self._waiting_bytes = 0

    def admit(self, num_bytes: int, context: grpc.ServicerContext) -> Gate:
        """Wait for a place; to be used as a context manager, which gives it back.

        Raises:
            OverloadedError: Too many wait already.
            DeadlineExceededError: Its caller's deadline passed meanwhile.
        """
        with self._changed:
            if self.num_inside >= self._num_places or self.num_waiting:
                self._wait(num_bytes, context)
            self.num_inside += 1
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self.num_inside -= 1
            if self.num_waiting:
                self._changed.notify()

    @property
    def is_empty(self) -> bool:
        """Whether nobody is inside, and nobody waits."""
        return not self.num_inside and not self.num_waiting

    def _wait(self, num_bytes: int, context: grpc.ServicerContext) -> None:
        if self.num_waiting >= self._max_waiting or self._waiting_bytes + num_bytes > self._max_waiting_bytes:
            raise OverloadedError(
                f"{self.num_inside} requests are worked on and {self.num_waiting} wait already, with {self._waiting_bytes} "
                "bytes: ask again later, or another server"
            )
        self.num_waiting += 1
        self._waiting_bytes += num_bytes
        try:
            while self.num_inside >= self._num_places:
                self._changed.wait(_LOOK_S)
                if not context.is_active():
                    raise DeadlineExceededError("the request ended before a worker was free")
        finally:
            self.num_waiting -= 1
            self._waiting_bytes -= num_bytes
