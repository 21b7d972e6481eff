"""What a server counts for Prometheus: requests by status, latency by phase, rows, unknown ids."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server

from serving.address import Address

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

_BUCKETS_S = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 1.0)


class ServerMetrics:
    """Metrics of one server, in a registry of its own.

    Args:
        role: ``lookup`` or ``ranker``: the prefix of the metrics' names.
        phases: Phases whose latency is recorded.
    """

    def __init__(self, role: str, phases: tuple[str, ...]):
        self.registry = CollectorRegistry()
        prefix = f"multifacet_{role}"
        requests = Counter(f"{prefix}_requests", "Requests answered, by gRPC status.", ["code"], registry=self.registry)
        latency = Histogram(
            f"{prefix}_phase_seconds", "Latency by phase.", ["phase"], buckets=_BUCKETS_S, registry=self.registry
        )
        # labels() takes longer than counting: each counter is looked up once.
        self._of_code = cache(requests.labels)
        self._phases = {phase: latency.labels(phase) for phase in phases}
        rows = Counter(f"{prefix}_rows", "Rows answered or scored, by table.", ["table"], registry=self.registry)
        unknown = Counter(
            f"{prefix}_unknown_ids", "Ids answered by an out-of-vocabulary row, by table.", ["table"], registry=self.registry
        )
        self._of_table = cache(lambda table: (rows.labels(table), unknown.labels(table)))
        self._http: tuple[WSGIServer, threading.Thread] | None = None

    def count_request(self, code: str) -> None:
        """Count one answered request by the name of its gRPC status."""
        self._of_code(code).inc()

    def observe_us(self, phases: Mapping[str, int]) -> None:
        """Record the microseconds of phases."""
        for phase, duration_us in phases.items():
            self._phases[phase].observe(duration_us * 1e-6)

    def count_rows(self, table: str, num_rows: int, num_unknown_ids: int) -> None:
        """Count one table's rows in an answer."""
        rows, unknown = self._of_table(table)
        rows.inc(num_rows)
        if num_unknown_ids:
            unknown.inc(num_unknown_ids)

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
