"""gRPC's health service.

grpcio's own deadlocks: it sends to a watcher with its lock held, and waits there for gRPC's thread, which waits for that lock
when another watcher's call ends. One client that opens watches and cancels them stops the server for good.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_LOOK_S = 1.0


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc_health is untyped
    """Tells the status of each name. A watch takes a thread while it is open."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closed = False

    def set(self, name: str, *, serving: bool) -> None:
        """Say whether a service serves; the empty name is that of the whole server."""
        states = health_pb2.HealthCheckResponse
        with self._changed:
            self._statuses[name] = states.SERVING if serving else states.NOT_SERVING
            self._changed.notify_all()

    def close(self) -> None:
        """End the watches."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Tell a status."""
        status = self._statuses.get(request.service)
        if status is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=status)

    def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        """Tell a status whenever it changes."""
        said = None
        while context.is_active():
            with self._changed:
                status = self._statuses.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
                if status == said:
                    if self._closed:
                        return
                    self._changed.wait(_LOOK_S)
                    continue
            said = status
            yield health_pb2.HealthCheckResponse(status=status)  # without the lock: it waits for gRPC
