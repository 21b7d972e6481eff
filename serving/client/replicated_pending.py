"""A lookup under way at one of several servers that hold the same, or at two."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy.typing as npt

from multifacet.serving.client.replica_group import ELSEWHERE, ReplicaGroup
from multifacet.serving.client.waiting import Watch, descriptor_of
from multifacet.serving.errors import ServingError, UnavailableError
from multifacet.serving.forks import num_forks, refuse_inherited
from multifacet.serving.wire.answers import LookupAnswer

if TYPE_CHECKING:
    from multifacet.serving.client.balancing import Replica
    from multifacet.serving.client.lookups import LookupConnection, PendingLookup


class _Attempt:
    """One server's part in a lookup."""

    __slots__ = ("descriptor", "is_hedge", "pending", "replica", "started")

    def __init__(
        self, replica: Replica[LookupConnection], pending: PendingLookup, started: float, *, is_hedge: bool, watched: bool
    ):
        self.replica = replica
        self.pending = pending
        self.started = started
        self.is_hedge = is_hedge
        self.descriptor = descriptor_of(pending) if watched else -1


class ReplicatedPendingLookup:
    """A lookup under way at one server, or at two."""

    def __init__(
        self,
        owner: ReplicaGroup[LookupConnection],
        server: str,
        version: str,
        ids: Mapping[str, npt.ArrayLike],
        deadline: float,
        request_id: str,
    ):
        self.elapsed_us = 0
        """Microseconds from sending to reading the answer; 0 until it is read."""
        self._owner = owner
        self._server = server
        self._made_at = num_forks()
        self._version = version
        self._ids = ids
        self._deadline = deadline
        self._request_id = request_id
        self._started = time.monotonic()
        self._tried: list[Replica[LookupConnection]] = []
        self._attempts: list[_Attempt] = []
        self._answer: LookupAnswer | None = None
        self._failure: ServingError | None = None
        self._watch = Watch(self._give_up)
        self._lock = threading.Lock()
        self._hedge_at = self._started + owner.hedge_after_s()
        owner.budget.earn()
        self._ask_others(None)
        if self._failure is not None:
            raise self._failure

    def cancel(self) -> None:
        """Give it up; safe from any thread."""
        if self._made_at == num_forks():
            self._watch.cancel()

    def result(self) -> LookupAnswer:
        """Wait for the answer.

        Raises:
            ServingError: As `LookupConnection.lookup`: the last server's error.
        """
        if self._answer is None and self._failure is None:
            refuse_inherited(self._made_at, self._server)
            if self._hedge_at < self._deadline:
                self._watch.wait((self,))
            else:
                self._wait_in_turn()
        if self._answer is not None:
            return self._answer
        raise self._failure or ServingError(f"{self._server}: CANCELLED: the lookup was given up")

    def descriptors(self) -> Collection[int]:
        """The answers of the servers that were asked."""
        return [attempt.descriptor for attempt in self._attempts]

    def due(self) -> float:
        """When to ask a second server, or the deadline."""
        return min(self._hedge_at, self._deadline)

    def advance(self, ready: Collection[int]) -> bool:
        """Read an answer that is there; ask another server if it is time, or if this one failed."""
        now = time.monotonic()
        for attempt in list(self._attempts):
            if attempt.descriptor in ready or now >= self._deadline:
                self._read(attempt)
                if self._answer is not None or self._failure is not None or self._watch.cancelled:
                    return True
        if now >= self._hedge_at:
            self._hedge_at = math.inf
            self._hedge()
        return False

    def _wait_in_turn(self) -> None:
        while attempts := list(self._attempts):
            self._read(attempts[0])

    def _read(self, attempt: _Attempt) -> None:
        """Read what a server answers; if it failed and no other is at work, ask the next one."""
        try:
            answer = attempt.pending.result()
        except ServingError as error:
            if self._forget(attempt):
                self._owner.replicas.give_back_failed(attempt.replica, self._version, error)
            if not self._attempts or not isinstance(error, ELSEWHERE):
                self._ask_others(error)
            return
        self._answer = answer
        now = time.monotonic()
        self.elapsed_us = int((now - self._started) * 1e6)
        if self._forget(attempt):
            self._owner.replicas.give_back(attempt.replica, late=False)
        self._owner.learn(now - attempt.started)
        for other in list(self._attempts):  # what it does is of no use any more
            self._lose(other, now - other.started)

    def _lose(self, attempt: _Attempt, elapsed_s: float) -> None:
        if not self._forget(attempt):
            return
        attempt.pending.cancel()
        if attempt.is_hedge:
            self._owner.replicas.give_back(attempt.replica)
            return
        self._owner.replicas.give_back(attempt.replica, late=True)
        self._owner.count("hedges_won")
        self._owner.learn(elapsed_s)  # at least this: without it the slow ones would never be seen

    def _ask_others(self, error: ServingError | None) -> None:
        """Send to a server, and to the next one while that fails at once; `_failure` is set if nobody is left.

        Args:
            error: Why the last one did not do; None before the first.
        """
        while error is None or self._may_retry(error):
            replica = self._owner.replicas.take(self._version, self._tried)
            if replica is None:  # each was tried
                error = error or UnavailableError(f"{self._server}: there are none")
                break
            error = self._ask(replica, is_hedge=False)
            if error is None:
                return
        self._failure = error
        self._give_up()  # another may be at work on what is refused

    def _hedge(self) -> None:
        replica = self._owner.take_hedge(self._version, self._tried)
        if replica is not None:
            self._ask(replica, is_hedge=True)  # if that fails at once, the first is still at work

    def _ask(self, replica: Replica[LookupConnection], *, is_hedge: bool) -> ServingError | None:
        """Send to a server; what went wrong."""
        timeout_s = self._owner.attempt_s(len(self._tried), self._deadline)
        self._tried.append(replica)
        started = time.monotonic()
        watched = self._owner.policy.hedges
        try:
            pending = replica.connection.start(self._version, self._ids, timeout_s=timeout_s, request_id=self._request_id)
        except ServingError as error:
            self._owner.replicas.give_back_failed(replica, self._version, error)
            return error
        except BaseException:
            self._owner.replicas.give_back(replica)
            raise
        with self._lock:
            self._attempts.append(_Attempt(replica, pending, started, is_hedge=is_hedge, watched=watched))
        if self._watch.cancelled:
            self._give_up()
        return None

    def _may_retry(self, error: ServingError) -> bool:
        return not self._watch.cancelled and self._owner.may_ask_another(error, len(self._tried), self._deadline)

    def _forget(self, attempt: _Attempt) -> bool:
        """Take an attempt off the list; whether it was there, so that one thread only counts its end."""
        with self._lock:
            if attempt in self._attempts:
                self._attempts.remove(attempt)
                return True
            return False

    def _give_up(self) -> None:
        for attempt in list(self._attempts):
            if self._forget(attempt):
                attempt.pending.cancel()
                self._owner.replicas.give_back(attempt.replica)
