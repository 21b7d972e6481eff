"""What a server counts for Prometheus: requests by status, latency by phase, rows, unknown ids, and what else happened."""

from __future__ import annotations

import contextlib
import platform
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily

from multifacet.serving.addresses import Address

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

_BOUNDS_US: Final = (50, 100, 200, 500, 1000, 2000, 3000, 5000, 10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a server holds and does, at the moment of a scrape.

    Attributes:
        versions: Versions held.
        current: The current one; empty if none.
        ready: What health says.
        outcomes: By version, how many requests ended how.
        gauges: Further numbers by name, each with its description.
    """

    versions: Sequence[str]
    current: str
    ready: bool
    outcomes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    gauges: Mapping[str, tuple[str, float]] = field(default_factory=dict)


def build_info() -> dict[str, str]:
    """Versions of what a server is made of."""
    found = {}
    for name in ("multifacet", "grpcio", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return {**found, "python": platform.python_version()}


class _Tally:
    """What one thread counted. Only that thread writes, so that counting takes no lock; reading may lag by one request."""

    def __init__(self, phases: tuple[str, ...]) -> None:
        self.requests: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        self.unknown: dict[str, int] = {}
        self.events: dict[str, int] = {}
        self.versions: dict[str, int] = {}
        self.buckets = {phase: [0] * (len(_BOUNDS_US) + 1) for phase in phases}
        self.sums_us = dict.fromkeys(phases, 0)

    def add(self, other: Mapping[str, Any]) -> None:
        """Add another one's counts, given by their names."""
        for name in ("requests", "rows", "unknown", "events", "versions", "sums_us"):
            own = getattr(self, name)
            for key, count in list(other[name].items()):
                own[key] = own.get(key, 0) + count
        for phase, counts in other["buckets"].items():
            self.buckets[phase] = [sum(pair) for pair in zip(self.buckets[phase], counts, strict=True)]


class ServerMetrics:
    """Metrics of one server, in a registry of its own.

    prometheus_client's own counters take a lock and a microsecond each; a lookup would pay for five. Here each thread counts
    for itself, and a scrape adds up.

    Args:
        role: ``lookup`` or ``ranker``: the prefix of the metrics' names.
        phases: Phases whose latency is recorded.
    """

    def __init__(self, role: str, phases: tuple[str, ...]):
        self.registry = CollectorRegistry()
        self._prefix = f"multifacet_{role}"
        self._phase_names = phases
        self._of_thread = threading.local()
        self._lock = threading.Lock()
        self._tallies: list[_Tally] = []
        self._other_tallies: Callable[[], Sequence[Mapping[str, Any]]] = list
        self._event_sources: list[Callable[[], Mapping[str, int]]] = []
        self._status: Callable[[], Status] | None = None
        self._http: tuple[WSGIServer, threading.Thread] | None = None
        self.registry.register(self)  # anything with collect() will do

    def count_request(self, code: str) -> None:
        """Count one answered request by the name of its gRPC status."""
        requests = self._tally().requests
        requests[code] = requests.get(code, 0) + 1

    def observe_us(self, phases: Mapping[str, int]) -> None:
        """Record the microseconds of phases."""
        tally = self._tally()
        for phase, duration_us in phases.items():
            tally.buckets[phase][bisect_left(_BOUNDS_US, duration_us)] += 1
            tally.sums_us[phase] += duration_us

    def count_rows(self, table: str, num_rows: int, num_unknown_ids: int) -> None:
        """Count one table's rows in an answer."""
        tally = self._tally()
        tally.rows[table] = tally.rows.get(table, 0) + num_rows
        tally.unknown[table] = tally.unknown.get(table, 0) + num_unknown_ids

    def count_event(self, event: str) -> None:
        """Count something that happened to a request."""
        events = self._tally().events
        events[event] = events.get(event, 0) + 1

    def add_events(self, source: Callable[[], Mapping[str, int]]) -> None:
        """Report events that something else counts, by name."""
        self._event_sources.append(source)

    def add_tallies(self, source: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        """Add what other processes counted for this server, each as `tally` gives it."""
        self._other_tallies = source

    def tally(self) -> dict[str, Any]:
        """What this process counted so far, for another one to add to its own; JSON."""
        total = _Tally(self._phase_names)
        with self._lock:
            tallies = list(self._tallies)
        for tally in tallies:
            total.add(vars(tally))
        return vars(total)

    def report_status(self, source: Callable[[], Status]) -> None:
        """Report what the server holds and does at each scrape."""
        self._status = source

    def count_version(self, version: str) -> None:
        """Count one answered request of a version."""
        versions = self._tally().versions
        versions[version] = versions.get(version, 0) + 1

    def collect(self) -> Iterator[Any]:
        """The sums over all threads, as prometheus_client asks for them."""
        with self._lock:
            tallies = list(self._tallies)
        for counted_elsewhere in self._other_tallies():
            tallies.append(_Tally(self._phase_names))
            tallies[-1].add(counted_elsewhere)
        for name, text, label, counters in (
            ("requests", "Requests answered, by gRPC status.", "code", [tally.requests for tally in tallies]),
            ("rows", "Rows answered or scored, by table.", "table", [tally.rows for tally in tallies]),
            (
                "unknown_ids",
                "Ids answered by an out-of-vocabulary row, by table.",
                "table",
                [tally.unknown for tally in tallies],
            ),
            ("version_requests", "Requests answered, by version.", "version", [tally.versions for tally in tallies]),
        ):
            family = CounterMetricFamily(f"{self._prefix}_{name}", text, labels=[label])
            for key in sorted({key for counter in counters for key in list(counter)}):
                family.add_metric([key], sum(counter.get(key, 0) for counter in counters))
            yield family
        events: Counter[str] = Counter()
        for counted in (*(tally.events for tally in tallies), *(source() for source in self._event_sources)):
            events.update(dict(counted))
        happened = CounterMetricFamily(f"{self._prefix}_events", "What happened to requests on their way.", labels=["event"])
        for event, count in sorted(events.items()):
            happened.add_metric([event], count)
        yield happened
        latency = HistogramMetricFamily(f"{self._prefix}_phase_seconds", "Latency by phase.", labels=["phase"])
        for phase in self._phase_names:
            counts = [sum(place) for place in zip(*(tally.buckets[phase] for tally in tallies), strict=True)]
            counts = counts or [0] * (len(_BOUNDS_US) + 1)
            bounds = [*(str(bound / 1e6) for bound in _BOUNDS_US), "+Inf"]
            cumulative = [(bound, float(sum(counts[: place + 1]))) for place, bound in enumerate(bounds)]
            latency.add_metric([phase], cumulative, sum(tally.sums_us[phase] for tally in tallies) / 1e6)
        yield latency
        yield from self._collect_status()

    def _collect_status(self) -> Iterator[Any]:
        build = InfoMetricFamily(f"{self._prefix}_build", "What runs.")
        build.add_metric([], build_info())
        yield build
        if self._status is None:
            return
        status = self._status()
        held = GaugeMetricFamily(
            f"{self._prefix}_version_held", "1 for each version held, 2 for the current one.", labels=["version"]
        )
        for name in status.versions:
            held.add_metric([name], 2 if name == status.current else 1)
        yield held
        if status.outcomes:
            family = CounterMetricFamily(
                f"{self._prefix}_version_outcomes", "How requests ended, by version.", labels=["version", "outcome"]
            )
            for name, outcomes in status.outcomes.items():
                for outcome, count in outcomes.items():
                    family.add_metric([name, outcome], count)
            yield family
        for name, text, value in (
            ("ready", "Whether requests should come, as the health service says.", float(status.ready)),
            *((key, text, float(value)) for key, (text, value) in status.gauges.items()),
        ):
            gauge = GaugeMetricFamily(f"{self._prefix}_{name}", text)
            gauge.add_metric([], value)
            yield gauge

    def listen(self, address: str) -> str:
        """Serve the metrics over HTTP.

        Args:
            address: ``HOST:PORT``; port 0 lets the system choose.

        Returns:
            The address with the port that was bound.
        """
        parsed = Address.parse(address)
        self._http = start_http_server(parsed.port, addr=parsed.host, registry=self.registry)
        return parsed.with_port(self._http[0].server_port).text

    def close(self) -> None:
        """Stop serving over HTTP."""
        if self._http is not None:
            server, thread = self._http
            server.shutdown()
            server.server_close()
            thread.join()
            self._http = None

    def _tally(self) -> _Tally:
        try:
            tally: _Tally = self._of_thread.tally
        except AttributeError:
            tally = self._of_thread.tally = _Tally(self._phase_names)
            with self._lock:
                self._tallies.append(tally)
        return tally
