"""What clients without a token do to a server, all the time, from a process of their own."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Event

import grpc

from multifacet.serving.wire.frames import Header, Kind

_PAUSE_S = 0.01
_HELD = 400
_MEGABYTES = bytes(4_000_000)


@dataclass(frozen=True)
class Target:
    """A server.

    Attributes:
        grpc_address: Its gRPC address, TCP in plain text.
        frames: Path of its framed Unix socket; empty if it has none.
        method: A method that asks for the token.
    """

    grpc_address: str
    frames: str
    method: str


def attack(name: str, target: Target, over: Event) -> None:
    """Do one thing all the time, a hundred times a second, until told to stop; the work of a process."""
    act = ATTACKS[name](target)
    while not over.is_set():
        with contextlib.suppress(OSError, grpc.RpcError, ValueError):
            next(act)
        time.sleep(_PAUSE_S)


def _half_calls(method: str | None) -> Callable[[Target], Iterator[None]]:
    def act(target: Target) -> Iterator[None]:
        never = threading.Event()

        def nothing() -> Iterator[bytes]:
            never.wait()
            yield b""

        channels = [_channel(target) for _ in range(4)]
        held: list[grpc.Future] = []
        for number in itertools.count():
            call = channels[number % 4].stream_unary(method or target.method)
            held.append(call.future(nothing()))
            if len(held) > _HELD:
                held.pop(0).cancel()
            yield

    return act


def _large_messages(target: Target) -> Iterator[None]:
    channel = _channel(target)
    call = channel.unary_unary(target.method)
    held: list[grpc.Future] = []
    while True:
        held.append(call.future(_MEGABYTES, timeout=5))
        if len(held) > 20:
            held.pop(0).cancel()
        yield


def _streams(method: str, first: bytes) -> Callable[[Target], Iterator[None]]:
    def act(target: Target) -> Iterator[None]:
        never = threading.Event()

        def one() -> Iterator[bytes]:
            yield first
            never.wait()

        channel = _channel(target)
        held: list[grpc.Call] = []
        while True:
            held.append(channel.stream_stream(method)(one()))
            if len(held) > _HELD:
                held.pop(0).cancel()
            yield

    return act


def _idle_connections(target: Target) -> Iterator[None]:
    host, _, port = target.grpc_address.rpartition(":")
    return _hold(lambda: socket.create_connection((host, int(port)), timeout=1))


def _silent_frames(target: Target) -> Iterator[None]:
    return _hold(lambda: _connect(target.frames))


def _reserving_frames(target: Target) -> Iterator[None]:
    def connect() -> socket.socket:
        stream = _connect(target.frames)
        stream.sendall(Header(Kind.LOOKUP, 4_000_000, 0, 1).pack() + b"x")
        return stream

    return _hold(connect)


def _hold(connect: Callable[[], socket.socket]) -> Iterator[None]:
    held: list[socket.socket] = []
    while True:
        held.append(connect())
        if len(held) > _HELD:
            held.pop(0).close()
        yield


def _connect(path: str) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(1)
    stream.connect(path)
    return stream


def _channel(target: Target) -> grpc.Channel:
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
    return grpc.insecure_channel(target.grpc_address, options=options)


ATTACKS: dict[str, Callable[[Target], Iterator[None]]] = {
    "headers of calls": _half_calls(None),
    "headers of health checks": _half_calls("/grpc.health.v1.Health/Check"),
    "messages of 4 MB": _large_messages,
    "reflection streams": _streams("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", b""),
    "health watches": _streams("/grpc.health.v1.Health/Watch", b""),
    "idle connections": _idle_connections,
    "silent framed connections": _silent_frames,
    "frames that announce 4 MB": _reserving_frames,
}
