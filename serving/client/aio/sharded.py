"""Lookup servers that each hold a shard of a release, for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import numpy.typing as npt

from multifacet.serving.client.aio.lookups import AsyncLookupConnection
from multifacet.serving.client.shard_set import Part, ShardSet, as_whole, cut
from multifacet.serving.errors import ServingError
from multifacet.serving.protocol import lookup_pb2
from multifacet.serving.wire.answers import LookupAnswer
from multifacet.serving.wire.packing import as_ids

_T = TypeVar("_T")


class AsyncShardedLookup(AsyncLookupConnection):
    """Asks every shard for the rows of its ids, all at once; as `serving.client.sharded.ShardedLookup`, in an event loop.

    Args:
        shards: A client of each shard's servers, in the order of the shards' indices; they belong to this one from now on.
        timeout_s: Deadline of a request that names none, in seconds.
    """

    def __init__(self, shards: Sequence[AsyncLookupConnection], *, timeout_s: float = 1.0):
        self.shards = tuple(shards)
        self.address = "|".join(shard.address for shard in self.shards)
        self.timeout_s = timeout_s
        self.set = ShardSet([shard.server for shard in self.shards])

    @property
    def server(self) -> str:
        """How messages name the other end."""
        return f"lookup servers {self.address}"

    async def lookup(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> LookupAnswer:
        """As `AsyncLookupConnection`: the error of the first shard that fails, with its index."""
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        features = await self._features_of(version, deadline)
        whole = cut({feature: as_ids(feature, values) for feature, values in ids.items()}, len(self.shards))
        left_s = max(1e-3, deadline - time.monotonic())

        async def ask(part: Part) -> LookupAnswer:
            answer = await self.shards[part.shard].lookup(version, part.ids, timeout_s=left_s, request_id=request_id)
            self.set.check(part.shard, version, answer)
            return answer

        answers = await _all(*(self._named(part.shard, ask(part)) for part in whole.parts))
        return self.set.join(version, whole, features, answers)

    async def describe(self, *, timeout_s: float | None = None) -> lookup_pb2.LookupDescription:
        """What every shard has loaded, and the least of their limits; of tables, what the first shard says."""

        async def ask(index: int) -> lookup_pb2.LookupDescription:
            return self.set.fitting(index, await self.shards[index].describe(timeout_s=timeout_s))

        descriptions = await _all(*(self._named(index, ask(index)) for index in range(len(self.shards))))
        return as_whole(descriptions)

    def counters(self) -> Mapping[str, int]:
        """The sums over the shards' clients."""
        total: Counter[str] = Counter()
        for shard in self.shards:
            total.update(shard.counters())
        return dict(total)

    async def close(self) -> None:
        """Close the connections; requests under way are cancelled."""
        for shard in self.shards:
            await shard.close()

    async def _features_of(self, version: str, deadline: float) -> Mapping[str, str]:
        known = self.set.known_features(version)
        if known is not None:
            return known
        left_s = max(1e-3, deadline - time.monotonic())
        return self.set.learn_features(version, await self._named(0, self.shards[0].describe(timeout_s=left_s)))

    async def _named(self, index: int, asked: Coroutine[Any, Any, _T]) -> _T:
        try:
            return await asked
        except ServingError as error:
            self.set.name(index, error)
            raise


async def _all(*asked: Coroutine[Any, Any, _T]) -> list[_T]:
    """The answers in order; the first error cancels the others."""
    tasks = [asyncio.create_task(one) for one in asked]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
