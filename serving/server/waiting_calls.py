"""Calls that have begun and whose message has not come: so many, and so long, and no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from multifacet.serving.errors import InvalidRequestError

if TYPE_CHECKING:
    import grpc


class WaitingCalls:
    """Waits for the messages of calls, each on its own thread, and gives up those that wait too long.

    A call begins with its headers, its message may come later, or never. An ordinary client sends both together. When more
    calls wait than may, the one that waited longest is cancelled: whoever sends nothing but headers pushes out himself.

    Args:
        most: Calls that may wait at once.
        timeout_s: Longest wait of one, in seconds; see `sweep`.
    """

    def __init__(self, most: int, timeout_s: float):
        self._most = most
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._waiting: dict[grpc.ServicerContext, float] = {}  # the longest first
        self.num_given_up = 0

    def next_message(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """Wait for a call's next message.

        Raises:
            InvalidRequestError: The call ended without one.
            grpc.RpcError: The call was cancelled.
        """
        with self._lock:
            oldest = next(iter(self._waiting)) if len(self._waiting) >= self._most else None
            if oldest is not None:
                del self._waiting[oldest]
                self.num_given_up += 1
            self._waiting[context] = time.monotonic()
        if oldest is not None:
            oldest.cancel()
        try:
            return next(messages)
        except StopIteration:
            raise InvalidRequestError("the call has no message") from None
        finally:
            with self._lock:
                self._waiting.pop(context, None)

    def sweep(self) -> None:
        """Cancel the calls that have waited too long; called now and then."""
        since = time.monotonic() - self._timeout_s
        with self._lock:
            late = [context for context, began in self._waiting.items() if began < since]
            for context in late:
                del self._waiting[context]
            self.num_given_up += len(late)
        for context in late:
            context.cancel()

    def __len__(self) -> int:
        return len(self._waiting)
