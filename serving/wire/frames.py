"""Frames: how a lookup travels over a bare stream socket, beside gRPC.

Python's gRPC spends two thirds of a millisecond on a call, more than the lookup takes. On one host, or one rack, the
same protobuf messages go in frames instead. A frame is a header of 32 bytes, a message, and rows::

    0   4 bytes   "MFF1"
    4   uint8     kind: 1 lookup, 2 describe, 3 authenticate; 16 answer, 17 refusal
    5   3 bytes   zero
    8   uint32    message_bytes: length of the protobuf message
    12  uint32    rows_bytes: length of the rows; 0 in a request
    16  uint64    number: chosen by the client, repeated by the server
    24  uint64    timeout_us: of a request, how long its client will wait; 0 for ever, and in an answer

A lookup's message may have the caller's W3C trace context (field 4, "traceparent"); a server that does not know it passes it
by. Numbers are little-endian. The rows of a lookup's answer stand behind the message, table by table in the message's order,
each table's padded with zeros to a multiple of 8 bytes, so that they are written and read in place. A connection carries one
request at a time: a client that has several under way opens several.
"""

from __future__ import annotations

import itertools
import secrets
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from multifacet.serving.errors import InvalidRequestError, OverloadedError

MAGIC: Final = b"MFF1"
HEADER_BYTES: Final = 32
ROW_ALIGNMENT: Final = 8
_HEADER: Final = struct.Struct("<4sB3sIIQQ")


class Kind(IntEnum):
    """What a frame holds."""

    LOOKUP = 1
    DESCRIBE = 2
    AUTHENTICATE = 3
    ANSWER = 16
    REFUSAL = 17


# Plain integers: an enumeration's members are hashed in Python, at each frame.
_REQUESTS: Final = frozenset({int(Kind.LOOKUP), int(Kind.DESCRIBE), int(Kind.AUTHENTICATE)})
_KINDS: Final = {int(kind): kind for kind in Kind}


class BrokenFrameError(InvalidRequestError):
    """The bytes are no frame, so that where the next one begins is not known: the connection must be closed."""


class OversizedFrameError(OverloadedError):
    """The frame is longer than is accepted; its length is known, so that it can be skipped."""


class Header(NamedTuple):
    """The header of one frame; see the module's text for the fields."""

    kind: Kind
    message_bytes: int
    rows_bytes: int
    number: int
    timeout_us: int = 0

    def pack(self) -> bytes:
        """The header's 32 bytes."""
        return pack_header(*self)

    @classmethod
    def unpack(cls, packed: bytes | bytearray | memoryview, *, requests: bool) -> Header:
        """Read a header; nothing is allocated by what it says.

        Args:
            packed: At least 32 bytes.
            requests: Whether a request is expected (or else an answer).

        Raises:
            BrokenFrameError: It is no header of that kind.
        """
        magic, kind, reserved, message_bytes, rows_bytes, number, timeout_us = _HEADER.unpack_from(packed)
        if magic != MAGIC or reserved != b"\0\0\0":
            raise BrokenFrameError(
                f"expected a frame of {MAGIC.decode()}, got the bytes {bytes(packed[:8])!r}: is this another protocol, or TLS?"
            )
        if kind not in _KINDS or (kind in _REQUESTS) != requests or (requests and rows_bytes):
            raise BrokenFrameError(f"a frame of kind {kind} with {rows_bytes} bytes of rows is not expected here")
        return cls(_KINDS[kind], message_bytes, rows_bytes, number, timeout_us)


def pack_header(kind: int, message_bytes: int, rows_bytes: int, number: int, timeout_us: int = 0) -> bytes:
    """A header's 32 bytes, without a `Header` in between."""
    return _HEADER.pack(MAGIC, kind, b"\0\0\0", message_bytes, rows_bytes, number, timeout_us)


def check_message_bytes(header: Header, limit: int) -> None:
    """Refuse a message before memory is taken for it.

    Raises:
        OversizedFrameError: It is longer than `limit` bytes.
    """
    if header.message_bytes > limit:
        raise OversizedFrameError(f"the message has {header.message_bytes} bytes, larger than max ({limit} bytes)")


def request_numbers() -> Iterator[int]:
    """Numbers for the requests of one client: from a random start, so that no two clients or processes use the same."""
    return itertools.count(1 + secrets.randbits(63))


def check_number(header: Header, asked: int, server: str) -> None:
    """Refuse the answer to another request. A refusal of number 0 is of the connection, whatever was asked.

    Raises:
        BrokenFrameError: Its number is not the one that was asked.
    """
    if header.number != asked and (header.number or header.kind is not Kind.REFUSAL):
        raise BrokenFrameError(f"{server}: it answered request {header.number}, asked was {asked}")


def padded(num_bytes: int) -> int:
    """The length that rows of `num_bytes` take in a frame.

    Example:
        >>> [padded(size) for size in (0, 1, 36, 72)]
        [0, 8, 40, 72]
    """
    return -(-num_bytes // ROW_ALIGNMENT) * ROW_ALIGNMENT
