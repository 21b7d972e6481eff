"""The servers that hold the same rows: which of them to ask next, and which to leave out until it is well again."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, Generic, Protocol, TypeVar

from multifacet.serving.core.replicas import Standing, choose, next_probe
from multifacet.serving.errors import (
    DeadlineExceededError,
    OverloadedError,
    ServingError,
    UnavailableError,
    VersionNotLoadedError,
)
from multifacet.serving.forks import renew_in_children
from multifacet.serving.policy import ReplicaPolicy

logger = logging.getLogger(__name__)


class _Described(Protocol):
    """A client of a server, synchronous or not."""

    address: str

    @property
    def server(self) -> str:
        """How messages name the server."""
        ...

    def describe(self, *, timeout_s: float | None = None) -> Any:
        """Ask it what it holds."""
        ...


Client = TypeVar("Client", bound=_Described)

PROBE_TIMEOUT_S = 1.0


class Replica(Standing, Generic[Client]):
    """One server, and what is known about it; `Replicas` guards its fields.

    Attributes:
        connection: Its client.
    """

    __slots__ = ("connection",)

    def __init__(self, connection: Client):
        self.connection = connection
        super().__init__()

    def __repr__(self) -> str:
        return f"Replica({self.connection.address}, in_flight={self.num_in_flight}, out={self.is_out})"


class Replicas(Generic[Client]):
    """Chooses among servers by the power of two choices: of two at random, the one with fewer requests in flight.

    It follows the load within a round trip, without a list of all servers to be kept in order, and without all clients running
    to the one that is idle. A server that cannot be reached, or answers too late several times in a row, is left out; a
    thread asks it for its description, ever more seldom, until it answers. Requests are never the probe. When all are out,
    all are asked as if none was.

    Args:
        connections: Clients of the servers.
        policy: When to leave one out.
        seed: Of the choices; None takes one from the system.
        is_well: Asks a server that is left out, on a thread of its own; None calls its client's `describe`.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self,
        connections: Sequence[Client],
        policy: ReplicaPolicy,
        *,
        seed: int | None = None,
        is_well: Callable[[Client], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.all = tuple(Replica(connection) for connection in connections)
        self._is_well = is_well or answers
        self.counts: Counter[str] = Counter({"ejections": 0, "readmissions": 0})
        self._policy = policy
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311  (a choice of servers, not a secret)
        self._seed = seed
        self._closed = False
        self._start_anew()
        renew_in_children(self)

    def renew(self) -> None:
        """Forget what the parent has in flight and thought of the servers; called in a process that was forked."""
        for replica in self.all:
            replica.forget()
        if self._seed is None:
            self._random.seed()
        self._start_anew()

    def _start_anew(self) -> None:
        self._changed = threading.Condition()
        self._prober: threading.Thread | None = None

    def take(self, version: str, tried: Collection[Replica[Client]] = (), *, good_only: bool = False) -> Replica[Client] | None:
        """Choose a server for a request, and count the request.

        Args:
            version: The version wanted.
            tried: Servers that were asked already.
            good_only: Whether to choose none rather than one that is left out.

        Returns:
            The server, to be given back with `give_back`; None if there is no other.
        """
        with self._changed:
            others = [replica for replica in self.all if replica not in tried] if tried else self.all
            chosen = choose(others, version, self._clock(), self._random.sample, good_only=good_only)
            if chosen is None:
                return None
            chosen.num_in_flight += 1
            return chosen

    def give_back(self, replica: Replica[Client], *, late: bool | None = None) -> None:
        """Count a request as ended.

        Args:
            replica: Who had it.
            late: Whether it came too late; None says nothing about the server.
        """
        with self._changed:
            if reason := replica.note_end(self._policy, late=late):
                self._leave_out(replica, reason)

    def give_back_failed(self, replica: Replica[Client], version: str, error: ServingError) -> None:
        """Count a request as failed, and update the server's health from the error."""
        if isinstance(error, DeadlineExceededError):
            self.give_back(replica, late=True)
            return
        self.give_back(replica)
        with self._changed:
            if isinstance(error, UnavailableError):
                self._leave_out(replica, str(error))
            elif isinstance(error, VersionNotLoadedError):
                replica.note_missing(version, self._clock())

    def good(self) -> list[Replica[Client]]:
        """Those that are not left out; all if all are."""
        with self._changed:
            return [replica for replica in self.all if not replica.is_out] or list(self.all)

    def close(self) -> None:
        """End the probes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            prober = self._prober
        if prober is not None:
            prober.join()

    def _leave_out(self, replica: Replica[Client], reason: str) -> None:
        if replica.is_out or self._closed:
            return
        replica.leave_out(self._policy, self._clock())
        self.counts["ejections"] += 1
        logger.warning("%s is left out: %s", replica.connection.server, reason)
        self._begin_probing()
        self._changed.notify_all()

    def _begin_probing(self) -> None:
        """See to it that servers that are out are asked until none is; the lock is held."""
        if self._prober is None:
            self._prober = threading.Thread(target=self._probe, name="replica-probe", daemon=True)
            self._prober.start()

    def _probe(self) -> None:
        """Ask servers that are out until none is."""
        while True:
            with self._changed:
                first = next_probe(self.all)
                if self._closed or first is None:
                    self._prober = None
                    return
                wait_s = first.probe_at - self._clock()
                if wait_s > 0:
                    self._changed.wait(wait_s)
                    continue
            self.note_probe(first, well=self._is_well(first.connection))

    def note_probe(self, replica: Replica[Client], *, well: bool) -> None:
        """A server that is left out was asked whether it is well."""
        with self._changed:
            replica.note_probe(self._policy, self._clock(), well=well)
            if not well:
                return
            self.counts["readmissions"] += 1
        logger.info("%s is well again", replica.connection.server)


def answers(connection: _Described) -> bool:
    """Whether a server answers; a refusal is an answer, unless it is one of being away or having too much to do."""
    try:
        connection.describe(timeout_s=PROBE_TIMEOUT_S)
    except (UnavailableError, DeadlineExceededError, OverloadedError):
        return False
    except ServingError:
        return True
    return True
