"""The framed side of a lookup server: one thread, one loop, any number of connections."""

from __future__ import annotations

import contextlib
import itertools
import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from hmac import compare_digest
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from multifacet.serving import tracing
from multifacet.serving.addresses import Address
from multifacet.serving.errors import (
    MAX_VERSIONS_TOLD,
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    ServingError,
    UnauthenticatedError,
    UnavailableError,
    VersionNotLoadedError,
    brief,
)
from multifacet.serving.framed.connection import SCRATCH_BYTES, ClosedError, Connection, Request
from multifacet.serving.framed.listening import listen
from multifacet.serving.protocol import frames_pb2
from multifacet.serving.secrets import TokenFile
from multifacet.serving.wire.frames import BrokenFrameError, Header, Kind, OversizedFrameError, pack_header

if TYPE_CHECKING:
    from multifacet.serving.config import LookupConfig
    from multifacet.serving.framed.connection import Buffer
    from multifacet.serving.server.metrics import ServerMetrics

logger = logging.getLogger(__name__)

Handler = Callable[[Kind, "Buffer"], "tuple[bytes, Buffer]"]
"""Answers one request: kind and message to message and rows. Rows need stay valid only until the next call."""
QuickHandler = Callable[["memoryview", int], "tuple[memoryview, int] | None"]
"""Answers a lookup's frame and sends it to a descriptor as far as it takes it: the answer's frame, and how much was sent.

None if the request is not for it. The frame need stay valid only until the next call.
"""

_SEND_BUFFER_BYTES = 1 << 20
_SWEEP_S = 1.0
_PAUSE_S = 0.1
_COMPLAIN_S = 10.0
_MOST_HALF_BYTES = 256 << 20
_MOST_LOOKED_AT = 64
_IDLE_S = 5.0
_STRANGER_S = 0.2
_NOBODY = Header(Kind.REFUSAL, 0, 0, 0)
_ANSWER = int(Kind.ANSWER)
_READ, _WRITE = select.EPOLLIN | select.EPOLLRDHUP, select.EPOLLOUT | select.EPOLLRDHUP


