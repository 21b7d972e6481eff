"""What every client of a lookup server can do in an event loop, whatever carries its requests."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy.typing as npt

from multifacet.serving.errors import DeadlineExceededError, UnavailableError
from multifacet.serving.protocol import lookup_pb2
from multifacet.serving.wire.answers import LookupAnswer


class AsyncLookupConnection(ABC):
    """The asynchronous counterpart of `serving.client.lookups.LookupConnection`: the same answers and errors, one event loop.

    A lookup is started by making a task of it, and given up by cancelling that.

    Attributes:
        address: Where the server is.
        timeout_s: Deadline of a request that names none, in seconds.
    """

    address: str
    timeout_s: float

    @property
    def server(self) -> str:
        """How messages name the other end."""
        return f"lookup server {self.address}"

    @abstractmethod
    async def lookup(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> LookupAnswer:
        """Rows of every table that the given features feed; arguments and errors as `LookupConnection.lookup`."""

    @abstractmethod
    async def describe(self, *, timeout_s: float | None = None) -> lookup_pb2.LookupDescription:
        """What is loaded, and the limits."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connections; requests under way are cancelled."""

    def counters(self) -> Mapping[str, int]:
        """What happened between several servers, by name, such as retries; nothing for one server."""
        return {}

    async def wait_for_versions(self, versions: Sequence[str], *, timeout_s: float) -> lookup_pb2.LookupDescription:
        """Wait until the server is up and has all of these versions loaded.

        Raises:
            UnavailableError: It cannot be reached, or lacks a version, until the end of the wait; says which.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                description = await self.describe(timeout_s=min(1.0, timeout_s))
            except (UnavailableError, DeadlineExceededError) as error:
                trouble = str(error)
            else:
                loaded = [entry.version for entry in description.versions]
                missing = [version for version in versions if version not in loaded]
                if not missing:
                    return description
                trouble = f"it has not loaded {', '.join(missing)}; loaded: {', '.join(loaded)}"
            if time.monotonic() >= deadline:
                raise UnavailableError(f"{self.server} was not ready within {timeout_s:g} s: {trouble}")
            await asyncio.sleep(0.05)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address}, timeout_s={self.timeout_s})"
