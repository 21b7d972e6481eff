"""So many lines a place in the code and a time, and no more: a log must not be what a client can fill."""

from __future__ import annotations

import logging
import threading
import time

_LINES = 20
_EVERY_S = 10.0


class AtMost(logging.Filter):
    """Lets a line through if its place in the code has not written too many in this while; counts the others.

    Args:
        lines: Lines in that time.
        every_s: The time, in seconds.
    """

    def __init__(self, lines: int = _LINES, every_s: float = _EVERY_S):
        super().__init__()
        self._lines = lines
        self._every_s = every_s
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, int], list[float]] = {}  # since when, lines written, lines left out

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line may be written; one that is says how many of its kind were not."""
        now = time.monotonic()
        with self._lock:
            seen = self._seen.setdefault((record.pathname, record.lineno), [now, 0, 0])
            if now - seen[0] >= self._every_s:
                seen[0], seen[1] = now, 0
            if seen[1] >= self._lines:
                seen[2] += 1
                return False
            seen[1] += 1
            left_out, seen[2] = seen[2], 0
        if left_out:
            record.msg = f"{record.getMessage()} ({left_out:.0f} lines like this one were left out)"
            record.args = None
        return True


def limit_log() -> None:
    """Limit what the process writes to its log, whatever writes it."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(kept, AtMost) for kept in handler.filters):
            handler.addFilter(AtMost())