class FramedServer:
    """Answers frames on one address.

    All of it runs in one thread, because handing a request of a fifth of a millisecond to another thread costs about
    as much again. Requests are answered in the order in which they became whole. One that waited longer than its
    client waits is not answered, and beyond `max_queued_requests` whole ones the others are refused at once: the
    loop reads all that has arrived before it answers any.

    Args:
        config: Address, limits, token.
        handler: Answers a request, or raises a `ServingError`.
        metrics: Where requests are counted.
        quick: Asked first for a lookup.
        pass_on: Takes a connection to another process; False if it is to be served here.
    """

    def __init__(
        self,
        config: LookupConfig,
        handler: Handler,
        metrics: ServerMetrics,
        quick: QuickHandler = lambda _frame, _descriptor: None,
        pass_on: Callable[[socket.socket], bool] = lambda _stream: False,
    ):
        self._config = config
        self._handler = handler
        self._quick = quick
        self._pass_on = pass_on
        self._adopted: deque[socket.socket] = deque()
        self._metrics = metrics
        self.token = TokenFile(config.token_file)
        self._connections: dict[int, Connection] = {}
        self._queue: deque[tuple[Connection, Request]] = deque()
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._poll = select.epoll()
        self._waker, self._wakes = socket.socketpair()
        self._poll.register(self._wakes.fileno(), select.EPOLLIN)
        self._listening: socket.socket | None = None
        self._stop_by: float | None = None
        self._accept_at = 0.0
        self._complain_at = 0.0
        self._num_pauses = 0
        self._thread = threading.Thread(target=self._run, name="framed", daemon=True)
        self.address = ""

    def start(self) -> str:
        """Bind and accept.

        Returns:
            The bound address.

        Raises:
            OSError: It is taken or cannot be bound.
        """
        self._listening, self.address = listen(Address.parse(self._config.framed_listen or ""), self._config.socket_mode)
        self._poll.register(self._listening.fileno(), select.EPOLLIN)
        self._thread.start()
        return self.address

    def start_adopting(self) -> None:
        """Serve connections that `adopt` brings, and listen nowhere."""
        self._thread.start()

    def adopt(self, stream: socket.socket) -> None:
        """Serve a connection that somebody else accepted; from any thread."""
        self._adopted.append(stream)
        self._waker.send(b"\0")

    def stop(self, drain_timeout_s: float) -> None:
        """Answer the requests that are whole, send the answers that are under way, and close every connection.

        Args:
            drain_timeout_s: Longest wait for clients that read slowly.
        """
        self._stop_by = time.monotonic() + drain_timeout_s
        if self._thread.is_alive():
            self._waker.send(b"\0")
            self._thread.join()
        if self._listening is not None:
            self._listening.close()
        self._waker.close()
        self._wakes.close()
        self._poll.close()

    @property
    def num_connections(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    @property
    def num_queued(self) -> int:
        """Whole requests that wait now."""
        return len(self._queue)

    def _run(self) -> None:
        swept = time.monotonic()
        while not (self._stop_by is not None and self._is_drained()):
            timeout_s = _SWEEP_S if self._stop_by is None else 0.0 if not self._is_sending() else 0.05
            if self._accept_at:
                timeout_s = min(timeout_s, _PAUSE_S)
            self._read_all(self._poll.poll(timeout_s))
            if self._accept_at and time.monotonic() >= self._accept_at and self._listening is not None:
                self._accept_at = 0.0
                self._poll.register(self._listening.fileno(), select.EPOLLIN)
            while self._queue:
                connection, request = self._queue.popleft()
                if connection.stream.fileno() in self._connections:
                    self._answer(connection, request)
            now = time.monotonic()
            if now - swept >= _SWEEP_S:
                swept = now
                self._sweep(now)
        for connection in list(self._connections.values()):
            self._close(connection)

    def _read_all(self, ready: Sequence[tuple[int, int]]) -> None:
        for descriptor, events in ready:
            connection = self._connections.get(descriptor)
            if connection is not None:
                request = self._attend(connection, events)
                if request is not None and len(ready) == 1:  # nothing else is to be read first, so that it can stay where it is
                    self._answer(connection, request)
                elif request is not None:
                    self._enqueue(connection, request)
            elif self._listening is not None and descriptor == self._listening.fileno():
                self._accept()
            elif descriptor == self._wakes.fileno():
                self._wakes.recv(SCRATCH_BYTES)
                while self._adopted:
                    self._welcome(self._adopted.popleft())

    def _is_sending(self) -> bool:
        return any(connection.is_sending() for connection in self._connections.values())

    def _is_drained(self) -> bool:
        """Whether nothing that arrived before the stop is unanswered; stops to listen at the first call."""
        if self._listening is not None:
            with contextlib.suppress(OSError):
                self._poll.unregister(self._listening.fileno())
            self._listening.close()
            self._listening = None
            return False  # what has arrived is read once more
        return not self._is_sending() or time.monotonic() >= (self._stop_by or 0.0)

    def _accept(self) -> None:
        while self._listening is not None:
            try:
                stream, _ = self._listening.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:  # the client is gone already
                continue
            except OSError as error:  # out of descriptors or of memory: the next clients wait in the system's queue
                self._pause(error)
                return
            if self._pass_on(stream):
                stream.close()
            else:
                self._welcome(stream)

    def _welcome(self, stream: socket.socket) -> None:
        connection = Connection(stream, self._config.max_message_bytes)
        connection.authenticated = self.token.token is None
        if len(self._connections) >= self._config.max_connections and not self._make_room():
            refusal = OverloadedError(f"there are {len(self._connections)} connections, as many as are accepted")
            self._refuse(connection, _NOBODY, refusal)
            stream.close()
            return
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        if stream.family != socket.AF_UNIX:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A client whose machine vanished says nothing: the system asks after it, and closes.
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
        self._connections[stream.fileno()] = connection
        self._poll.register(stream.fileno(), _READ)

    def _pause(self, error: OSError) -> None:
        """Accept nothing for a moment: what waits to be accepted would wake the loop again and again."""
        now = time.monotonic()
        self._num_pauses += 1
        if now >= self._complain_at:
            logger.warning("cannot accept connections (%d times by now): %s", self._num_pauses, error)
            self._complain_at = now + _COMPLAIN_S
        if self._listening is not None:
            self._poll.unregister(self._listening.fileno())
            self._accept_at = now + _PAUSE_S

    def _attend(self, connection: Connection, events: int) -> Request | None:
        """Read or write what can be; the request, if one became whole."""
        if events != select.EPOLLIN:
            gone = select.EPOLLHUP | select.EPOLLERR | (select.EPOLLRDHUP if connection.is_sending() else 0)
            if events & gone:  # nobody will read an answer
                self._close(connection)
                return None
        try:
            if connection.is_sending():
                connection.flush()
                if not connection.is_sending():
                    self._poll.modify(connection.stream.fileno(), _READ)
                return None
            return connection.receive(self._scratch)
        except ClosedError:
            self._close(connection)
        except (OversizedFrameError, UnauthenticatedError) as error:
            self._refuse(connection, _NOBODY, error)
        except BrokenFrameError as error:
            self._refuse(connection, _NOBODY, error)
            self._close(connection)
        return None

    def _enqueue(self, connection: Connection, request: Request) -> None:
        if len(self._queue) >= self._config.max_queued_requests:
            self._refuse(connection, request.header, OverloadedError(f"{len(self._queue)} requests are waiting already"))
            return
        # The next connection is read into the same scratch, before this request is answered.
        self._queue.append((connection, Request(request.header, memoryview(bytearray(request.frame)), request.arrived)))

    def _answer(self, connection: Connection, request: Request) -> None:
        header = request.header
        connection.used_at = request.arrived
        descriptor = connection.stream.fileno()
        self._connections[descriptor] = self._connections.pop(descriptor)  # in the order of their last requests
        if header.kind is not Kind.LOOKUP or not tracing.is_tracing():
            self._work(connection, request)
            return
        request_id, parent = tracing.read_frame(request.message)
        with tracing.server_span("Lookup/Lookup", parent, request__id=request_id, transport="framed"):
            self._work(connection, request)

    def _work(self, connection: Connection, request: Request) -> None:
        header = request.header
        try:
            self._check(connection, request)
            if header.kind is Kind.LOOKUP and not connection.is_sending():
                quick = self._quick(request.frame, connection.stream.fileno())
                if quick is not None:
                    frame, num_sent = quick
                    self._metrics.count_request("OK")
                    if num_sent < len(frame):
                        self._send(connection, frame[num_sent:], b"")
                    return
            message, rows = self._respond(connection, request)
        except ClosedError:
            self._close(connection)
        except ServingError as error:
            tracing.current().fail(error)
            self._refuse(connection, header, error)
        except DecodeError as error:
            self._refuse(connection, header, InvalidRequestError(f"the message of the frame cannot be read: {error}"))
        except Exception:  # whatever it is, the client gets an answer and the log the traceback
            logger.exception("request %d failed", header.number)
            self._refuse(connection, header, ServingError("internal error; see the server's log"))
        else:
            self._metrics.count_request("OK")
            self._send(connection, pack_header(_ANSWER, len(message), len(rows), header.number) + message, rows)

    def _check(self, connection: Connection, request: Request) -> None:
        header = request.header
        waited_us = (time.monotonic() - request.arrived) * 1e6
        if header.timeout_us and waited_us > header.timeout_us:
            raise DeadlineExceededError(f"the request waited {waited_us:.0f} us, its client allows {header.timeout_us}")
        if not connection.authenticated and header.kind is not Kind.AUTHENTICATE:
            raise UnauthenticatedError("this lookup server asks for a token: give the client one")

    def _respond(self, connection: Connection, request: Request) -> tuple[bytes, Buffer]:
        if request.header.kind is Kind.AUTHENTICATE:
            return self._authenticate(connection, request.message), b""
        return self._handler(request.header.kind, request.message)

    def _authenticate(self, connection: Connection, message: Buffer) -> bytes:
        given = frames_pb2.Credentials.FromString(message).token
        token = self.token.token
        if token is not None and not compare_digest(given.encode(), token.encode()):
            raise UnauthenticatedError("this lookup server asks for a token: the one given is not its own")
        connection.authenticated = True
        return b""

    def _refuse(self, connection: Connection, header: Header, error: ServingError) -> None:
        self._metrics.count_request(error.code.name)
        message_text = brief(error)
        logger.info("request %.200r refused: %s: %s", error.request_id, error.code.name, message_text)
        loaded = error.loaded[-MAX_VERSIONS_TOLD:] if isinstance(error, VersionNotLoadedError) else ()
        message = frames_pb2.Refusal(code=error.code.name, message=message_text, loaded_versions=loaded).SerializeToString()
        self._send(connection, pack_header(Kind.REFUSAL, len(message), 0, header.number) + message, b"")

    def _send(self, connection: Connection, message: Buffer, rows: Buffer) -> None:
        if connection.is_sending():  # a refusal behind an answer that is not read: the client breaks the rules
            self._close(connection)
            return
        try:
            connection.send((message, rows) if rows else (message,))
            if connection.is_sending() and connection.stream.fileno() in self._connections:
                self._poll.modify(connection.stream.fileno(), _WRITE)
        except ClosedError:
            self._close(connection)

    def _sweep(self, now: float) -> None:
        """Close connections that stopped in the middle of a request or an answer, or have not brought their token."""
        num_bytes = 0
        for connection in list(self._connections.values()):
            since = connection.since or (0.0 if connection.authenticated else connection.used_at)
            num_bytes += connection.reserved_bytes
            if since and now - since > self._config.stall_timeout_s:
                logger.info("closed a connection that stood still for %g s", now - since)
                self._metrics.count_request(UnavailableError.code.name)
                self._close(connection)
        while num_bytes > _MOST_HALF_BYTES:
            largest = max(self._connections.values(), key=lambda connection: connection.reserved_bytes)
            num_bytes -= largest.reserved_bytes
            logger.warning("closed a connection with a half request of %d bytes: all take too much", largest.reserved_bytes)
            self._metrics.count_request(OverloadedError.code.name)
            self._close(largest)

    def _make_room(self) -> bool:
        """Close a connection that nobody misses: one without a token, else the one that is idle for longest."""
        now = time.monotonic()
        for connection in itertools.islice(self._connections.values(), _MOST_LOOKED_AT):
            is_idle = not connection.since and now - connection.used_at > _IDLE_S
            if is_idle or (not connection.authenticated and now - connection.used_at > _STRANGER_S):
                self._close(connection)
                return True
        return False

    def _close(self, connection: Connection) -> None:
        if self._connections.pop(connection.stream.fileno(), None) is not None:
            connection.stream.close()  # which takes it out of the poll as well
