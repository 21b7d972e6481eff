"""The servers that hold the same rows: which of them to ask next, and which to leave out until it is well again."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, Generic, Protocol, TypeVar

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

_LACKS_S = 1.0
PROBE_TIMEOUT_S = 1.0


class Replica(Generic[Client]):
    """One server, and what is known about it; `Replicas` guards its fields.

    Attributes:
        connection: Its client.
        num_in_flight: Requests of this client that it has not answered.
        num_late: How many it answered too late, in a row.
        is_out: Whether it is left out.
    """

    __slots__ = ("_lacks", "connection", "is_out", "num_in_flight", "num_late", "probe_at", "probe_wait_s")

    def __init__(self, connection: Client):
        self.connection = connection
        self.forget()

    def forget(self) -> None:
        """Know nothing about it."""
        self.num_in_flight = 0
        self.num_late = 0
        self.is_out = False
        self.probe_at = 0.0
        self.probe_wait_s = 0.0
        self._lacks: dict[str, float] = {}

    def note_missing(self, version: str) -> None:
        """It refused a version: for a second others are asked for it first."""
        self._lacks = {version: until for version, until in self._lacks.items() if until > time.monotonic()}
        self._lacks[version] = time.monotonic() + _LACKS_S

    def is_good(self, version: str) -> bool:
        """Whether it should answer a request of this version."""
        return not self.is_out and not (self._lacks and self._lacks.get(version, 0.0) > time.monotonic())

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
    """

    def __init__(
        self,
        connections: Sequence[Client],
        policy: ReplicaPolicy,
        *,
        seed: int | None = None,
        is_well: Callable[[Client], bool] | None = None,
    ):
        self.all = tuple(Replica(connection) for connection in connections)
        self._is_well = is_well or answers
        self.counts: Counter[str] = Counter({"ejections": 0, "readmissions": 0})
        self._policy = policy
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
            good = [replica for replica in others if replica.is_good(version)]
            choice = good or ([] if good_only else others)
            if not choice:
                return None
            chosen = choice[0]
            if len(choice) > 1:
                chosen, second = self._random.sample(choice, 2)
                if second.num_in_flight < chosen.num_in_flight:
                    chosen = second
            chosen.num_in_flight += 1
            return chosen

    def give_back(self, replica: Replica[Client], *, late: bool | None = None) -> None:
        """Count a request as ended.

        Args:
            replica: Who had it.
            late: Whether it came too late; None says nothing about the server.
        """
        with self._changed:
            replica.num_in_flight = max(0, replica.num_in_flight - 1)
            if late is None:
                return
            replica.num_late = replica.num_late + 1 if late else 0
            if late and replica.num_late >= self._policy.eject_after:
                self._leave_out(replica, f"its last {replica.num_late} answers came too late")
            elif not late and not replica.is_out:
                replica.probe_wait_s = 0.0

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
                replica.note_missing(version)

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
        replica.is_out = True
        self.counts["ejections"] += 1
        self._put_off(replica)
        logger.warning("%s is left out: %s", replica.connection.server, reason)
        if self._prober is None:
            self._prober = threading.Thread(target=self._probe, name="replica-probe", daemon=True)
            self._prober.start()
        self._changed.notify_all()

    def _put_off(self, replica: Replica[Client]) -> None:
        policy = self._policy
        replica.probe_wait_s = min(policy.probe_at_most_s, max(policy.probe_after_s, 2 * replica.probe_wait_s))
        replica.probe_at = time.monotonic() + replica.probe_wait_s

    def _probe(self) -> None:
        """Ask servers that are out until none is."""
        while True:
            with self._changed:
                out = [replica for replica in self.all if replica.is_out]
                if self._closed or not out:
                    self._prober = None
                    return
                first = min(out, key=_probe_at)
                wait_s = first.probe_at - time.monotonic()
                if wait_s > 0:
                    self._changed.wait(wait_s)
                    continue
            well = self._is_well(first.connection)
            with self._changed:
                if not well:
                    self._put_off(first)
                    continue
                first.is_out = False
                first.num_late = 0
                self.counts["readmissions"] += 1
            logger.info("%s is well again", first.connection.server)


def _probe_at(replica: Replica[Any]) -> float:
    return replica.probe_at


def answers(connection: _Described) -> bool:
    """Whether a server answers; a refusal is an answer, unless it is one of being away or having too much to do."""
    try:
        connection.describe(timeout_s=PROBE_TIMEOUT_S)
    except (UnavailableError, DeadlineExceededError, OverloadedError):
        return False
    except ServingError:
        return True
    return True
