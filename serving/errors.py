"""What can go wrong between a caller, a ranker and a lookup server: one class a kind, the same on both ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import grpc

_MAX_LETTERS, _MAX_ESCAPED = 4000, 480
MAX_VERSIONS_TOLD = 16
"""Most versions that a refusal lists: the latest."""
LOADED_VERSIONS_TRAILER = "loaded-versions"
"""Key of the trailing metadata that lists the loaded versions beside a FAILED_PRECONDITION, comma-separated."""


class ServingError(RuntimeError):
    """A request failed; its message says what was given, what was expected and the way out.

    Attributes:
        request_id: What the caller named the request, for the log; empty where it is not known.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    request_id = ""


class InvalidRequestError(ServingError):
    """The request itself is wrong, and would be wrong on every server and at every time."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class VersionNotLoadedError(ServingError):
    """The wanted version is not loaded; another one is never put in its place.

    Attributes:
        loaded: The versions that are loaded, the oldest first.
    """

    code = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(self, message: str, loaded: Sequence[str] = ()):
        super().__init__(message)
        self.loaded = tuple(loaded)


class UnauthenticatedError(ServingError):
    """The server asks for a token, and the client has none or another one."""

    code = grpc.StatusCode.UNAUTHENTICATED


class UnavailableError(ServingError):
    """The server cannot be reached, or is draining: the same request may succeed later or elsewhere."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceededError(ServingError):
    """The answer did not come within the time that the caller allowed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class OverloadedError(ServingError):
    """The server has as many requests in hand as it accepts, or a message is larger than it accepts."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class BrokenAnswerError(ServingError):
    """An answer contradicts the release: wrong version, tables, lengths, or a score that is not finite."""

    code = grpc.StatusCode.INTERNAL


def brief(error: ServingError) -> str:
    """An error's message, short enough for gRPC's metadata: 8 KiB, in which a letter that is escaped takes up to 12 bytes."""
    text = str(error)
    limit = _MAX_LETTERS if text.isascii() and text.isprintable() and "%" not in text else _MAX_ESCAPED
    return text if len(text) <= limit else f"{text[: limit // 2]} [...] {text[-limit // 2 :]}"


_KINDS: dict[grpc.StatusCode, type[ServingError]] = {
    kind.code: kind
    for kind in (
        ServingError,
        InvalidRequestError,
        VersionNotLoadedError,
        UnauthenticatedError,
        UnavailableError,
        DeadlineExceededError,
        OverloadedError,
    )
}
_CODES = {code.name: code for code in grpc.StatusCode}


def from_rpc_error(error: grpc.RpcError, server: str) -> ServingError:
    """The error that a server answered, as the class that the server raised.

    Args:
        error: What gRPC raised on the client's side.
        server: What to call the other end in the message, such as ``lookup server 127.0.0.1:7000``.
    """
    code = error.code()
    listed = ""
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        listed = str(dict(error.trailing_metadata() or ()).get(LOADED_VERSIONS_TRAILER, ""))
    return from_status(code.name, str(error.details()), [version for version in listed.split(",") if version], server)


def from_status(code: str, details: str, loaded: Sequence[str], server: str) -> ServingError:
    """The error of a status, as the class that the server raised.

    Args:
        code: Name of a gRPC status.
        details: The server's message.
        loaded: The versions that it said it has loaded.
        server: What to call the other end in the message.
    """
    kind = _KINDS.get(_CODES.get(code, grpc.StatusCode.UNKNOWN))
    if kind is None:
        return ServingError(f"{server}: {code}: {details}")
    message = f"{server}: {details}"
    return kind(message, loaded=loaded) if kind is VersionNotLoadedError else kind(message)
