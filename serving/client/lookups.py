"""What every client of a lookup server can do, whatever carries its requests."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

import numpy.typing as npt

from multifacet.serving.errors import DeadlineExceededError, UnavailableError
from multifacet.serving.protocol import lookup_pb2
from multifacet.serving.tracing import client_span, tell_lookup
from multifacet.serving.wire.answers import LookupAnswer


class PendingLookup(Protocol):
    """A lookup under way.

    Attributes:
        elapsed_us: Microseconds from sending to reading the answer; 0 until it is read.
    """

    elapsed_us: int

    def cancel(self) -> None:
        """Give it up; safe from any thread."""

    def result(self) -> LookupAnswer:
        """Wait for the answer.

        Raises:
            ServingError: As `LookupConnection.lookup`.
        """
        ...


class WatchedLookup(PendingLookup, Protocol):
    """A lookup under way that can be waited for together with others; see `serving.client.waiting.Watch`."""

    def descriptors(self) -> Collection[int]:
        """What to wait for: `advance` has something to do once one of these is readable."""
        ...

    def due(self) -> float:
        """When `advance` has something to do all the same, on the clock of `time.monotonic`."""
        ...

    def advance(self, ready: Collection[int]) -> bool:
        """Do what can be done now.

        Args:
            ready: Descriptors that are readable.

        Returns:
            Whether `result` would no longer wait for the network.
        """
        ...


class LookupConnection(ABC):
    """A client of one lookup server, or of several that hold the same rows, or parts of them.

    Attributes:
        address: Where the server is.
        timeout_s: Deadline of a request that names none, in seconds.
    """

    address: str
    timeout_s: float

    @property
    @abstractmethod
    def server(self) -> str:
        """How messages name the other end."""

    @abstractmethod
    def start(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> PendingLookup:
        """Send a lookup and return at once; see `lookup`."""

    @abstractmethod
    def describe(self, *, timeout_s: float | None = None) -> lookup_pb2.LookupDescription:
        """What is loaded, and the limits."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections; requests under way are cancelled."""

    def counters(self) -> Mapping[str, int]:
        """What happened between several servers, by name, such as retries; nothing for one server."""
        return {}

    def lookup(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> LookupAnswer:
        """Rows of every table that the given features feed.

        Args:
            version: Version of the release; it must be loaded.
            ids: External ids [n] by feature, int64 or strings; unknown ids get the out-of-vocabulary row.
            timeout_s: Deadline in seconds.
            request_id: For the server's log.

        Raises:
            InvalidRequestError: Unknown feature, ids of the wrong type, too many.
            VersionNotLoadedError: The version is not loaded; `loaded` has those that are.
            UnauthenticatedError: The server asks for another token.
            UnavailableError: The server cannot be reached.
            DeadlineExceededError: It took longer than the deadline.
            OverloadedError: Too many requests in hand, or the message is too large.
        """
        with client_span("lookup", request__id=request_id, version=version, server_address=self.address) as hop:
            answer = self.start(version, ids, timeout_s=timeout_s, request_id=request_id).result()
            tell_lookup(hop, answer)
            return answer

    def wait_for_versions(
        self, versions: Sequence[str], *, timeout_s: float, stopped: Callable[[], bool] = lambda: False
    ) -> lookup_pb2.LookupDescription | None:
        """Wait until the server is up and has all of these versions loaded.

        Args:
            versions: Versions to wait for.
            timeout_s: Longest wait in seconds.
            stopped: Ends the wait early when it says so.

        Returns:
            The server's description; None if `stopped`.

        Raises:
            UnavailableError: It cannot be reached, or lacks a version, until the end of the wait; says which.
        """
        deadline = time.monotonic() + timeout_s
        while not stopped():
            try:
                description = self.describe(timeout_s=min(1.0, timeout_s))
            except (UnavailableError, DeadlineExceededError) as error:
                trouble = str(error)
            else:
                loaded = [entry.version for entry in description.versions]
                missing = [version for version in versions if version not in loaded]
                if not missing:
                    return description
                trouble = f"it has not loaded {', '.join(missing)}; loaded: {', '.join(loaded)}"
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"{self.server} was not ready within {timeout_s:g} s: {trouble}. Start it with the same release, "
                    "or mend the address."
                )
            time.sleep(0.05)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
