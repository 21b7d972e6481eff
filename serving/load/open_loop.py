"""An open-loop load generator: requests start when they are due, whether the server keeps up or not.

A client that waits for an answer before it asks again slows down with the server, and then does not see the requests that
would have waited (coordinated omission). Here every request has its moment, and its latency counts from there, so that one
stalled second at 500 requests a second shows as 500 slow requests and not as one.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from multifacet.serving.errors import ServingError
from multifacet.serving.load.histogram import LatencyHistogram
from multifacet.serving.load.workload import Request


@dataclass
class LoadResult:
    """What a load showed.

    Attributes:
        latency: From the moment at which a request was due to its answer; for one that was not sent, to the end of the load.
        service: From the moment at which it was really sent.
        errors: Failed requests by the name of their status.
        not_sent: Requests that no client was free to send before the load ended.
        seconds: From the first to the last moment.
    """

    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    service: LatencyHistogram = field(default_factory=LatencyHistogram)
    errors: Counter[str] = field(default_factory=Counter)
    not_sent: int = 0
    seconds: float = 0.0

    @property
    def answered(self) -> int:
        """Requests answered."""
        return self.service.count

    @property
    def answered_per_s(self) -> float:
        """Requests answered a second."""
        return self.answered / self.seconds if self.seconds else 0.0


def run_open_loop(draws: Sequence[Callable[[], Request]], *, rate_per_s: float, seconds: float, seed: int = 0) -> LoadResult:
    """Send requests at a rate.

    Args:
        draws: One a client: draws its next request, which is then sent on that client's thread. A client has one request under
            way; as many clients are needed as requests are under way at once.
        rate_per_s: Requests a second of all clients together; moments are drawn as of a Poisson process.
        seconds: How long requests become due. Those that are late by then are sent for half as long and a second more; what is
            left then counts as not sent.
        seed: Of the moments.

    Returns:
        What was seen.

    Raises:
        ValueError: A rate or time is not positive, or there is no client.
    """
    if rate_per_s <= 0 or seconds <= 0 or not draws:
        raise ValueError(f"got a rate of {rate_per_s}, {seconds} s and {len(draws)} clients: expected more than 0 of each")
    num = max(1, round(rate_per_s * seconds))
    # Uniform moments in order are a Poisson process of which the number is known.
    due_s = np.sort(np.random.default_rng(seed).uniform(0, seconds, num)).tolist()
    schedule = _Schedule(due_s, 1.5 * seconds + 1.0)
    results = [LoadResult() for _ in draws]
    threads = [
        threading.Thread(target=_client, args=(draw, schedule, result), name=f"load-{number}", daemon=True)
        for number, (draw, result) in enumerate(zip(draws, results, strict=True))
    ]
    schedule.begin()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = LoadResult(seconds=max(seconds, schedule.elapsed_s()))
    for result in results:
        total.latency.add(result.latency)
        total.service.add(result.service)
        total.errors.update(result.errors)
    # Left out, the slowest requests would be those that are not seen.
    for waited_s in schedule.left():
        total.latency.record(round(waited_s * 1e6))
        total.not_sent += 1
    return total


class _Schedule:
    """Moments in order, each taken by the first client that is free."""

    def __init__(self, due_s: list[float], end_s: float):
        self._due_s = iter(due_s)
        self._end_s = end_s
        self._lock = threading.Lock()
        self._began = 0.0

    def begin(self) -> None:
        self._began = time.perf_counter()

    def elapsed_s(self) -> float:
        return time.perf_counter() - self._began

    def next(self) -> float | None:
        """The next moment, on the clock of `time.perf_counter`; None when all were taken, or the load has ended."""
        if self.elapsed_s() > self._end_s:
            return None
        with self._lock:
            due_s = next(self._due_s, None)
        return None if due_s is None else self._began + due_s

    def left(self) -> list[float]:
        """How long the requests have waited that nobody took."""
        with self._lock:
            return [self._end_s - due_s for due_s in self._due_s]


def _client(draw: Callable[[], Request], schedule: _Schedule, result: LoadResult) -> None:
    request = draw()
    while (due := schedule.next()) is not None:
        pause_s = due - time.perf_counter()
        if pause_s > 0:
            time.sleep(pause_s)
        sent = time.perf_counter()
        try:
            request()
        except ServingError as error:
            result.errors[error.code.name] += 1
        else:
            now = time.perf_counter()
            result.latency.record(round((now - due) * 1e6))
            result.service.record(round((now - sent) * 1e6))
        request = draw()  # in the pause before the next moment
