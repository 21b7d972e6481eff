"""Latencies in log-linear buckets, as HdrHistogram keeps them: any range, a fixed relative error, constant memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_SUB_BITS = 10
_SUB = 1 << _SUB_BITS
_OCTAVES = 40


class LatencyHistogram:
    """Counts latencies of 1 us to a week; a quantile is within 0.1 % of the true one.

    Up to 2,048 us each microsecond has a bucket; beyond, each power of two has 1,024 of equal width.

    Example:
        >>> histogram = LatencyHistogram()
        >>> for latency_us in range(1, 1001):
        ...     histogram.record(latency_us)
        >>> histogram.count, histogram.quantile_us(0.5), histogram.quantile_us(1)
        (1000, 500, 1000)
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_SUB * (_OCTAVES + 1), np.int64)
        self.max_us = 0

    @property
    def count(self) -> int:
        """How many were recorded."""
        return int(self._counts.sum())

    def record(self, latency_us: int) -> None:
        """Count one latency.

        Args:
            latency_us: In microseconds; what is below 0 counts as 0.
        """
        latency_us = max(0, latency_us)
        shift = max(0, latency_us.bit_length() - _SUB_BITS - 1)
        self._counts[min(shift * _SUB + (latency_us >> shift), len(self._counts) - 1)] += 1
        self.max_us = max(self.max_us, latency_us)

    def add(self, other: LatencyHistogram) -> None:
        """Count what another one counted."""
        self._counts += other._counts
        self.max_us = max(self.max_us, other.max_us)

    def quantile_us(self, quantile: float) -> int:
        """The least latency that at least this share of the requests kept to, as the upper edge of its bucket.

        Args:
            quantile: 0 to 1.

        Raises:
            ValueError: Nothing was recorded, or the quantile is none.
        """
        if not 0 <= quantile <= 1:
            raise ValueError(f"the quantile is {quantile}: expected 0 to 1")
        cumulative = np.cumsum(self._counts)
        if not cumulative[-1]:
            raise ValueError("no latency was recorded")
        rank = max(1, int(np.ceil(quantile * cumulative[-1])))
        return min(_upper_edge_us(int(np.searchsorted(cumulative, rank))), self.max_us)

    def curve(self) -> Iterator[tuple[float, int]]:
        """Pairs of quantile and latency in us, one for each bucket that counted any, the shortest first."""
        total = self.count
        below = 0
        for bucket in np.flatnonzero(self._counts).tolist():
            below += int(self._counts[bucket])
            yield below / total, min(_upper_edge_us(bucket), self.max_us)

    def summary_ms(self) -> dict[str, float]:
        """The usual quantiles, in milliseconds; empty if nothing was recorded."""
        if not self.count:
            return {}
        quantiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
        return {name: self.quantile_us(quantile) / 1e3 for name, quantile in quantiles.items()} | {"max": self.max_us / 1e3}


def _upper_edge_us(bucket: int) -> int:
    """The longest latency of a bucket: of octave k >= 1, buckets k * 1024 + [1024, 2048) are 2**k us wide."""
    if bucket < 2 * _SUB:
        return bucket
    shift = bucket // _SUB - 1
    return ((bucket - shift * _SUB + 1) << shift) - 1
