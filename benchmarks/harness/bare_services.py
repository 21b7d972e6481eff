"""What a lookup costs without the lookup: as many bytes there and back over a bare socket, and over an empty gRPC method."""

from __future__ import annotations

import multiprocessing
import socket
import struct
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

_METHOD = "/bare.Bytes/Get"
_LENGTHS = struct.Struct("<II")


def _serve_socket(path: str, ready: Connection) -> None:
    """A connection says how long its requests and answers are, and then gets as long an answer to each request."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    ready.send(path)
    while True:
        stream, _ = listening.accept()
        threading.Thread(target=_echo, args=(stream,), daemon=True).start()


def _echo(stream: socket.socket) -> None:
    with stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        lengths = stream.recv(_LENGTHS.size, socket.MSG_WAITALL)
        if len(lengths) < _LENGTHS.size:
            return
        request_bytes, answer_bytes = _LENGTHS.unpack(lengths)
        request, answer = bytearray(request_bytes), bytes(answer_bytes)
        while stream.recv_into(request, request_bytes, socket.MSG_WAITALL) == request_bytes:
            stream.sendall(answer)


def _serve_grpc(answer_bytes: int, ready: Connection) -> None:
    answer = bytes(answer_bytes)
    handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: answer)
    server = grpc.server(ThreadPoolExecutor(4), options=(("grpc.max_send_message_length", -1),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare.Bytes", {"Get": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ready.send(f"127.0.0.1:{port}")
    ready.poll(None)  # until the parent closes its end, or dies
    server.stop(0).wait()


class BareService:
    """A service's process, within a ``with`` block.

    Args:
        transport: ``socket`` or ``grpc``.
        answer_bytes: Length of the answers over gRPC; a socket's clients say it.
    """

    def __init__(self, transport: str, answer_bytes: int):
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="multifacet-bare-")
        self._end, theirs = context.Pipe()
        given = (str(Path(self._folder.name) / "bare.sock"),) if transport == "socket" else (answer_bytes,)
        target: Callable[..., None] = _serve_socket if transport == "socket" else _serve_grpc
        self._process = context.Process(target=target, args=(*given, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.address: str = self._end.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.close()
        self._process.kill()
        self._process.join()
        self._folder.cleanup()


class SocketClient:
    """Asks a bare socket for as long an answer as it was told to."""

    def __init__(self, address: str, request_bytes: int, answer_bytes: int):
        self._stream = socket.socket(socket.AF_UNIX)
        self._stream.connect(address)
        self._stream.sendall(_LENGTHS.pack(request_bytes, answer_bytes))
        self._request, self._answer = bytes(request_bytes), bytearray(answer_bytes)

    def ask(self) -> None:
        """One request and its answer."""
        self._stream.sendall(self._request)
        received = self._stream.recv_into(self._answer, len(self._answer), socket.MSG_WAITALL)
        if received != len(self._answer):
            raise ConnectionError(f"the bare service answered {received} bytes of {len(self._answer)}")

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()


class GrpcClient:
    """Asks an empty gRPC method."""

    def __init__(self, address: str, request_bytes: int):
        self._channel = grpc.insecure_channel(address, options=(("grpc.max_receive_message_length", -1),))
        self._get = self._channel.unary_unary(_METHOD)
        self._request = bytes(request_bytes)

    def ask(self) -> None:
        """One request and its answer."""
        self._get(self._request, timeout=30)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()
