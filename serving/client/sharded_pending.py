"""A lookup under way at several shards."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from multifacet.serving.client.replicated_pending import ReplicatedPendingLookup
from multifacet.serving.client.waiting import Watch
from multifacet.serving.errors import ServingError
from multifacet.serving.forks import num_forks, refuse_inherited

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multifacet.serving.client.lookups import LookupConnection, PendingLookup
    from multifacet.serving.client.shard_set import Cut, ShardSet
    from multifacet.serving.wire.answers import LookupAnswer


class Shards(Protocol):
    """What a lookup under way knows of its client; `ShardedLookup` says more."""

    set: ShardSet
    hedges: bool

    @property
    def shards(self) -> Sequence[LookupConnection]:
        """The client of each shard."""

    @property
    def server(self) -> str:
        """How messages name the other end."""


class ShardedPendingLookup:
    """A lookup under way at several shards."""

    def __init__(
        self,
        shards: Shards,
        version: str,
        cut: Cut,
        features: Mapping[str, str],
        deadline: float,
        request_id: str,
    ):
        self.elapsed_us = 0
        """Microseconds from sending to reading the last shard's answer; 0 until it is read."""
        self._shards = shards
        self._made_at = num_forks()
        self._version = version
        self._cut = cut
        self._features = features
        self._started_ns = time.perf_counter_ns()
        self._pending: list[PendingLookup] = []
        self._watch = Watch(self._give_up)
        for part in cut.parts:
            shard = shards.shards[part.shard]
            try:
                timeout_s = max(1e-3, deadline - time.monotonic())
                pending = shard.start(version, part.ids, timeout_s=timeout_s, request_id=request_id)
            except ServingError as error:
                self.cancel()
                shards.set.name(part.shard, error)
                raise
            except BaseException:
                self.cancel()
                raise
            self._pending.append(pending)

    def cancel(self) -> None:
        """Give it up at every shard; safe from any thread."""
        if self._made_at == num_forks():
            self._watch.cancel()

    def result(self) -> LookupAnswer:
        """Wait for every shard, and put the rows together.

        Raises:
            ServingError: As `LookupConnection.lookup`: the first shard's error, with the shard's index.
        """
        refuse_inherited(self._made_at, self._shards.server)
        if self._shards.hedges:
            self._watch.wait([pending for pending in self._pending if isinstance(pending, ReplicatedPendingLookup)])
        answers = []
        for part, pending in zip(self._cut.parts, self._pending, strict=True):
            try:
                answers.append(pending.result())
                self._shards.set.check(part.shard, self._version, answers[-1])
            except ServingError as error:
                self.cancel()
                self._shards.set.name(part.shard, error)
                raise
        self.elapsed_us = (time.perf_counter_ns() - self._started_ns) // 1000
        return self._shards.set.join(self._version, self._cut, self._features, answers)

    def _give_up(self) -> None:
        for pending in self._pending:
            pending.cancel()
