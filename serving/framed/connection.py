"""One client's connection to a framed server: bytes in until a request is whole, bytes out until its answer is gone."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from multifacet.serving.errors import UnauthenticatedError
from multifacet.serving.wire.frames import HEADER_BYTES, BrokenFrameError, Header, OversizedFrameError, check_message_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    Buffer = bytes | bytearray | memoryview

SCRATCH_BYTES = 1 << 16
_LONGEST_SKIP = 64 << 20
_FIRST_BYTES = 1 << 14
_MOST_BEFORE_TOKEN = 8192
"""A message that a stranger may send: a token, and what asks for a description."""


class Request(NamedTuple):
    """One whole request.

    Attributes:
        header: Its header.
        frame: Header and protobuf message, writable memory; valid until the connection is read again.
        arrived: When its last byte was read, in seconds of `time.monotonic`.
    """

    header: Header
    frame: memoryview
    arrived: float

    @property
    def message(self) -> memoryview:
        """The protobuf message."""
        return self.frame[HEADER_BYTES:]


class ClosedError(Exception):
    """The client is gone."""


class Connection:
    """Reads requests and writes answers without ever waiting.

    Memory is bounded: one request that is being read, of at most `max_message_bytes`, or one answer that is being
    sent; nothing while it is idle. A request takes memory as its bytes come, and not as its header says.

    Args:
        stream: The connected socket; it is made non-blocking and belongs to this object.
        max_message_bytes: Longest message accepted.
    """

    __slots__ = (
        "_body",
        "_filled",
        "_header",
        "_length",
        "_max_message_bytes",
        "_skip",
        "_unsent",
        "authenticated",
        "since",
        "stream",
        "used_at",
    )

    def __init__(self, stream: socket.socket, max_message_bytes: int):
        stream.setblocking(False)
        self.stream = stream
        self.authenticated = False
        self.since = 0.0
        """Since when a request has been half read or an answer half sent, in seconds of `time.monotonic`; 0 if none is."""
        self.used_at = time.monotonic()
        """When it was opened, or its last request was whole."""
        self._max_message_bytes = max_message_bytes
        self._header: Header | None = None
        self._body: bytearray | None = None
        self._filled = 0
        self._length = 0
        self._skip = 0
        self._unsent: memoryview | None = None

    def is_sending(self) -> bool:
        """Whether an answer is not all sent: the client reads slowly, and is not read from until it has it."""
        return self._unsent is not None

    def receive(self, scratch: memoryview) -> Request | None:
        """Read what has arrived.

        Args:
            scratch: `SCRATCH_BYTES` that all connections share: a request that arrives in one piece is not copied.

        Returns:
            The request, if it is whole.

        Raises:
            ClosedError: The client closed the connection.
            BrokenFrameError: It sent no frame, or more than one at a time.
            OversizedFrameError: Its message is too long; it is skipped, and the connection stays usable.
            UnauthenticatedError: Likewise, of a client that has not brought its token.
        """
        body = self._body
        if body is None:
            if not self._skip:
                return self._begin(scratch, self._read(scratch))
            self._skip -= self._read(scratch[: min(self._skip, len(scratch))])
            self.since = self.since if self._skip else 0.0
            return None
        self._filled += self._read(memoryview(body)[self._filled :])
        if self._filled < self._length:
            if self._filled == len(body):
                body.extend(bytes(min(self._length - self._filled, self._filled)))
            return None
        if self._header is None:  # the header came in pieces
            self._body = None
            return self._begin(memoryview(body), len(body))
        request = Request(self._header, memoryview(body), time.monotonic())
        self._reset()
        return request

    @property
    def reserved_bytes(self) -> int:
        """Memory that a half read request or a half sent answer takes."""
        return (len(self._body) if self._body is not None else 0) + (len(self._unsent) if self._unsent is not None else 0)

    def send(self, parts: Sequence[Buffer]) -> None:
        """Send a part of an answer, or as much as the client's buffer takes; keep a copy of the rest for `flush`.

        Raises:
            ClosedError: The client is gone.
        """
        if self._unsent is not None:
            self._unsent = memoryview(b"".join((self._unsent, *parts)))
            return
        try:
            sent = self.stream.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise ClosedError from error
        total = 0
        for part in parts:
            total += len(part)
        if sent < total:
            self._unsent = memoryview(b"".join(parts))[sent:]
            self.since = time.monotonic()

    def flush(self) -> None:
        """Send more of an answer that was not all sent.

        Raises:
            ClosedError: The client is gone.
        """
        if self._unsent is None:
            return
        try:
            self._unsent = self._unsent[self.stream.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError as error:
            raise ClosedError from error
        self.since = time.monotonic()  # a slow reader is one that reads
        if not self._unsent:
            self._unsent = None
            self.since = 0.0

    def _begin(self, first: memoryview, num_bytes: int) -> Request | None:
        if num_bytes < HEADER_BYTES:
            if num_bytes:
                self._keep(first[:num_bytes], HEADER_BYTES)
            return None
        header = Header.unpack(first, requests=True)
        length = HEADER_BYTES + header.message_bytes
        if num_bytes > length:
            raise BrokenFrameError("a connection carries one request at a time: open another for the next one")
        try:
            self._check_length(header)
        except (OversizedFrameError, UnauthenticatedError) as error:
            if header.message_bytes > _LONGEST_SKIP:
                raise BrokenFrameError(str(error)) from error
            self._reset()
            self._skip = length - num_bytes
            self.since = time.monotonic() if self._skip else 0.0
            raise
        if num_bytes == length:
            self.since = 0.0
            return Request(header, first[:num_bytes], time.monotonic())
        self._header = header
        self._keep(first[:num_bytes], length)
        return None

    def _check_length(self, header: Header) -> None:
        check_message_bytes(header, self._max_message_bytes)
        if not self.authenticated and header.message_bytes > _MOST_BEFORE_TOKEN:
            raise UnauthenticatedError("this lookup server asks for a token: give the client one")

    def _keep(self, first: memoryview, length: int) -> None:
        self._length = length
        self._body = bytearray(min(length, max(_FIRST_BYTES, 2 * len(first))))
        self._body[: len(first)] = first
        self._filled = len(first)
        if not self.since:
            self.since = time.monotonic()

    def _reset(self) -> None:
        self._header = None
        self._body = None
        self._filled = 0
        self.since = 0.0

    def _read(self, into: memoryview) -> int:
        try:
            num_bytes = self.stream.recv_into(into)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ClosedError from error
        if not num_bytes:
            raise ClosedError
        return num_bytes
