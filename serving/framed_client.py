"""The framed client of a lookup server: one connection a request under way, kept for the next."""

from __future__ import annotations

import contextlib
import itertools
import math
import socket
import struct
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.address import Address
from serving.answers import LookupAnswer, read_framed_lookup
from serving.config import read_token
from serving.errors import BrokenAnswerError, DeadlineExceededError, ServingError, UnavailableError, from_status
from serving.frames import HEADER_BYTES, BrokenFrameError, Header, Kind
from serving.lookups import LookupConnection
from serving.packing import pack_ids
from serving.protocol import frames_pb2, lookup_pb2

FRAMED = "framed:"
_MAX_IDLE = 64
_TIMEVAL = struct.Struct("@ll")


class FramedLookupClient(LookupConnection):
    """Asks a lookup server for rows over its framed address; safe to share between threads.

    Args:
        address: ``host:port`` or ``unix:/path``, with or without ``framed:`` before it.
        timeout_s: Deadline of a request that names none, in seconds.
        token_file: File with the token that the server asks for.
        max_answer_bytes: Longest answer accepted, in bytes.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 1.0,
        token_file: Path | None = None,
        max_answer_bytes: int = 64 << 20,
    ):
        parsed = Address.parse(address.removeprefix(FRAMED))
        self.address = f"{FRAMED}{parsed}"
        self.timeout_s = timeout_s
        self.max_answer_bytes = max_answer_bytes
        self._target = parsed
        self._token = read_token(token_file)
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()
        self._closed = False
        self._numbers = itertools.count(1)

    @property
    def server(self) -> str:
        """How messages name the other end."""
        return f"lookup server {self.address}"

    def start(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> FramedPendingLookup:
        """Send a lookup and return at once; see `lookup`."""
        request = lookup_pb2.LookupRequest(
            version=version,
            features=[pack_ids(feature, values) for feature, values in ids.items()],
            request_id=request_id,
        )
        return FramedPendingLookup(Exchange(self, Kind.LOOKUP, request.SerializeToString(), self._deadline(timeout_s)))

    def describe(self, *, timeout_s: float | None = None) -> lookup_pb2.LookupDescription:
        """What is loaded, and the limits."""
        exchange = Exchange(
            self, Kind.DESCRIBE, lookup_pb2.LookupDescribeRequest().SerializeToString(), self._deadline(timeout_s)
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
            stream.close()

    def _deadline(self, timeout_s: float | None) -> float:
        return time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)

    def take(self, deadline: float) -> tuple[socket.socket, bool]:
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

    def give_back(self, stream: socket.socket) -> None:
        """Keep a connection on which nothing is under way."""
        with self._lock:
            if not self._closed and len(self._idle) < _MAX_IDLE:
                self._idle.append(stream)
                return
        stream.close()

    def connect(self, deadline: float) -> socket.socket:
        """A new connection; see `take`."""
        target = self._target
        timeout_s = max(1e-3, deadline - time.monotonic())
        try:
            if target.unix_path is not None:
                stream = _connect_unix(str(target.unix_path), timeout_s)
            else:
                stream = socket.create_connection((target.host, target.port), timeout=timeout_s)
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except TimeoutError as error:
            raise DeadlineExceededError(f"{self.server}: not connected in time") from error
        except OSError as error:
            raise UnavailableError(f"{self.server}: {error}") from error
        stream.settimeout(None)  # the system's own timeouts are used from here: one call fewer for each read
        if self._token is not None:
            credentials = frames_pb2.Credentials(token=self._token).SerializeToString()
            Exchange(self, Kind.AUTHENTICATE, credentials, deadline, stream=stream).result(keep=True)
        return stream

    def next_number(self) -> int:
        """A number for the next request."""
        return next(self._numbers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address}, timeout_s={self.timeout_s})"


def _connect_unix(path: str, timeout_s: float) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(timeout_s)
        stream.connect(path)
    except OSError:
        stream.close()
        raise
    return stream


class Exchange:
    """One request and its answer on one connection.

    A connection that was idle may have been closed by the server in the meantime, which shows only when it is used:
    the request then goes out once more on a new one. Lookups change nothing, so that asking twice does no harm.

    Args:
        client: Whose connection to use.
        kind: What is asked.
        message: The request's protobuf message.
        deadline: On the clock of `time.monotonic`.
        stream: The connection; None takes one of the client's.
    """

    def __init__(
        self, client: FramedLookupClient, kind: Kind, message: bytes, deadline: float, *, stream: socket.socket | None = None
    ):
        self._client = client
        self._kind = kind
        self._message = message
        self._deadline = deadline
        self._number = client.next_number()
        self._cancelled = False
        self._is_read = False
        self._lock = threading.Lock()
        self._stream, self._may_be_stale = (stream, False) if stream is not None else client.take(deadline)
        self._send()

    def fileno(self) -> int:
        """The connection's descriptor, for `select`: readable once an answer is there."""
        return self._stream.fileno()

    def cancel(self) -> None:
        """Give the answer up; safe from any thread."""
        with self._lock:
            self._cancelled = True
            if not self._is_read:
                self._stream.close()
                return
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it, which closes it

    def result(self, *, keep: bool = False) -> tuple[memoryview, npt.NDArray[np.uint8]]:
        """Wait for the answer.

        Args:
            keep: Whether the caller goes on to use the connection, instead of giving it back.

        Returns:
            Its message, and its rows (uint8, aligned to 8 bytes).

        Raises:
            ServingError: The server's refusal, or what happened to the connection.
        """
        with self._lock:
            if self._cancelled:
                raise self._given_up()
            self._is_read = True
        whole = False
        try:
            header = self._read_header()
            body = self._read_body(header)
            whole = not (keep and header.kind is Kind.REFUSAL)
        finally:
            if not whole or self._cancelled:
                self._stream.close()
            elif not keep:
                self._client.give_back(self._stream)
        rows = body[: header.rows_bytes]
        message = body[header.rows_bytes :].data
        if header.kind is Kind.REFUSAL:
            refusal = frames_pb2.Refusal.FromString(message)
            raise from_status(refusal.code, refusal.message, refusal.loaded_versions, self._client.server)
        return message, rows

    def _send(self) -> None:
        timeout_us = max(1, math.ceil((self._deadline - time.monotonic()) * 1e6))
        header = Header(self._kind, len(self._message), 0, self._number, timeout_us).pack()
        try:
            self._limit_waits()
            self._stream.sendall(header + self._message)
        except BlockingIOError as error:
            self._stream.close()
            raise DeadlineExceededError(f"{self._client.server}: it did not read the request in time") from error
        except OSError as error:
            self._send_again(error)

    def _send_again(self, error: OSError) -> None:
        self._stream.close()
        if not self._may_be_stale or self._cancelled:
            raise UnavailableError(f"{self._client.server}: the connection broke: {error}") from error
        self._may_be_stale = False
        self._stream = self._client.connect(self._deadline)
        self._send()

    def _read_header(self) -> Header:
        packed = bytearray(HEADER_BYTES)
        cause = ConnectionResetError("it was closed before the answer")
        while True:
            try:
                num_bytes = self._stream.recv_into(packed, HEADER_BYTES, socket.MSG_WAITALL)
            except BlockingIOError as error:
                raise self._late() from error
            except ConnectionResetError:
                num_bytes = 0
            if num_bytes or not self._may_be_stale or self._cancelled:
                break
            self._send_again(cause)
        if self._cancelled:
            raise self._given_up()
        if num_bytes < HEADER_BYTES:
            raise self._late() if num_bytes else UnavailableError(f"{self._client.server}: the connection broke: {cause}")
        header = Header.unpack(packed, requests=False)
        if header.number not in (self._number, 0):
            raise BrokenFrameError(f"{self._client.server}: it answered request {header.number}, asked was {self._number}")
        return header

    def _read_body(self, header: Header) -> npt.NDArray[np.uint8]:
        """The rows, then the message: rows begin where memory is aligned, though the message comes first."""
        length = header.rows_bytes + header.message_bytes
        limit = self._client.max_answer_bytes
        if 0 <= limit < length:
            raise BrokenAnswerError(f"{self._client.server}: its answer has {length} bytes, at most {limit} are accepted")
        body = np.empty(length, np.uint8)
        parts = [body[header.rows_bytes :].data, body[: header.rows_bytes].data]
        while length:
            try:
                num_bytes = self._stream.recvmsg_into(parts, 0, socket.MSG_WAITALL)[0]
            except BlockingIOError as error:
                raise self._late() from error
            except OSError as error:
                raise UnavailableError(f"{self._client.server}: the connection broke: {error}") from error
            if not num_bytes:
                raise UnavailableError(f"{self._client.server}: the connection broke in the middle of an answer")
            length -= num_bytes
            if length and time.monotonic() > self._deadline:
                raise self._late()
            in_first = min(num_bytes, len(parts[0]))
            parts = [parts[0][in_first:], parts[1][num_bytes - in_first :]]
        return body

    def _given_up(self) -> ServingError:
        return ServingError(f"{self._client.server}: CANCELLED: the lookup was given up")

    def _late(self) -> DeadlineExceededError:
        return DeadlineExceededError(f"{self._client.server}: no answer by the deadline")

    def _limit_waits(self) -> None:
        remaining_us = max(1, int((self._deadline - time.monotonic()) * 1e6))
        remaining = _TIMEVAL.pack(*divmod(remaining_us, 1_000_000))
        self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, remaining)
        self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, remaining)


class FramedPendingLookup:
    """A lookup under way over a framed connection."""

    def __init__(self, exchange: Exchange):
        self._exchange = exchange
        self._started_ns = time.perf_counter_ns()
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
        return read_framed_lookup(lookup_pb2.LookupAnswer.FromString(message), rows, self._exchange._client.server)
