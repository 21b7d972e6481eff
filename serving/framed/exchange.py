"""One request and its answer on one framed connection."""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from multifacet.serving.errors import BrokenAnswerError, DeadlineExceededError, ServingError, UnavailableError, from_status
from multifacet.serving.forks import num_forks, refuse_inherited
from multifacet.serving.protocol import frames_pb2
from multifacet.serving.wire.frames import (
    HEADER_BYTES,
    ROW_ALIGNMENT,
    BrokenFrameError,
    Header,
    Kind,
    check_number,
    pack_header,
)

if TYPE_CHECKING:
    from multifacet.serving.framed.connection import Buffer

_TIMEVAL = struct.Struct("@ll")
_COARSE_US = 20_000
_LEAST_ROOM = 4096


class Stream:
    """A connection, and what is known about it.

    Attributes:
        socket: The connected socket, blocking.
        made_at: `num_forks` then.
        answer_bytes: Length of its last answer: the next one is read into as much memory.
        message_bytes: Length of that answer's message: rows are expected behind as much.
    """

    __slots__ = ("__weakref__", "_receive_us", "_send_us", "answer_bytes", "made_at", "message_bytes", "socket")

    def __init__(self, connected: socket.socket):
        connected.settimeout(None)  # the system's own timeouts are used: one call fewer for each read
        self.socket = connected
        self.made_at = num_forks()
        self.answer_bytes = 0
        self.message_bytes = 0
        self._send_us = 0
        self._receive_us = 0

    def limit_sending(self, deadline: float) -> None:
        """Let the next send end by the deadline (`time.monotonic`), or up to a millisecond later."""
        wait_us = _wait_us(deadline)
        if wait_us != self._send_us:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(*divmod(wait_us, 1_000_000)))
            self._send_us = wait_us

    def limit_receiving(self, deadline: float) -> None:
        """Let the next read end by the deadline, or up to a millisecond later."""
        wait_us = _wait_us(deadline)
        if wait_us != self._receive_us:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(*divmod(wait_us, 1_000_000)))
            self._receive_us = wait_us


def _wait_us(deadline: float) -> int:
    """Time that is left; whole milliseconds if it is long, so that requests of one timeout share one setting of the socket."""
    remaining_us = (deadline - time.monotonic()) * 1e6
    if remaining_us > _COARSE_US:
        return math.ceil(remaining_us * 1e-3) * 1000
    return max(1, int(remaining_us))


class Streams(Protocol):
    """Where an exchange gets its connection from.

    Attributes:
        max_answer_bytes: Longest answer accepted, in bytes; -1 for no limit.
    """

    max_answer_bytes: int

    @property
    def server(self) -> str:
        """How messages name the other end."""
        ...

    def take(self, deadline: float) -> tuple[Stream, bool]:
        """A connection, and whether it was used before."""
        ...

    def give_back(self, stream: Stream) -> None:
        """Keep a connection on which nothing is under way."""
        ...

    def connect(self, deadline: float) -> Stream:
        """A new connection."""
        ...

    def next_number(self) -> int:
        """A number for the next request."""
        ...


