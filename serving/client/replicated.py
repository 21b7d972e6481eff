"""A client of several lookup servers that hold the same rows: balanced, retried, and hedged if asked to."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy.typing as npt

from multifacet.serving.client.lookups import LookupConnection
from multifacet.serving.client.replica_group import ReplicaGroup, common_description
from multifacet.serving.client.replicated_pending import ReplicatedPendingLookup
from multifacet.serving.errors import DeadlineExceededError, ServingError, UnavailableError
from multifacet.serving.policy import ReplicaPolicy
from multifacet.serving.protocol import lookup_pb2


class ReplicatedLookup(ReplicaGroup[LookupConnection], LookupConnection):
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
        super().__init__(connections, policy or ReplicaPolicy(), seed=seed)
        self.address = ",".join(connection.address for connection in connections)
        self.timeout_s = timeout_s

    @property
    def server(self) -> str:
        """How messages name the other end."""
        return f"lookup servers {self.address}"

    def start(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> ReplicatedPendingLookup:
        """Send a lookup and return at once; see `lookup`. It must be waited for or cancelled."""
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        return ReplicatedPendingLookup(self, self.server, version, ids, deadline, request_id)

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
        return common_description(descriptions)

    def close(self) -> None:
        """Close the connections; requests under way are cancelled."""
        self.replicas.close()
        for replica in self.replicas.all:
            replica.connection.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address}, timeout_s={self.timeout_s}, hedges={self.policy.hedges})"
