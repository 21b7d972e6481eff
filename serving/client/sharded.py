"""A client of lookup servers that each hold a shard of a release: ids go to their shards, rows come back in the ids' order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy.typing as npt

from multifacet.serving.client.lookups import LookupConnection
from multifacet.serving.client.shard_set import ShardSet, as_whole, cut
from multifacet.serving.client.sharded_pending import ShardedPendingLookup
from multifacet.serving.errors import ServingError
from multifacet.serving.protocol import lookup_pb2
from multifacet.serving.wire.packing import as_ids


class ShardedLookup(LookupConnection):
    """Asks every shard for the rows of its ids, all at once; safe to share between threads.

    An answer is whole and of one version, or there is none: a shard that is away, does not hold the version, answers with
    another one or is not the shard that it should be fails the lookup, and the error says which shard it was.

    Args:
        shards: A client of each shard's servers, in the order of the shards' indices; they belong to this one from now on.
        timeout_s: Deadline of a request that names none, in seconds.
        hedges: Whether the shards' clients are `ReplicatedLookup` that hedge: all shards are then waited for at once, and not
            one after the other.
    """

    def __init__(self, shards: Sequence[LookupConnection], *, timeout_s: float = 1.0, hedges: bool = False):
        self.shards = tuple(shards)
        self.address = "|".join(shard.address for shard in self.shards)
        self.timeout_s = timeout_s
        self.hedges = hedges
        self.set = ShardSet([shard.server for shard in self.shards])

    @property
    def server(self) -> str:
        """How messages name the other end."""
        return f"lookup servers {self.address}"

    def start(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> ShardedPendingLookup:
        """Send a lookup to the shards and return at once; see `lookup`. It must be waited for or cancelled."""
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        features = self._features_of(version, deadline)
        given = {feature: as_ids(feature, values) for feature, values in ids.items()}
        return ShardedPendingLookup(self, version, cut(given, len(self.shards)), features, deadline, request_id)

    def describe(self, *, timeout_s: float | None = None) -> lookup_pb2.LookupDescription:
        """What every shard has loaded, and the least of their limits; of tables, what the first shard says.

        Raises:
            ServingError: A shard is away, or is not the one that it should be.
        """
        descriptions = []
        for index, shard in enumerate(self.shards):
            try:
                descriptions.append(self.set.fitting(index, shard.describe(timeout_s=timeout_s)))
            except ServingError as error:
                self.set.name(index, error)
                raise
        return as_whole(descriptions)

    def counters(self) -> Mapping[str, int]:
        """The sums over the shards' clients."""
        total: Counter[str] = Counter()
        for shard in self.shards:
            total.update(shard.counters())
        return dict(total)

    def close(self) -> None:
        """Close the connections; requests under way are cancelled."""
        for shard in self.shards:
            shard.close()

    def _features_of(self, version: str, deadline: float) -> Mapping[str, str]:
        """The feature of each table of a version; asked for at its first use."""
        known = self.set.known_features(version)
        if known is not None:
            return known
        try:
            description = self.shards[0].describe(timeout_s=max(1e-3, deadline - time.monotonic()))
        except ServingError as error:
            self.set.name(0, error)
            raise
        return self.set.learn_features(version, description)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address}, timeout_s={self.timeout_s})"
