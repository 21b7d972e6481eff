"""What clients of several servers that hold the same keep count of, whether they are synchronous or not."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Generic

from multifacet.serving.client.balancing import Client, Replica, Replicas
from multifacet.serving.client.budget import RetryBudget
from multifacet.serving.client.latency_window import LatencyWindow
from multifacet.serving.errors import (
    DeadlineExceededError,
    OverloadedError,
    ServingError,
    UnavailableError,
    VersionNotLoadedError,
)
from multifacet.serving.forks import renew_in_children
from multifacet.serving.policy import ReplicaPolicy
from multifacet.serving.protocol import lookup_pb2

ELSEWHERE = (UnavailableError, OverloadedError, DeadlineExceededError, VersionNotLoadedError)
"""What another server may answer better. The version stays the one that was asked for."""
LEAST_S = 1e-3


class ReplicaGroup(Generic[Client]):
    """Servers, the budget of asking twice, and how long a request may take before it is hedged.

    Args:
        connections: Clients of the servers.
        policy: Retries, hedges and ejection.
        seed: Of the choices among servers; None takes one from the system.
        is_well: Asks a server that is left out; None calls its client's `describe`.
        clock: Seconds that never run backwards; deadlines are on it.
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
        self.policy = policy
        self._clock = clock
        self.replicas: Replicas[Client] = Replicas(connections, policy, seed=seed, is_well=is_well, clock=clock)
        self.budget = RetryBudget(ratio=policy.retry_ratio, reserve=policy.retry_reserve)
        self._counts: Counter[str] = Counter({"retries": 0, "hedges": 0, "hedges_won": 0, "retries_refused": 0})
        self._counting = threading.Lock()
        self.window = LatencyWindow(policy.hedge_quantile) if policy.hedge_quantile is not None else None
        renew_in_children(self)

    def renew(self) -> None:
        """Take new locks; called in a process that was forked."""
        self._counting = threading.Lock()

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

    def may_ask_another(self, error: ServingError, num_tried: int, deadline: float) -> bool:
        """Whether a request that failed goes to another server; that is counted, and taken from the budget.

        Args:
            error: Why the last server did not do.
            num_tried: How many servers were asked.
            deadline: The request's, on this group's clock.
        """
        if not isinstance(error, ELSEWHERE) or num_tried >= min(self.policy.max_attempts, len(self.replicas.all)):
            return False
        if self._clock() + LEAST_S >= deadline:
            return False
        if not self.budget.spend():
            self.count("retries_refused")
            return False
        self.count("retries")
        return True

    def attempt_s(self, num_tried: int, deadline: float) -> float:
        """How long the next server may take: half of what is left as long as another one may be asked after it.

        Else a server that says nothing would have the whole deadline, and none would be left for another. Without budget there
        will be no other, and it gets what is left.

        Args:
            num_tried: How many servers were asked before.
            deadline: The request's, on this group's clock.
        """
        left_s = deadline - self._clock()
        is_last = num_tried + 1 >= min(self.policy.max_attempts, len(self.replicas.all))
        return max(LEAST_S, left_s if is_last or self.policy.hedges or not self.budget.has() else left_s / 2)

    def take_hedge(self, version: str, tried: Sequence[Replica[Client]]) -> Replica[Client] | None:
        """A second server for a request that takes long; None if there is no good one, or no budget."""
        if len(tried) >= self.policy.max_attempts:
            return None
        replica = self.replicas.take(version, tried, good_only=True)
        if replica is None:
            return None
        if not self.budget.spend():
            self.replicas.give_back(replica)
            self.count("retries_refused")
            return None
        self.count("hedges")
        return replica


def common_description(descriptions: Sequence[lookup_pb2.LookupDescription]) -> lookup_pb2.LookupDescription:
    """The versions that all of several servers hold, and the least of their limits; of tables, what the first one says."""
    held = [{entry.version for entry in description.versions} for description in descriptions]
    return lookup_pb2.LookupDescription(
        versions=[entry for entry in descriptions[0].versions if all(entry.version in versions for versions in held)],
        max_ids_per_request=min(description.max_ids_per_request for description in descriptions),
        current_version=common_current(descriptions),
        partly_held=sorted(set().union(*held) - set.intersection(*held)),
    )


def common_current(descriptions: Sequence[lookup_pb2.LookupDescription]) -> str:
    """The version that several servers all call the current one; empty if they do not agree."""
    current = {description.current_version for description in descriptions}
    return current.pop() if len(current) == 1 else ""
