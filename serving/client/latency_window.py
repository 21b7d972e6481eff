"""A running quantile of latency over the last requests."""

from __future__ import annotations

import threading

import numpy as np

from multifacet.serving.forks import renew_in_children

_SIZE = 512
_FRESH = 32


class LatencyWindow:
    """The quantile of the last 512 latencies, worked out anew at every 32nd; safe to share between threads.

    Args:
        quantile: 0 to 1.

    Example:
        >>> window = LatencyWindow(0.9)
        >>> for latency_s in range(1, 101):
        ...     window.record(latency_s)
        >>> window.value_s
        86.0
    """

    def __init__(self, quantile: float):
        self._quantile = quantile
        self._latencies = np.zeros(_SIZE)
        self._count = 0
        self._lock = threading.Lock()
        self.value_s: float | None = None
        """In seconds; None until there are 32."""
        renew_in_children(self)

    def renew(self) -> None:
        """Take a new lock; called in a process that was forked."""
        self._lock = threading.Lock()

    def record(self, latency_s: float) -> None:
        """Count one latency, in seconds."""
        with self._lock:
            self._latencies[self._count % _SIZE] = latency_s
            self._count += 1
            if self._count % _FRESH == 0:
                held = self._latencies[: min(self._count, _SIZE)]
                self.value_s = float(np.quantile(held, self._quantile, method="lower"))
