"""A lookup under way at several shards, and what it is cut into."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.answers import LookupAnswer, TableRows
from serving.errors import BrokenAnswerError, ServingError, VersionNotLoadedError
from serving.packing import IdArray
from serving.replicated_pending import ReplicatedPendingLookup
from serving.shards import Partition, partition
from serving.watch import Watch

if TYPE_CHECKING:
    from serving.lookups import PendingLookup
    from serving.sharded import ShardedLookup


class Part(NamedTuple):
    """What one shard is asked for.

    Attributes:
        shard: Its index.
        ids: Its ids by feature, for the features of which it has any.
    """

    shard: int
    ids: dict[str, IdArray]


class Cut(NamedTuple):
    """A lookup, cut into the shards' parts.

    Attributes:
        parts: Those that have any ids, or else the first shard. A feature without ids is in the first of them.
        partitions: By feature, which positions went where.
    """

    parts: list[Part]
    partitions: dict[str, Partition]


def cut(given: Mapping[str, IdArray], num_shards: int) -> Cut:
    """Cut a lookup into the shards' parts; see `serving.shards` for the rule."""
    partitions = {feature: partition(ids, num_shards) for feature, ids in given.items()}
    parts = []
    for index in range(num_shards):
        ids = {
            feature: given[feature][order[starts[index] : starts[index + 1]]]
            for feature, (order, starts) in partitions.items()
            if starts[index] < starts[index + 1]
        }
        if ids:
            parts.append(Part(index, ids))
    parts = parts or [Part(0, {})]
    parts[0].ids.update({feature: ids for feature, ids in given.items() if not len(ids)})
    return Cut(parts, partitions)


class ShardedPendingLookup:
    """A lookup under way at several shards."""

    def __init__(
        self,
        owner: ShardedLookup,
        version: str,
        cut: Cut,
        features: Mapping[str, str],
        deadline: float,
        request_id: str,
    ):
        self.elapsed_us = 0
        """Microseconds from sending to reading the last shard's answer; 0 until it is read."""
        self._owner = owner
        self._version = version
        self._cut = cut
        self._features = features
        self._deadline = deadline
        self._started_ns = time.perf_counter_ns()
        self._pending: list[PendingLookup] = []
        self._watch = Watch(self._give_up)
        for part in cut.parts:
            shard = owner.shards[part.shard]
            try:
                timeout_s = max(1e-3, deadline - time.monotonic())
                pending = shard.start(version, part.ids, timeout_s=timeout_s, request_id=request_id)
            except ServingError as error:
                self.cancel()
                owner.name(part.shard, error)
                raise
            except BaseException:
                self.cancel()
                raise
            self._pending.append(pending)

    def cancel(self) -> None:
        """Give it up at every shard; safe from any thread."""
        self._watch.cancel()

    def result(self) -> LookupAnswer:
        """Wait for every shard, and put the rows together.

        Raises:
            ServingError: As `LookupConnection.lookup`: the first shard's error, with the shard's index.
        """
        if self._owner.hedges:
            self._watch.wait([pending for pending in self._pending if isinstance(pending, ReplicatedPendingLookup)])
        answers = []
        for part, pending in zip(self._cut.parts, self._pending, strict=True):
            try:
                answers.append(pending.result())
                self._check(part.shard, answers[-1])
            except ServingError as error:
                self.cancel()
                self._owner.name(part.shard, error)
                raise
        self.elapsed_us = (time.perf_counter_ns() - self._started_ns) // 1000
        return LookupAnswer(
            version=self._version,
            tables={
                table: self._join(table, self._cut.partitions[feature], answers)
                for table, feature in self._features.items()
                if feature in self._cut.partitions
            },
            server_us=max(answer.server_us for answer in answers),
        )

    def _give_up(self) -> None:
        for pending in self._pending:
            pending.cancel()

    def _check(self, index: int, answer: LookupAnswer) -> None:
        server = self._owner.shards[index].server
        if answer.version != self._version:
            raise VersionNotLoadedError(
                f"{server} answered with rows of version {answer.version}, asked for was {self._version}: rows of two "
                "versions are never put together",
                loaded=(answer.version,),
            )
        self._owner.check_shard(index, answer.shard_index, answer.num_shards)

    def _join(self, name: str, partitioned: Partition, answers: Sequence[LookupAnswer]) -> TableRows:
        """One table's rows of all shards, in the order of the ids."""
        feature = self._features[name]
        order, starts = partitioned
        whole: npt.NDArray[np.uint8] | None = None
        first: TableRows | None = None
        num_unknown_ids = 0
        for part, answer in zip(self._cut.parts, answers, strict=True):
            if feature not in part.ids:
                continue
            table = answer.tables.get(name)
            positions = order[starts[part.shard] : starts[part.shard + 1]]
            first = first or table
            if first is None or table is None or (len(positions), *_shape(first)) != (len(table.rows), *_shape(table)):
                raise BrokenAnswerError(
                    f"shard {part.shard} of {len(self._owner.shards)}: {self._owner.shards[part.shard].server} sent for table "
                    f"{name!r} and {len(positions)} ids {table and (len(table.rows), *_shape(table))}, another shard "
                    f"{first and _shape(first)} (rows; row_bytes, dim, precision)"
                )
            if whole is None:
                whole = np.empty((len(order), first.rows.shape[1]), np.uint8)
            as_one = np.dtype((np.void, whole.shape[1]))
            whole.view(as_one)[positions] = np.ascontiguousarray(table.rows).view(as_one)
            num_unknown_ids += table.num_unknown_ids
        assert first is not None and whole is not None  # noqa: S101, PT018
        return TableRows(whole, first.dim, first.precision, num_unknown_ids)


def _shape(table: TableRows) -> tuple[int, int, str]:
    return table.rows.shape[1], table.dim, table.precision
