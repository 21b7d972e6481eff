"""The gRPC side of a server: binding, tokens, health, reflection, errors, announcing and draining."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
from grpc_health.v1 import health_pb2_grpc

from multifacet.artifacts import write_file
from multifacet.serving import tracing
from multifacet.serving.addresses import Address
from multifacet.serving.errors import (
    LOADED_VERSIONS_TRAILER,
    MAX_VERSIONS_TOLD,
    DeadlineExceededError,
    ServingError,
    VersionNotLoadedError,
    brief,
)
from multifacet.serving.secrets import ServerIdentity, TokenFile
from multifacet.serving.server.gate import Gate
from multifacet.serving.server.guarded import ADMIN, HEALTH, GuardedServer
from multifacet.serving.server.health import HealthService
from multifacet.serving.server.reflected import add_reflection
from multifacet.serving.server.waiting_calls import WaitingCalls

if TYPE_CHECKING:
    from multifacet.serving.config import ListenConfig
    from multifacet.serving.server.metrics import ServerMetrics

logger = logging.getLogger(__name__)

_SPANS = {"multifacet.serving.v1.Lookup": "Lookup/Lookup", "multifacet.serving.v1.Ranker": "Ranker/Rank"}

Answer = TypeVar("Answer")

ALIVE = "alive"
"""Health's name of a process that answers at all: SERVING until it ends. For liveness; the others are for readiness."""
_MAX_HALF_CALLS = 64
_MAX_WATCHES = 64
_MAX_REFLECTIONS = 4
_ADMIN_PLACES = 8
_MAX_WAITING_BYTES = 64 << 20
_SWEEP_S = 1.0
_DRAIN_POLL_S = 0.02
_HALF_CALL_GRACE_S = 0.5
_IDLE_LOOKS = 10
_CUT_S = 0.05


