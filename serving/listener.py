"""The gRPC side of a server: binding, health, reflection, errors, announcing and draining."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from serving.address import Address
from serving.config import read_token
from serving.errors import (
    LOADED_VERSIONS_TRAILER,
    MAX_VERSIONS_TOLD,
    DeadlineExceededError,
    InvalidRequestError,
    ServingError,
    UnauthenticatedError,
    VersionNotLoadedError,
    brief,
)

if TYPE_CHECKING:
    from serving.config import ListenConfig
    from serving.metrics import ServerMetrics

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class Listener:
    """A gRPC server on one address.

    Args:
        config: Where and how to listen.
        role: ``lookup`` or ``ranker``.
        service: Full name of the protobuf service, for health and reflection.
        register: Adds the servicer to the gRPC server.
        metrics: Where to count; served over HTTP if the configuration says so.
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
        self._token = config.read_token()
        self._admin_token = read_token(config.admin_token_file)
        self._workers = ThreadPoolExecutor(config.workers, thread_name_prefix=f"{role}-worker")
        # Reflection is a stream that its client may leave open: on the shared pool each would take a worker away.
        self._reflection_worker = ThreadPoolExecutor(1, thread_name_prefix=f"{role}-reflection")
        self._server = grpc.server(
            self._workers,
            options=(
                # Otherwise a second server binds the same port, and the system deals requests out between the two.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.max_send_message_length", -1),
            ),
            maximum_concurrent_rpcs=config.workers + config.max_queued_requests,
        )
        register(cast("grpc.Server", _ParsingServer(self._server, metrics)))
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.set_health(serving=False)
        reflected = _Reflection((service, health.SERVICE_NAME, reflection.SERVICE_NAME))
        reflected.use_pool(self._reflection_worker)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflected, self._server)
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
        return self.address

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
            temporary = self._config.ready_file.with_name(f".{self._config.ready_file.name}.{os.getpid()}")
            temporary.write_text(text + "\n")
            temporary.replace(self._config.ready_file)

    def stop(self, drain_timeout_s: float | None = None) -> None:
        """Refuse new requests, let those in flight end, and release the address.

        Args:
            drain_timeout_s: Longest wait for requests in flight; those left are cut. None takes the configuration's.
        """
        self._health.enter_graceful_shutdown()
        if self._config.ready_file is not None:
            self._config.ready_file.unlink(missing_ok=True)
        timeout_s = self._config.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        self._server.stop(timeout_s).wait()
        self._workers.shutdown()
        self._reflection_worker.shutdown()
        self._metrics.close()
        logger.info("%s", json.dumps({"event": "stopped", "role": self._role, "address": self.address}))

    def answer(
        self,
        call: Callable[[], Answer],
        context: grpc.ServicerContext,
        request_id: str = "",
        *,
        admin: bool = False,
    ) -> Answer:
        """Run one request's handler: its errors become gRPC statuses, and are counted.

        Args:
            call: The handler.
            context: The call's context.
            request_id: For the log.
            admin: Whether the caller must bring the admin token instead of the clients'.
        """
        failure: ServingError
        try:
            _check_active(context)
            self._check_token(context, self._admin_token if admin else self._token)
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
        logger.debug("request %.200r refused: %s: %s", request_id, failure.code.name, brief(failure))
        if isinstance(failure, VersionNotLoadedError):
            context.set_trailing_metadata(((LOADED_VERSIONS_TRAILER, ",".join(failure.loaded[-MAX_VERSIONS_TOLD:])),))
        context.abort(failure.code, brief(failure))
        raise failure  # abort has raised already

    def _check_token(self, context: grpc.ServicerContext, token: str | None) -> None:
        if token is None:
            return
        given = dict(context.invocation_metadata()).get("authorization", "")
        if not compare_digest(str(given).encode(), f"Bearer {token}".encode()):
            raise UnauthenticatedError(
                f"this {self._role} asks for a token: " + ("the one given is not its own" if given else "give the client one")
            )

    def _bind(self) -> str:
        config = self._config
        address = Address.parse(config.listen)
        address.refuse_if_taken()
        try:
            if config.tls_certificate is not None and config.tls_key is not None:
                client_ca = config.tls_client_ca.read_bytes() if config.tls_client_ca is not None else None
                credentials = grpc.ssl_server_credentials(
                    [(config.tls_key.read_bytes(), config.tls_certificate.read_bytes())],
                    root_certificates=client_ca,
                    require_client_auth=client_ca is not None,
                )
                port = self._server.add_secure_port(address.text, credentials)
            else:
                port = self._server.add_insecure_port(address.text)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address.text}: {error}. Is another server there?") from error
        if address.unix_path is not None:
            address.unix_path.chmod(0o600)
            return address.text
        return address.with_port(port).text

    def set_health(self, *, serving: bool) -> None:
        """Say by gRPC's health service whether requests should come; without effect once it drains."""
        states = health_pb2.HealthCheckResponse
        for name in ("", self._service):
            self._health.set(name, states.SERVING if serving else states.NOT_SERVING)


def _check_active(context: grpc.ServicerContext) -> None:
    if not context.is_active():  # it waited for a worker longer than its caller waits
        raise DeadlineExceededError("the request ended before a worker was free")


class _ParsingServer:
    """Takes a service's methods as a gRPC server does, and has their messages parsed within the handler.

    gRPC parses them before: one that is no protobuf is answered INTERNAL, is not counted, logs a traceback, and costs the
    process 20 KB that it never gets back, whether its sender has a token or not. Here it is an error of the request as any
    other.

    Args:
        server: Where the methods go.
        metrics: Where refusals are counted.
    """

    def __init__(self, server: grpc.Server, metrics: ServerMetrics):
        self._server = server
        self._metrics = metrics

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """What generated code calls first, with handlers that parse too early; see `add_registered_method_handlers`."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """What it calls then, with the same handlers by name."""
        parsing = {name: self._parsing(handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, parsing),))
        self._server.add_registered_method_handlers(service, parsing)

    def _parsing(self, handler: Any) -> Any:
        parse, answer = handler.request_deserializer, handler.unary_unary

        def parse_and_answer(content: bytes, context: grpc.ServicerContext) -> Any:
            try:
                request = parse(content)
            except DecodeError as error:
                refusal = InvalidRequestError(f"the message cannot be read: {error}")
                self._metrics.count_request(refusal.code.name)
                context.abort(refusal.code, str(refusal))
                raise refusal from error  # abort has raised already
            return answer(request, context)

        return grpc.unary_unary_rpc_method_handler(parse_and_answer, response_serializer=handler.response_serializer)


class _Reflection(reflection.ReflectionServicer):  # type: ignore[misc]  # grpc_reflection is untyped
    """Reflection on a thread of its own."""

    def use_pool(self, pool: ThreadPoolExecutor) -> None:
        """Answer on this pool instead of the server's."""

        def info(requests: Any, context: Any) -> Any:
            return reflection.ReflectionServicer.ServerReflectionInfo(self, requests, context)

        info.experimental_thread_pool = pool  # type: ignore[attr-defined]  # read by grpc._server
        self.ServerReflectionInfo = info