class Exchange:
    """One request and its answer on one connection.

    A connection that was idle may have been closed by the server in the meantime, which shows only when it is used:
    the request then goes out once more on a new one. Lookups change nothing, so that asking twice does no harm.

    Args:
        client: Whose connection to use.
        kind: What is asked.
        message: The request's protobuf message, in parts that are sent one after the other.
        deadline: On the clock of `time.monotonic`.
        stream: The connection; None takes one of the client's.
    """

    __slots__ = (
        "_cancelled",
        "_client",
        "_deadline",
        "_is_read",
        "_kind",
        "_lock",
        "_made_at",
        "_may_be_stale",
        "_message",
        "_number",
        "_stream",
    )

    def __init__(self, client: Streams, kind: int, message: Sequence[Buffer], deadline: float, *, stream: Stream | None = None):
        self._client = client
        self._kind = kind
        self._message = message
        self._deadline = deadline
        self._made_at = num_forks()
        self._number = client.next_number()
        self._cancelled = False
        self._is_read = False
        self._lock = threading.Lock()
        self._stream, self._may_be_stale = (stream, False) if stream is not None else client.take(deadline)
        self._send()

    def fileno(self) -> int:
        """The connection's descriptor, for `select`: readable once an answer is there."""
        return self._stream.socket.fileno()

    def cancel(self) -> None:
        """Give the answer up; safe from any thread."""
        if self._made_at != num_forks():
            return  # the parent's
        with self._lock:
            self._cancelled = True
            if not self._is_read:
                self._stream.socket.close()
                return
        with contextlib.suppress(OSError):
            self._stream.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it, which closes it

    def result(self, *, keep: bool = False) -> tuple[Buffer, npt.NDArray[np.uint8]]:
        """Wait for the answer.

        Args:
            keep: Whether the caller goes on to use the connection, instead of giving it back.

        Returns:
            Its message, and its rows (uint8, aligned to 8 bytes).

        Raises:
            ServingError: The server's refusal, or what happened to the connection.
        """
        refuse_inherited(self._made_at, self._client.server)
        with self._lock:
            if self._cancelled:
                raise self._given_up()
            self._is_read = True
        whole = False
        try:
            header, message, rows = self._read()
            whole = not (keep and header.kind is Kind.REFUSAL)
        finally:
            if not whole or self._cancelled:
                self._stream.socket.close()
            elif not keep:
                self._client.give_back(self._stream)
        if header.kind is Kind.REFUSAL:
            refusal = frames_pb2.Refusal.FromString(message)
            raise from_status(refusal.code, refusal.message, refusal.loaded_versions, self._client.server)
        return message, rows

    def _send(self) -> None:
        length = 0
        for part in self._message:
            length += len(part)
        timeout_us = max(1, math.ceil((self._deadline - time.monotonic()) * 1e6))
        header = pack_header(self._kind, length, 0, self._number, timeout_us)
        try:
            self._stream.limit_sending(self._deadline)
            sent = self._stream.socket.sendmsg((header, *self._message))
            if sent < HEADER_BYTES + length:
                self._stream.socket.sendall(b"".join((header, *self._message))[sent:])
        except BlockingIOError as error:
            self._stream.socket.close()
            raise DeadlineExceededError(f"{self._client.server}: it did not read the request in time") from error
        except (BrokenPipeError, ConnectionResetError) as error:
            if self._may_be_stale:
                self._send_again(error)
            # A server that refuses a new connection says why before it closes it: what it said is still to be read.
        except OSError as error:
            self._send_again(error)

    def _send_again(self, error: OSError) -> None:
        self._stream.socket.close()
        if not self._may_be_stale or self._cancelled:
            raise UnavailableError(f"{self._client.server}: the connection broke: {error}") from error
        self._may_be_stale = False
        self._stream = self._client.connect(self._deadline)
        self._send()

    def _read(self) -> tuple[Header, memoryview, npt.NDArray[np.uint8]]:
        """The whole answer, nearly always by two reads: what is there first, and the rest."""
        # A message is as long as the last one of its connection, but for a byte now and then: rows then begin where memory
        # is aligned. Nothing follows an answer before the next request, so that more room than it takes does no harm.
        lead = -(HEADER_BYTES + self._stream.message_bytes) % ROW_ALIGNMENT
        buffer = np.empty(lead + max(_LEAST_ROOM, self._stream.answer_bytes), np.uint8)
        view = buffer.data[lead:]
        filled = self._receive_first(view)
        header = Header.unpack(view, requests=False)
        check_number(header, self._number, self._client.server)
        rows_start = HEADER_BYTES + header.message_bytes
        length = rows_start + header.rows_bytes
        limit = self._client.max_answer_bytes
        if 0 <= limit < length:
            raise BrokenAnswerError(f"{self._client.server}: its answer has {length} bytes, at most {limit} are accepted")
        if filled > length:
            raise BrokenFrameError(f"{self._client.server}: {filled - length} bytes follow its answer of {length} bytes")
        if length > len(view):
            lead = -rows_start % ROW_ALIGNMENT
            larger = np.empty(lead + length, np.uint8)
            larger[lead : lead + filled] = view[:filled]
            buffer, view = larger, larger.data[lead:]
        if filled < length:
            self._receive_rest(view[filled:length])
        self._stream.answer_bytes, self._stream.message_bytes = length, header.message_bytes
        rows = buffer[lead + rows_start : lead + length]
        return header, view[HEADER_BYTES:rows_start], rows if not (lead + rows_start) % ROW_ALIGNMENT else rows.copy()

    def _receive_first(self, view: memoryview) -> int:
        """Read what comes first, at least a header; how many bytes there were."""
        filled = 0
        flags = 0
        while True:
            try:
                self._stream.limit_receiving(self._deadline)
                num_bytes = self._stream.socket.recv_into(view[filled:HEADER_BYTES] if filled else view, 0, flags)
            except BlockingIOError as error:
                raise self._late() from error
            except OSError:
                num_bytes = 0
            if self._cancelled:
                raise self._given_up()
            filled += num_bytes
            if filled >= HEADER_BYTES:
                return filled
            if filled and time.monotonic() > self._deadline:
                raise self._late()
            if not num_bytes:
                cause = ConnectionResetError("it was closed before the answer")
                if filled or not self._may_be_stale:
                    raise UnavailableError(f"{self._client.server}: the connection broke: {cause}")
                self._send_again(cause)
            elif filled:
                flags = socket.MSG_WAITALL

    def _receive_rest(self, view: memoryview) -> None:
        while view:
            try:
                num_bytes = self._stream.socket.recv_into(view, 0, socket.MSG_WAITALL)
            except BlockingIOError as error:
                raise self._late() from error
            except OSError as error:
                raise UnavailableError(f"{self._client.server}: the connection broke: {error}") from error
            if not num_bytes:
                raise UnavailableError(f"{self._client.server}: the connection broke in the middle of an answer")
            view = view[num_bytes:]
            if view and time.monotonic() > self._deadline:
                raise self._late()

    def _given_up(self) -> ServingError:
        return ServingError(f"{self._client.server}: CANCELLED: the lookup was given up")

    def _late(self) -> DeadlineExceededError:
        return DeadlineExceededError(f"{self._client.server}: no answer by the deadline")
