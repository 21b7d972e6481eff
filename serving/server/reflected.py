"""gRPC's reflection, for tools such as grpcurl: behind the token, few streams at once, none of them idle for long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from multifacet.serving.errors import InvalidRequestError, ServingError
from multifacet.serving.server.guarded import Streams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multifacet.serving.server.guarded import GuardedServer

V1 = "grpc.reflection.v1.ServerReflection"
"""The same messages under the name that tools ask for first."""


def add_reflection(server: GuardedServer, services: Sequence[str], *, most: int) -> None:
    """Add the reflection of these services.

    Args:
        server: Where to.
        services: Full names of the services.
        most: Streams that may be open at once.
    """
    servicer = reflection.ReflectionServicer((*services, reflection.SERVICE_NAME, V1))
    streams = Streams("reflection streams", most)

    def info(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            server.check_token("", context)
            streams.enter(context)
        except ServingError as error:
            server.refuse(context, error)
        yield from servicer.ServerReflectionInfo(_requests(server, messages, context), context)

    handler = grpc.stream_stream_rpc_method_handler(
        info,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in (reflection.SERVICE_NAME, V1):
        server.add_handlers(name, {"ServerReflectionInfo": handler})


def _requests(server: GuardedServer, messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
    """The requests of a stream, each waited for as the message of a call."""
    while True:
        try:
            yield server.waiting.next_message(messages, context)
        except InvalidRequestError:  # the caller is done
            return
