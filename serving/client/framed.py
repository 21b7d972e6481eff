"""The framed client of a lookup server: one connection a request under way, kept for the next."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Mapping

import numpy.typing as npt

from multifacet.serving.addresses import Address
from multifacet.serving.client.lookups import LookupConnection
from multifacet.serving.errors import DeadlineExceededError, UnavailableError
from multifacet.serving.fleet import FRAMED
from multifacet.serving.forks import let_go, num_forks, renew_in_children
from multifacet.serving.framed.exchange import Exchange, Stream
from multifacet.serving.protocol import frames_pb2, lookup_pb2
from multifacet.serving.secrets import TokenFile
from multifacet.serving.tracing import traceparent
from multifacet.serving.wire.answers import WHOLE, Asked, LookupAnswer, Shard, read_framed_lookup
from multifacet.serving.wire.frames import Kind, request_numbers
from multifacet.serving.wire.packing import pack_lookup

_MAX_IDLE = 64
_LOOKUP = int(Kind.LOOKUP)


class FramedLookupClient(LookupConnection):
    """Asks a lookup server for rows over its framed address; safe to share between threads, and with forked processes.

    A forked process opens connections of its own; lookups that were under way stay the parent's.

    Args:
        address: ``host:port`` or ``unix:/path``, with or without ``framed:`` before it.
        timeout_s: Deadline of a request that names none, in seconds.
        token_file: File with the token that the server asks for.
        max_answer_bytes: Longest answer accepted, in bytes.
        shard: Which part of a split release the server must hold; rows from another are refused.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 1.0,
        token_file: str | os.PathLike[str] | None = None,
        max_answer_bytes: int = 64 << 20,
        shard: Shard = WHOLE,
    ):
        parsed = Address.parse(address.removeprefix(FRAMED))
        self.address = f"{FRAMED}{parsed}"
        self.timeout_s = timeout_s
        self.max_answer_bytes = max_answer_bytes
        self.shard = shard
        self._target = parsed
        self._token = TokenFile(token_file)
        self._closed = False
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._start_anew()
        renew_in_children(self)

    @property
    def server(self) -> str:
        """How messages name the other end."""
        return f"lookup server {self.address}"

    def renew(self) -> None:
        """Leave the parent's connections to it; called in a process that was forked."""
        let_go([stream.socket.fileno() for stream in self._streams])
        self._streams.clear()
        self._start_anew()

    def _start_anew(self) -> None:
        self._idle: list[Stream] = []
        self._lock = threading.Lock()
        self._numbers = request_numbers()

    def start(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> FramedPendingLookup:
        """Send a lookup and return at once; see `lookup`."""
        message = pack_lookup(version, ids, request_id, traceparent())
        started_ns = time.perf_counter_ns()
        exchange = Exchange(self, _LOOKUP, message, self._deadline(timeout_s))
        return FramedPendingLookup(exchange, Asked.of(version, self.shard, ids), self.server, started_ns)

    def describe(self, *, timeout_s: float | None = None) -> lookup_pb2.LookupDescription:
        """What is loaded, and the limits."""
        exchange = Exchange(
            self, Kind.DESCRIBE, (lookup_pb2.LookupDescribeRequest().SerializeToString(),), self._deadline(timeout_s)
        )
        message, _ = exchange.result()
        description: lookup_pb2.LookupDescription = lookup_pb2.LookupDescription.FromString(message)
        return description

    def close(self) -> None:
        """Close the connections; one that is in use is closed when its request ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for stream in idle:
            stream.socket.close()

    def _deadline(self, timeout_s: float | None) -> float:
        return time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)

    def take(self, deadline: float) -> tuple[Stream, bool]:
        """A connection, and whether it was used before.

        Raises:
            UnavailableError: The server cannot be reached.
            ServingError: It refuses the token.
        """
        with self._lock:
            if self._closed:
                raise UnavailableError(f"{self.server}: this client is closed")
            if self._idle:
                return self._idle.pop(), True
        return self.connect(deadline), False

    def give_back(self, stream: Stream) -> None:
        """Keep a connection on which nothing is under way."""
        with self._lock:
            if not self._closed and len(self._idle) < _MAX_IDLE and stream.made_at == num_forks():
                self._idle.append(stream)
                return
        stream.socket.close()

    def connect(self, deadline: float) -> Stream:
        """A new connection; see `take`."""
        target = self._target
        timeout_s = max(1e-3, deadline - time.monotonic())
        try:
            if target.unix_path is not None:
                connected = _connect_unix(str(target.unix_path), timeout_s)
            else:
                connected = connect_tcp(target.host, target.port, deadline)
        except TimeoutError as error:
            raise DeadlineExceededError(f"{self.server}: not connected in time") from error
        except OSError as error:
            raise UnavailableError(f"{self.server}: {error}") from error
        stream = Stream(connected)
        with self._lock:
            self._streams.add(stream)
        token = self._token.token
        if token is not None:
            credentials = frames_pb2.Credentials(token=token).SerializeToString()
            Exchange(self, Kind.AUTHENTICATE, (credentials,), deadline, stream=stream).result(keep=True)
        return stream

    def next_number(self) -> int:
        """A number for the next request."""
        return next(self._numbers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address}, timeout_s={self.timeout_s})"


def connect_tcp(host: str, port: int, deadline: float) -> socket.socket:
    """Connect to one of the addresses of a name, whichever comes first: each connection in another order.

    Raises:
        OSError: None can be reached; the error of the last.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    random.shuffle(found)
    failure: OSError | None = None
    for place, (family, kind, protocol, _, address) in enumerate(found):
        connected = socket.socket(family, kind, protocol)
        try:
            # One that does not answer must not take the time of the others.
            connected.settimeout(max(1e-3, (deadline - time.monotonic()) / (len(found) - place)))
            connected.connect(address)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(connected)
        except OSError as error:
            connected.close()
            failure = error
        else:
            return connected
    raise failure or OSError(f"{host} has no address")


def keep_alive(stream: socket.socket) -> None:
    """Let the system ask after the other end of an idle connection, and close it when nobody answers."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _connect_unix(path: str, timeout_s: float) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(timeout_s)
        stream.connect(path)
    except OSError:
        stream.close()
        raise
    return stream


class FramedPendingLookup:
    """A lookup under way over a framed connection."""

    __slots__ = ("_asked", "_exchange", "_server", "_started_ns", "elapsed_us")

    def __init__(self, exchange: Exchange, asked: Asked, server: str, started_ns: int):
        self._exchange = exchange
        self._asked = asked
        self._server = server
        self._started_ns = started_ns
        self.elapsed_us = 0
        """Microseconds from sending to reading the answer; 0 until it is read."""

    def cancel(self) -> None:
        """Give it up; safe from any thread."""
        self._exchange.cancel()

    def fileno(self) -> int:
        """For `select`: readable once the answer is there."""
        return self._exchange.fileno()

    def result(self) -> LookupAnswer:
        """Wait for the answer.

        Raises:
            ServingError: As `LookupClient.lookup`.
        """
        message, rows = self._exchange.result()
        self.elapsed_us = (time.perf_counter_ns() - self._started_ns) // 1000
        return read_framed_lookup(lookup_pb2.LookupAnswer.FromString(message), rows, self._asked, self._server)
