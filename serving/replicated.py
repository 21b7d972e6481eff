"""A client of several lookup servers that hold the same rows: balanced, retried, and hedged if asked to."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy.typing as npt

from serving.budget import RetryBudget
from serving.errors import DeadlineExceededError, ServingError, UnavailableError
from serving.latency_window import LatencyWindow
from serving.lookups import LookupConnection
from serving.policy import ReplicaPolicy
from serving.protocol import lookup_pb2
from serving.replicas import Replicas
from serving.replicated_pending import ReplicatedPendingLookup


class ReplicatedLookup(LookupConnection):
    """Asks whichever of several servers should answer soonest; safe to share between threads.

    Lookups change nothing, so that asking twice does no harm. A request goes to another server when the first is away, has too
    much to do, or does not hold the version (never for another version), each server once, within its deadline and within
    the budget that all requests share. With hedging, a second server is asked as well once the first takes long: the first
    answer counts, and the other request is given up.

    Args:
        connections: Clients of the servers; they belong to this one from now on. With hedging each must be ``watched``.
        policy: Retries, hedges and ejection.
        timeout_s: Deadline of a request that names none, in seconds.
        seed: Of the choices among servers; None takes one from the system.
    """

    def __init__(
        self,
        connections: Sequence[LookupConnection],
        *,
        policy: ReplicaPolicy | None = None,
        timeout_s: float = 1.0,
        seed: int | None = None,
    ):
        self.policy = policy or ReplicaPolicy()
        self.address = ",".join(connection.address for connection in connections)
        self.timeout_s = timeout_s
        self.replicas = Replicas(connections, self.policy, seed=seed)
        self.budget = RetryBudget(ratio=self.policy.retry_ratio, reserve=self.policy.retry_reserve)
        self._counts: Counter[str] = Counter({"retries": 0, "hedges": 0, "hedges_won": 0, "retries_refused": 0})
        self._counting = threading.Lock()
        quantile = self.policy.hedge_quantile
        self.window = LatencyWindow(quantile) if quantile is not None else None

    @property
    def server(self) -> str:
        """How messages name the other end."""
        return f"lookup servers {self.address}"

    def start(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> ReplicatedPendingLookup:
        """Send a lookup and return at once; see `lookup`. It must be waited for or cancelled."""
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        return ReplicatedPendingLookup(self, version, ids, deadline, request_id)

    def describe(self, *, timeout_s: float | None = None) -> lookup_pb2.LookupDescription:
        """What all servers that can be reached have loaded, and the least of their limits.

        Raises:
            UnavailableError: None can be reached.
            ServingError: One refuses to say.
        """
        descriptions = []
        trouble: ServingError | None = None
        for replica in self.replicas.good():
            try:
                descriptions.append(replica.connection.describe(timeout_s=timeout_s))
            except (UnavailableError, DeadlineExceededError) as error:
                trouble = error
        if not descriptions:
            raise trouble if trouble is not None else UnavailableError(f"{self.server}: there are none")
        held = [{entry.version for entry in description.versions} for description in descriptions]
        return lookup_pb2.LookupDescription(
            versions=[entry for entry in descriptions[0].versions if all(entry.version in versions for versions in held)],
            max_ids_per_request=min(description.max_ids_per_request for description in descriptions),
        )

    def counters(self) -> Mapping[str, int]:
        """Retries, hedges, ejections: how many there were."""
        with self._counting:
            return {**self._counts, **self.replicas.counts}

    def count(self, event: str) -> None:
        """Count an event."""
        with self._counting:
            self._counts[event] += 1

    def learn(self, latency_s: float) -> None:
        """Take a latency into the running quantile, if there is one."""
        if self.window is not None:
            self.window.record(latency_s)

    def hedge_after_s(self) -> float:
        """How long to wait before a second server is asked; infinite without hedging."""
        if self.window is not None:
            return math.inf if self.window.value_s is None else self.window.value_s
        return math.inf if self.policy.hedge_after_s is None else self.policy.hedge_after_s

    def close(self) -> None:
        """Close the connections; requests under way are cancelled."""
        self.replicas.close()
        for replica in self.replicas.all:
            replica.connection.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address}, timeout_s={self.timeout_s}, hedges={self.policy.hedges})"
