"""Calls of a gRPC server, bounded before their token and after it.

gRPC gives a call one of the server's threads at its headers, and there waits for the message as long as the caller likes. So
here every method is taken as one whose messages stream in, which is the same on the wire, and each call passes, in this order:

1. the token, which comes with the headers: without it, no byte of the message is read;
2. the wait for the message (`serving.server.waiting_calls`);
3. the wait for a place among those that are worked on (`serving.server.gate`).

Messages are parsed behind that: one that is no protobuf is an error of the request as any other. gRPC would parse it before,
log a traceback, and lose 20 KB for good.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from hmac import compare_digest
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from multifacet.serving.errors import InvalidRequestError, OverloadedError, ServingError, UnauthenticatedError, brief

if TYPE_CHECKING:
    from multifacet.serving.secrets import TokenFile
    from multifacet.serving.server.gate import Gate
    from multifacet.serving.server.metrics import ServerMetrics
    from multifacet.serving.server.waiting_calls import WaitingCalls

ADMIN = "multifacet.serving.v1.Admin"
HEALTH = "grpc.health.v1.Health"


class GuardedServer:
    """Takes the methods of services as a gRPC server does.

    Args:
        server: Where they go.
        role: How messages name the server.
        tokens: The token of a service, by its name; under the empty name that of all others. Health needs none.
        gates: The gate of a service, likewise.
        waiting: Where calls wait for their messages.
        metrics: Where refusals are counted.
        max_watches: Health's watches that may be open at once.
    """

    def __init__(
        self,
        server: grpc.Server,
        *,
        role: str,
        tokens: Mapping[str, TokenFile],
        gates: Mapping[str, Gate],
        waiting: WaitingCalls,
        metrics: ServerMetrics,
        max_watches: int,
    ):
        self._server = server
        self._role = role
        self._tokens = tokens
        self._gates = gates
        self._metrics = metrics
        self._watches = Streams("health watches", max_watches)
        self.waiting = waiting

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """What generated code calls first; see `add_registered_method_handlers`."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """What it calls then, with the same handlers by name."""
        guarded = {name: self._guard(service, handler) for name, handler in handlers.items()}
        self.add_handlers(service, guarded)

    def add_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add handlers that are guarded already."""
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, dict(handlers)),))
        self._server.add_registered_method_handlers(service, dict(handlers))

    def refuse(self, context: grpc.ServicerContext, failure: ServingError) -> None:
        """End a call with an error; always raises."""
        self._metrics.count_request(failure.code.name)
        context.abort(failure.code, brief(failure))

    def check_token(self, service: str, context: grpc.ServicerContext) -> None:
        """Refuse a call without the token of its service.

        Raises:
            UnauthenticatedError: It has none, or another one.
        """
        token = self._tokens.get(service, self._tokens[""]).token
        if token is None:
            return
        given = dict(context.invocation_metadata()).get("authorization", "")
        if not compare_digest(str(given).encode(), f"Bearer {token}".encode()):
            raise UnauthenticatedError(
                f"this {self._role} asks for a token: " + ("the one given is not its own" if given else "give the client one")
            )

    def _guard(self, service: str, handler: Any) -> Any:
        if handler.unary_stream is not None:
            return self._guard_watch(handler)
        parse, answer = handler.request_deserializer, handler.unary_unary
        gate = self._gates.get(service, self._gates[""])
        is_health = service == HEALTH

        def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            try:
                if not is_health:
                    self.check_token(service, context)
                content = self.waiting.next_message(messages, context)
                if is_health:
                    return answer(_parse(parse, content), context)
                with gate.admit(len(content), context):
                    return answer(_parse(parse, content), context)
            except ServingError as error:
                self.refuse(context, error)
                raise

        serialize = handler.response_serializer
        return grpc.stream_unary_rpc_method_handler(
            call, response_serializer=lambda answer: answer if isinstance(answer, bytes) else serialize(answer)
        )

    def _guard_watch(self, handler: Any) -> Any:
        """A watch of the health service."""
        parse, answer = handler.request_deserializer, handler.unary_stream

        def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                request = _parse(parse, self.waiting.next_message(messages, context))
                self._watches.enter(context)
            except ServingError as error:
                self.refuse(context, error)
            yield from answer(request, context)

        return grpc.stream_stream_rpc_method_handler(call, response_serializer=handler.response_serializer)


class Streams:
    """Counts the streams of a kind that are open, which may be so many.

    Args:
        kind: What to call them in messages.
        most: How many may be open at once.
    """

    def __init__(self, kind: str, most: int):
        self._kind = kind
        self._most = most
        self._lock = threading.Lock()
        self._num_open = 0

    def enter(self, context: grpc.ServicerContext) -> None:
        """Count one more, until its call ends.

        Raises:
            OverloadedError: There are too many.
        """
        with self._lock:
            if self._num_open >= self._most:
                raise OverloadedError(f"{self._num_open} {self._kind} are open already, as many as may be")
            self._num_open += 1
        if not context.add_callback(self._leave):  # it has ended already
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._num_open -= 1


def _parse(parse: Callable[[bytes], Any], content: bytes) -> Any:
    try:
        return parse(content)
    except DecodeError as error:
        raise InvalidRequestError(f"the message cannot be read: {error}") from error
