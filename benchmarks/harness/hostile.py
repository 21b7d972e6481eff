"""Clients of a lookup server that mean no good, or know no better: each act is one thing that goes wrong in the field."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from multifacet.serving import LookupClient, ServingError
from multifacet.serving.protocol import frames_pb2, lookup_pb2
from multifacet.serving.wire.channel import open_channel
from multifacet.serving.wire.frames import HEADER_BYTES, Header, Kind
from multifacet.serving.wire.packing import pack_ids

_LOOKUP = "/multifacet.serving.v1.Lookup/Lookup"
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, kw_only=True)
class Victim:
    """Where a lookup server is, and what it is known to refuse.

    Attributes:
        frames: Path of its framed Unix socket.
        grpc_address: Its gRPC address, behind TLS.
        certificate: Its certificate.
        token: File of the token that it asks for.
        wrong_token: File of another.
        version: The version that it holds.
        max_message_bytes: Its longest message.
    """

    frames: Path
    grpc_address: str
    certificate: Path
    token: Path
    wrong_token: Path
    version: str
    max_message_bytes: int


class Attacker:
    """Does one hostile act after the other, and counts what came of each.

    Args:
        victim: The server.
        seed: Chooses the acts and their bytes.
        hold_s: How long a connection is kept that does nothing more.

    Attributes:
        outcomes: How often each act ended in which way.
        acts: The acts by name.
    """

    def __init__(self, victim: Victim, *, seed: int, hold_s: float):
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self._victim = victim
        self._random = random.Random(seed)  # noqa: S311
        self._hold_s = hold_s
        self._held: deque[tuple[float, socket.socket]] = deque()
        self._channel = open_channel(victim.grpc_address, tls_ca=victim.certificate, max_answer_bytes=1 << 20)
        self._call = self._channel.unary_unary(_LOOKUP)
        self._metadata = (("authorization", f"Bearer {victim.token.read_text().strip()}"),)
        self.acts: dict[str, Callable[[], str]] = {
            "frames: random bytes": self._random_bytes,
            "frames: a random message": self._random_message,
            "frames: a request with a changed byte": self._changed_byte,
            "frames: a message too long": self._too_long,
            "frames: a message far too long": self._far_too_long,
            "frames: half a request": self._half_a_request,
            "frames: an answer that is not read": self._unread_answer,
            "frames: a wrong token": self._wrong_frame_token,
            "frames: no token": self._no_frame_token,
            "frames: connected and reset": self._connect_and_reset,
            "grpc: a random message": self._random_protobuf,
            "grpc: a message too long": self._long_protobuf,
            "grpc: a wrong token": self._wrong_grpc_token,
            "grpc: a deadline that can hardly be kept": self._short_deadline,
            "grpc: plain text where TLS is spoken": self._plain_text,
            "grpc: garbage within TLS": self._garbage_in_tls,
            "grpc: half a handshake": self._half_a_handshake,
        }

    def act(self) -> None:
        """One act, whichever comes up."""
        name = self._random.choice(list(self.acts))
        try:
            outcome = self.acts[name]()
        except (OSError, EOFError) as error:
            outcome = "closed" if isinstance(error, EOFError | ConnectionError) else type(error).__name__
        self.outcomes[name, outcome] += 1
        self._let_go(time.monotonic())

    def close(self) -> None:
        """End every connection."""
        self._let_go(float("inf"))
        self._channel.close()

    def _let_go(self, now: float) -> None:
        while self._held and self._held[0][0] <= now:
            self._held.popleft()[1].close()

    def _hold(self, stream: socket.socket) -> str:
        self._held.append((time.monotonic() + self._hold_s, stream))
        return "held"

    def _connect(self, *, authenticated: bool) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(5)
        try:
            stream.connect(str(self._victim.frames))
            if authenticated:
                _authenticate(stream, self._victim.token)
        except BaseException:
            stream.close()
            raise
        return stream

    def _frame(self, num_ids: int = 50) -> bytearray:
        pins = np.frombuffer(self._random.randbytes(8 * num_ids), np.int64)
        request = lookup_pb2.LookupRequest(version=self._victim.version, features=[pack_ids("pin", pins)])
        message = request.SerializeToString()
        return bytearray(Header(Kind.LOOKUP, len(message), 0, 1).pack() + message)

    def _send(self, content: bytes | bytearray, *, authenticated: bool = True) -> str:
        with self._connect(authenticated=authenticated) as stream:
            stream.sendall(content)
            return _outcome(stream)

    def _random_bytes(self) -> str:
        return self._send(self._random.randbytes(self._random.randint(HEADER_BYTES, 500)))

    def _random_message(self) -> str:
        message = self._random.randbytes(self._random.randint(1, 500))
        kind = self._random.choice((Kind.LOOKUP, Kind.DESCRIBE, Kind.AUTHENTICATE))
        return self._send(Header(kind, len(message), 0, 1).pack() + message)

    def _changed_byte(self) -> str:
        frame = self._frame()
        frame[self._random.randrange(HEADER_BYTES, len(frame))] = self._random.randrange(256)
        return self._send(frame)

    def _too_long(self) -> str:
        length = self._victim.max_message_bytes + self._random.randint(1, 10_000)
        return self._send(Header(Kind.LOOKUP, length, 0, 1).pack() + bytes(length))

    def _far_too_long(self) -> str:
        return self._send(Header(Kind.LOOKUP, self._random.randint(1 << 27, (1 << 32) - 1), 0, 1).pack() + bytes(1000))

    def _half_a_request(self) -> str:
        frame = self._frame()
        stream = self._connect(authenticated=True)
        stream.sendall(frame[: self._random.randrange(1, len(frame))])
        return self._hold(stream)

    def _unread_answer(self) -> str:
        stream = self._connect(authenticated=True)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stream.sendall(self._frame(num_ids=10_000))  # more than the socket takes
        return self._hold(stream)

    def _wrong_frame_token(self) -> str:
        with self._connect(authenticated=False) as stream:
            return _authenticate(stream, self._victim.wrong_token)

    def _no_frame_token(self) -> str:
        return self._send(self._frame(), authenticated=False)

    def _connect_and_reset(self) -> str:
        with self._connect(authenticated=self._random.random() < 0.5) as stream:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            stream.sendall(self._frame()[: self._random.randint(1, 400)])
        return "gone"

    def _random_protobuf(self) -> str:
        content = self._random.randbytes(self._random.randint(1, 500))
        return self._ask(content, 5)

    def _long_protobuf(self) -> str:
        return self._ask(bytes(self._victim.max_message_bytes + 1), 5)

    def _short_deadline(self) -> str:
        return self._ask(bytes(self._frame(num_ids=2000)[HEADER_BYTES:]), 0.0005)

    def _ask(self, content: bytes, timeout_s: float) -> str:
        try:
            self._call(content, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "answered"

    def _wrong_grpc_token(self) -> str:
        victim = self._victim
        client = LookupClient(victim.grpc_address, timeout_s=5, tls_ca=victim.certificate, token_file=victim.wrong_token)
        with client:
            try:
                client.lookup(victim.version, {"pin": [1]})
            except ServingError as error:
                return str(error.code.name)
        return "answered"

    def _plain_text(self) -> str:
        content = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if self._random.random() < 0.5 else b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        with self._connect_tcp() as stream:
            stream.sendall(content + self._random.randbytes(100))
            return _read_to_end(stream)

    def _garbage_in_tls(self) -> str:
        context = ssl.create_default_context(cafile=str(self._victim.certificate))
        context.check_hostname = False
        context.set_alpn_protocols(["h2"])
        with self._connect_tcp() as plain, context.wrap_socket(plain) as stream:
            stream.sendall(self._random.randbytes(self._random.randint(1, 2000)))
            return _read_to_end(stream)

    def _half_a_handshake(self) -> str:
        stream = self._connect_tcp()
        stream.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + self._random.randbytes(self._random.randint(0, 100)))
        return self._hold(stream)

    def _connect_tcp(self) -> socket.socket:
        host, _, port = self._victim.grpc_address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=5)


def open_idle(frames: Path, number: int) -> list[socket.socket]:
    """Connections that never say a word."""
    streams = []
    for _ in range(number):
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(str(frames))
        streams.append(stream)
    return streams


def _authenticate(stream: socket.socket, token: Path) -> str:
    message = frames_pb2.Credentials(token=token.read_text().strip()).SerializeToString()
    stream.sendall(Header(Kind.AUTHENTICATE, len(message), 0, 0).pack() + message)
    return _outcome(stream)


def _outcome(stream: socket.socket) -> str:
    """What the server answers: the code of its refusal, or that it answered."""
    header = Header.unpack(_read(stream, HEADER_BYTES), requests=False)
    content = _read(stream, header.message_bytes + header.rows_bytes)
    if header.kind is Kind.REFUSAL:
        return str(frames_pb2.Refusal.FromString(content).code)
    return "answered"


def _read(stream: socket.socket, num_bytes: int) -> bytes:
    content = b""
    while len(content) < num_bytes:
        part = stream.recv(num_bytes - len(content))
        if not part:
            raise EOFError
        content += part
    return content


def _read_to_end(stream: socket.socket) -> str:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while stream.recv(4096):
            pass
    return "closed"
