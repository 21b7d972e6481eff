"""A lookup server over frames, for asyncio: one connection a request under way, kept for the next."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from multifacet.serving.addresses import Address
from multifacet.serving.client.aio.lookups import AsyncLookupConnection
from multifacet.serving.errors import BrokenAnswerError, DeadlineExceededError, UnavailableError, from_status
from multifacet.serving.fleet import FRAMED
from multifacet.serving.forks import let_go, renew_in_children
from multifacet.serving.protocol import frames_pb2, lookup_pb2
from multifacet.serving.secrets import TokenFile
from multifacet.serving.tracing import traceparent
from multifacet.serving.wire.answers import Asked, LookupAnswer, Shard, read_framed_lookup
from multifacet.serving.wire.frames import HEADER_BYTES, Header, Kind, check_number, pack_header, request_numbers
from multifacet.serving.wire.packing import pack_lookup

_MAX_IDLE = 64


class _Stream:
    """A connection."""

    __slots__ = ("reader", "writer")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader = reader
        self.writer = writer

    def close(self) -> None:
        self.writer.transport.abort()

    def fileno(self) -> int:
        connected = self.writer.get_extra_info("socket")
        return -1 if connected is None else int(connected.fileno())


class AsyncFramedLookup(AsyncLookupConnection):
    """A lookup server over its framed address.

    Args:
        address: ``framed:host:port`` or ``framed:unix:/path``.
        timeout_s: Deadline of a request that names none, in seconds.
        token: What the server asks for.
        max_answer_bytes: Longest answer accepted, in bytes; -1 for no limit.
        shard: Which part of a split release the server must hold.
    """

    def __init__(self, address: str, *, timeout_s: float, token: TokenFile, max_answer_bytes: int, shard: Shard):
        self.address = address
        self.timeout_s = timeout_s
        self._target = Address.parse(address.removeprefix(FRAMED))
        self._token = token
        self._max_answer_bytes = max_answer_bytes
        self._shard = shard
        self._inherited: list[_Stream] = []
        self._closed = False
        self._start_anew()
        renew_in_children(self)

    def renew(self) -> None:
        """Leave the parent's connections to it; called in a process that was forked."""
        # They are kept: what ends them would reach into the parent's event loop.
        self._inherited += (*self._idle, *self._busy)
        let_go([stream.fileno() for stream in (*self._idle, *self._busy)])
        self._start_anew()

    def _start_anew(self) -> None:
        self._idle: list[_Stream] = []
        self._busy: set[_Stream] = set()
        self._numbers = request_numbers()

    async def lookup(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> LookupAnswer:
        """As `AsyncLookupConnection`."""
        message, rows = await self._ask(Kind.LOOKUP, pack_lookup(version, ids, request_id, traceparent()), timeout_s)
        asked = Asked.of(version, self._shard, ids)
        return read_framed_lookup(lookup_pb2.LookupAnswer.FromString(message), rows, asked, self.server)

    async def describe(self, *, timeout_s: float | None = None) -> lookup_pb2.LookupDescription:
        """What is loaded, and the limits."""
        message, _ = await self._ask(Kind.DESCRIBE, (lookup_pb2.LookupDescribeRequest().SerializeToString(),), timeout_s)
        description: lookup_pb2.LookupDescription = lookup_pb2.LookupDescription.FromString(message)
        return description

    async def close(self) -> None:
        """Close the connections; requests under way fail."""
        self._closed = True
        for stream in (*self._idle, *self._busy):
            stream.close()
        self._idle.clear()

    async def _ask(
        self, kind: Kind, message: Sequence[bytes | memoryview], timeout_s: float | None
    ) -> tuple[bytes, npt.NDArray[np.uint8]]:
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                while True:
                    stream, may_be_stale = await self._take(deadline)
                    answer = await self._exchange(stream, kind, message, deadline, may_be_stale=may_be_stale)
                    if answer is not None:
                        return answer
        except TimeoutError as error:
            raise DeadlineExceededError(f"{self.server}: no answer by the deadline") from error

    async def _take(self, deadline: float) -> tuple[_Stream, bool]:
        """A connection, and whether it was used before; it may have been closed by the server meanwhile."""
        if self._closed:
            raise UnavailableError(f"{self.server}: this client is closed")
        if self._idle:
            return self._idle.pop(), True
        target = self._target
        try:
            if target.unix_path is not None:
                reader, writer = await asyncio.open_unix_connection(target.unix_path)
            else:
                reader, writer = await asyncio.open_connection(target.host, target.port)
        except OSError as error:
            raise UnavailableError(f"{self.server}: {error}") from error
        stream = _Stream(reader, writer)
        token = self._token.token
        if token is not None:
            credentials = frames_pb2.Credentials(token=token).SerializeToString()
            await self._exchange(stream, Kind.AUTHENTICATE, (credentials,), deadline, may_be_stale=False, keep=True)
        return stream, False

    async def _exchange(
        self,
        stream: _Stream,
        kind: Kind,
        message: Sequence[bytes | memoryview],
        deadline: float,
        *,
        may_be_stale: bool,
        keep: bool = False,
    ) -> tuple[bytes, npt.NDArray[np.uint8]] | None:
        """One request and its answer; None if an old connection turns out to be closed, so that it must be asked anew."""
        number = next(self._numbers)
        timeout_us = max(1, math.ceil((deadline - time.monotonic()) * 1e6))
        whole = False
        self._busy.add(stream)
        try:
            stream.writer.writelines((pack_header(kind, sum(map(len, message)), 0, number, timeout_us), *message))
            await stream.writer.drain()
            packed = await stream.reader.readexactly(HEADER_BYTES)
            header = self._checked(Header.unpack(packed, requests=False), number)
            content = await stream.reader.readexactly(header.message_bytes)
            rows = await stream.reader.readexactly(header.rows_bytes)
            whole = not (keep and header.kind is Kind.REFUSAL)
        except asyncio.IncompleteReadError as error:
            if may_be_stale and not error.partial:
                return None
            raise UnavailableError(f"{self.server}: the connection broke: it was closed before the answer was whole") from error
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            if may_be_stale:
                return None
            raise UnavailableError(f"{self.server}: the connection broke: {error}") from error
        finally:
            self._busy.discard(stream)
            if not whole or self._closed or (not keep and len(self._idle) >= _MAX_IDLE):
                stream.close()
            elif not keep:
                self._idle.append(stream)
        if header.kind is Kind.REFUSAL:
            refusal = frames_pb2.Refusal.FromString(content)
            raise from_status(refusal.code, refusal.message, refusal.loaded_versions, self.server)
        return content, np.frombuffer(rows, np.uint8)

    def _checked(self, header: Header, number: int) -> Header:
        check_number(header, number, self.server)
        length = HEADER_BYTES + header.message_bytes + header.rows_bytes
        if 0 <= self._max_answer_bytes < length:
            raise BrokenAnswerError(
                f"{self.server}: its answer has {length} bytes, at most {self._max_answer_bytes} are accepted"
            )
        return header