class Listener:
    """A gRPC server on one address.

    Args:
        config: Where and how to listen.
        role: ``lookup`` or ``ranker``.
        service: Full name of the protobuf service, for health and reflection.
        register: Adds the servicers to the gRPC server.
        metrics: Where to count; served over HTTP if the configuration says so.

    Raises:
        OSError: A token or certificate cannot be read, or the address cannot be bound.
        ValueError: A token or certificate is none.
    """

    def __init__(
        self,
        config: ListenConfig,
        *,
        role: str,
        service: str,
        register: Callable[[grpc.Server], None],
        metrics: ServerMetrics,
    ):
        self._config = config
        self._role = role
        self._service = service
        self._metrics = metrics
        self._tokens = {"": TokenFile(config.token_file), ADMIN: TokenFile(config.admin_token_file)}
        self._identity = (
            ServerIdentity(config.tls_certificate, config.tls_key, config.tls_client_ca)
            if config.tls_certificate is not None and config.tls_key is not None
            else None
        )
        self.waiting = WaitingCalls(_MAX_HALF_CALLS, config.message_timeout_s)
        self.gate = Gate(config.workers, config.max_queued_requests, max(_MAX_WAITING_BYTES, config.max_message_bytes))
        self._admin_gate = Gate(_ADMIN_PLACES, 0, 0)
        # A call has a thread from its headers on, which waits for the message, and for a place among the workers.
        most_calls = (
            config.workers + config.max_queued_requests + _MAX_HALF_CALLS + _MAX_WATCHES + _MAX_REFLECTIONS + _ADMIN_PLACES
        )
        self._threads = ThreadPoolExecutor(most_calls, thread_name_prefix=f"{role}-call")
        self._server = grpc.server(self._threads, options=_options(config), maximum_concurrent_rpcs=most_calls)
        guarded = GuardedServer(
            self._server,
            role=role,
            tokens=self._tokens,
            gates={"": self.gate, ADMIN: self._admin_gate},
            waiting=self.waiting,
            metrics=metrics,
            max_watches=_MAX_WATCHES,
        )
        register(cast("grpc.Server", guarded))
        self._health = HealthService()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, guarded)
        self._health.set(ALIVE, serving=True)
        self._is_serving = False
        self._is_stopping = False
        self.set_health(serving=False)
        add_reflection(guarded, (service, HEALTH), most=_MAX_REFLECTIONS)
        self._stopped = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name=f"{role}-sweep", daemon=True)
        self.address = ""
        self.metrics_address = ""

    def open(self) -> str:
        """Bind and answer: health says that requests should not come yet; see `announce` and `set_health`.

        Returns:
            The bound address.

        Raises:
            OSError: The address is taken or cannot be bound.
        """
        try:
            self.address = self._bind()
            if self._config.metrics_listen is not None:
                self.metrics_address = self._metrics.listen(self._config.metrics_listen)
        except OSError:
            self._server.stop(None).wait()
            raise
        self._server.start()
        self._sweeper.start()
        return self.address

    def discard(self) -> None:
        """Let go of a listener that was never opened."""
        self._server.stop(None)
        self._threads.shutdown()

    def announce(self, details: Mapping[str, Any]) -> None:
        """Say in the log and in the ready file that requests may come.

        Args:
            details: Further fields of the announcement, such as the versions.
        """
        announcement = {
            "event": "ready",
            "role": self._role,
            "address": self.address,
            "metrics_address": self.metrics_address,
            "pid": os.getpid(),
            **details,
        }
        text = json.dumps(announcement, sort_keys=True)
        logger.info("%s", text)
        if self._config.ready_file is not None:
            write_file(self._config.ready_file, f"{text}\n", durable=False)

    def say_stopping(self) -> None:
        """Say by health that no more requests should come, and answer those that do."""
        self.set_health(serving=False)
        self._is_stopping = True
        if self._config.ready_file is not None:
            self._config.ready_file.unlink(missing_ok=True)

    def stop(self, drain_timeout_s: float | None = None) -> None:
        """Refuse new requests, let those in flight end, and release the address.

        Args:
            drain_timeout_s: Longest wait for requests in flight; those left are cut. None takes the configuration's.
        """
        self.say_stopping()
        timeout_s = self._config.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        began = time.monotonic()
        ended = self._server.stop(timeout_s)
        num_idle = 0
        while not ended.wait(_DRAIN_POLL_S):
            # Watches and half calls are no requests: they would keep the server until the time is over. A call that came
            # just before the stop may still be on its way to the gate, so that one idle look is not enough.
            is_idle = self.gate.is_empty and self._admin_gate.is_empty
            is_idle = is_idle and (not len(self.waiting) or time.monotonic() - began > _HALF_CALL_GRACE_S)
            num_idle = num_idle + 1 if is_idle else 0
            if num_idle == _IDLE_LOOKS:
                ended = self._server.stop(_CUT_S)
        self._stopped.set()
        self._health.close()
        self._threads.shutdown()
        self._metrics.close()
        logger.info("%s", json.dumps({"event": "stopped", "role": self._role, "address": self.address}))

    def reload(self) -> None:
        """Read tokens and certificates again."""
        for token in self._tokens.values():
            token.reload()
        if self._identity is not None:
            self._identity.reload()

    def gauges(self) -> dict[str, tuple[str, float]]:
        """How many requests are where."""
        return {
            "requests_in_flight": ("Requests that are worked on.", self.gate.num_inside),
            "requests_queued": ("Requests that wait for a worker.", self.gate.num_waiting),
            "half_calls": ("Calls whose message has not come.", len(self.waiting)),
            "half_calls_given_up": ("Calls that were cancelled since their message did not come.", self.waiting.num_given_up),
        }

    @property
    def is_serving(self) -> bool:
        """What health says."""
        return self._is_serving

    @property
    def token(self) -> TokenFile:
        """The clients' token."""
        return self._tokens[""]

    def answer(self, call: Callable[[], Answer], context: grpc.ServicerContext, request_id: str | None = None) -> Answer:
        """Run one request's handler: its errors become gRPC statuses, and are counted.

        Args:
            call: The handler.
            context: The call's context.
            request_id: For the log and the trace; None for what is none of the service's own work, and is not traced.
        """
        if request_id is None or not tracing.is_tracing():
            return self._answer(call, context, request_id or "")
        parent = tracing.parent_of(context.invocation_metadata)
        with tracing.server_span(_SPANS[self._service], parent, request__id=request_id, transport="grpc"):
            return self._answer(call, context, request_id)

    def _answer(self, call: Callable[[], Answer], context: grpc.ServicerContext, request_id: str) -> Answer:
        failure: ServingError
        try:
            _check_active(context)
            answer = call()
        except ServingError as error:
            failure = error
        except Exception:  # whatever it is, the caller gets a status and the log the traceback
            logger.exception("request %.200r failed", request_id)
            failure = ServingError("internal error; see the server's log")
        else:
            self._metrics.count_request("OK")
            return answer
        self._metrics.count_request(failure.code.name)
        tracing.current().fail(failure)
        logger.info("request %.200r refused: %s: %s", request_id, failure.code.name, brief(failure))
        if isinstance(failure, VersionNotLoadedError):
            context.set_trailing_metadata(((LOADED_VERSIONS_TRAILER, ",".join(failure.loaded[-MAX_VERSIONS_TOLD:])),))
        context.abort(failure.code, brief(failure))
        raise failure  # abort has raised already

    def set_health(self, *, serving: bool) -> None:
        """Say by gRPC's health service whether requests should come; without effect once it drains."""
        if self._is_stopping:
            return
        self._is_serving = serving
        for name in ("", self._service):
            self._health.set(name, serving=serving)

    def _bind(self) -> str:
        address = Address.parse(self._config.listen)
        address.refuse_if_taken()
        try:
            if self._identity is not None:
                port = self._server.add_secure_port(address.text, self._identity.credentials())
            else:
                port = self._server.add_insecure_port(address.text)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address.text}: {error}. Is another server there?") from error
        if address.unix_path is not None:
            address.unix_path.chmod(self._config.socket_mode)
            return address.text
        return address.with_port(port).text

    def _sweep(self) -> None:
        while not self._stopped.wait(_SWEEP_S):
            self.waiting.sweep()


def _check_active(context: grpc.ServicerContext) -> None:
    if not context.is_active():  # it waited for a worker longer than its caller waits
        raise DeadlineExceededError("the request ended before a worker was free")


def _options(config: ListenConfig) -> tuple[tuple[str, int], ...]:
    return (
        # Otherwise a second server binds the same port, and the system deals requests out between the two.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # A client whose machine vanished says nothing: it is asked, and its connection closed.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients ask as well (`serving.wire.channel`); by default more than one question in five minutes ends the connection.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.server_handshake_timeout_ms", 10_000),
        # A connection that nobody uses is closed; a client of ours opens another without losing a request.
        ("grpc.max_connection_idle_ms", int(config.idle_timeout_s * 1000)),
    )
