"""Several lookup servers that hold the same, for asyncio: balanced, retried, and hedged if asked to."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy.typing as npt

from multifacet.serving.client.aio.lookups import AsyncLookupConnection
from multifacet.serving.client.balancing import PROBE_TIMEOUT_S, Replica
from multifacet.serving.client.replica_group import ELSEWHERE, ReplicaGroup, common_description
from multifacet.serving.errors import DeadlineExceededError, OverloadedError, ServingError, UnavailableError
from multifacet.serving.policy import ReplicaPolicy
from multifacet.serving.protocol import lookup_pb2
from multifacet.serving.wire.answers import LookupAnswer


class AsyncReplicatedLookup(ReplicaGroup[AsyncLookupConnection], AsyncLookupConnection):
    """Asks whichever of several servers should answer soonest; as `ReplicatedLookup`, in an event loop.

    Args:
        connections: Clients of the servers; they belong to this one from now on.
        policy: Retries, hedges and ejection.
        timeout_s: Deadline of a request that names none, in seconds.
        seed: Of the choices among servers; None takes one from the system.
    """

    def __init__(
        self,
        connections: Sequence[AsyncLookupConnection],
        *,
        policy: ReplicaPolicy | None = None,
        timeout_s: float = 1.0,
        seed: int | None = None,
    ):
        self._loop = asyncio.get_running_loop()
        super().__init__(connections, policy or ReplicaPolicy(), seed=seed, is_well=self._answers)
        self.address = ",".join(connection.address for connection in connections)
        self.timeout_s = timeout_s

    @property
    def server(self) -> str:
        """How messages name the other end."""
        return f"lookup servers {self.address}"

    async def lookup(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> LookupAnswer:
        """As `AsyncLookupConnection`: the last server's error if none answers."""
        self._loop = asyncio.get_running_loop()  # a forked process has another
        request = _Request(
            self, version, ids, time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s), request_id
        )
        self.budget.earn()
        try:
            return await request.run()
        finally:
            request.end()

    async def describe(self, *, timeout_s: float | None = None) -> lookup_pb2.LookupDescription:
        """What all servers that can be reached have loaded, and the least of their limits."""
        asked = (replica.connection.describe(timeout_s=timeout_s) for replica in self.replicas.good())
        descriptions = []
        trouble: BaseException | None = None
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, UnavailableError | DeadlineExceededError):
                trouble = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                descriptions.append(answer)
        if not descriptions:
            raise trouble if trouble is not None else UnavailableError(f"{self.server}: there are none")
        return common_description(descriptions)

    async def close(self) -> None:
        """Close the connections; requests under way are cancelled."""
        await asyncio.to_thread(self.replicas.close)  # the thread that probes may be waiting for this loop
        for replica in self.replicas.all:
            await replica.connection.close()

    def _answers(self, connection: AsyncLookupConnection) -> bool:
        """Whether a server answers; called by the thread that probes."""
        try:
            asked = asyncio.run_coroutine_threadsafe(connection.describe(timeout_s=PROBE_TIMEOUT_S), self._loop)
        except RuntimeError:  # the loop was closed without this client
            return False
        try:
            asked.result(2 * PROBE_TIMEOUT_S)
        except (UnavailableError, DeadlineExceededError, OverloadedError, TimeoutError, concurrent.futures.CancelledError):
            asked.cancel()
            return False
        except ServingError:
            return True
        return True


class _Attempt(NamedTuple):
    """One server's part in a lookup."""

    replica: Replica[AsyncLookupConnection]
    started: float
    is_hedge: bool


class _Request:
    """One lookup, at one server or at two."""

    def __init__(
        self,
        group: AsyncReplicatedLookup,
        version: str,
        ids: Mapping[str, npt.ArrayLike],
        deadline: float,
        request_id: str,
    ):
        self._group = group
        self._version = version
        self._ids = ids
        self._deadline = deadline
        self._request_id = request_id
        self._tried: list[Replica[AsyncLookupConnection]] = []
        self._attempts: dict[asyncio.Task[LookupAnswer], _Attempt] = {}
        self._is_answered = False

    async def run(self) -> LookupAnswer:
        """The first answer, or the last error."""
        hedge_at = time.monotonic() + self._group.hedge_after_s()
        first = self._group.replicas.take(self._version)
        if first is None:
            raise UnavailableError(f"{self._group.server}: there are none")
        self._ask(first, is_hedge=False)
        while True:
            wait_s = None if math.isinf(hedge_at) else max(0.0, hedge_at - time.monotonic())
            done, _ = await asyncio.wait(self._attempts, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                attempt = self._attempts.pop(task)
                error = task.exception()
                if error is None:
                    self._is_answered = True
                    self._group.replicas.give_back(attempt.replica, late=False)
                    self._group.learn(time.monotonic() - attempt.started)
                    return task.result()
                self._fail_over(attempt, error)
            if time.monotonic() >= hedge_at:
                hedge_at = math.inf
                second = self._group.take_hedge(self._version, self._tried)
                if second is not None:
                    self._ask(second, is_hedge=True)

    def end(self) -> None:
        """Give up whatever is still at work."""
        now = time.monotonic()
        for task, attempt in self._attempts.items():
            task.cancel()
            lost = self._is_answered and not attempt.is_hedge
            self._group.replicas.give_back(attempt.replica, late=True if lost else None)
            if lost:
                self._group.count("hedges_won")
                self._group.learn(now - attempt.started)

    def _ask(self, replica: Replica[AsyncLookupConnection], *, is_hedge: bool) -> None:
        timeout_s = self._group.attempt_s(len(self._tried), self._deadline)
        self._tried.append(replica)
        started = time.monotonic()
        asked = replica.connection.lookup(self._version, self._ids, timeout_s=timeout_s, request_id=self._request_id)
        self._attempts[asyncio.create_task(asked)] = _Attempt(replica, started, is_hedge)

    def _fail_over(self, attempt: _Attempt, error: BaseException) -> None:
        """Ask another server if none is at work, or raise the error."""
        group = self._group
        if not isinstance(error, ServingError):
            group.replicas.give_back(attempt.replica)
            raise error
        group.replicas.give_back_failed(attempt.replica, self._version, error)
        if self._attempts and isinstance(error, ELSEWHERE):
            return
        other = None
        if group.may_ask_another(error, len(self._tried), self._deadline):
            other = group.replicas.take(self._version, self._tried)
        if other is None:
            raise error
        self._ask(other, is_hedge=False)
