"""A client of lookup servers that each hold a shard of a release: ids go to their shards, rows come back in the ids' order."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy.typing as npt

from serving.errors import BrokenAnswerError, ServingError, VersionNotLoadedError
from serving.lookups import LookupConnection
from serving.packing import as_ids
from serving.protocol import lookup_pb2
from serving.sharded_pending import ShardedPendingLookup, cut


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
        self._features: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()

    @property
    def server(self) -> str:
        """How messages name the other end."""
        return f"lookup servers {self.address}"

    def start(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> ShardedPendingLookup:
        """Send a lookup to the shards and return at once; see `lookup`. It must be waited for or cancelled."""
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        features = self.features_of(version, deadline)
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
                descriptions.append(self._fitting(index, shard.describe(timeout_s=timeout_s)))
            except ServingError as error:
                self.name(index, error)
                raise
        held = [{entry.version for entry in description.versions} for description in descriptions]
        return lookup_pb2.LookupDescription(
            versions=[
                lookup_pb2.LookupVersion(version=entry.version, tables=entry.tables)
                for entry in descriptions[0].versions
                if all(entry.version in versions for versions in held)
            ],
            max_ids_per_request=min(description.max_ids_per_request for description in descriptions),
        )

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

    def features_of(self, version: str, deadline: float) -> Mapping[str, str]:
        """The feature of each table of a version; asked for at its first use.

        Raises:
            VersionNotLoadedError: The first shard does not hold it.
        """
        known = self._features.get(version)
        if known is not None:
            return known
        try:
            description = self.shards[0].describe(timeout_s=max(1e-3, deadline - time.monotonic()))
        except ServingError as error:
            self.name(0, error)
            raise
        features = {entry.version: {table.table: table.feature for table in entry.tables} for entry in description.versions}
        with self._lock:
            self._features = features  # versions that are gone are forgotten
        if version not in features:
            raise VersionNotLoadedError(
                f"shard 0 of {len(self.shards)}: {self.shards[0].server}: version {version} is not loaded;"
                f" loaded: {', '.join(features)}",
                loaded=list(features),
            )
        return features[version]

    def _fitting(self, index: int, description: lookup_pb2.LookupDescription) -> lookup_pb2.LookupDescription:
        """The versions of which a server holds the shard that it should; others, whole or cut otherwise, may be there too."""
        given = [(entry.shard_index, max(1, entry.num_shards)) for entry in description.versions]
        fits = [entry for entry, shard in zip(description.versions, given, strict=True) if shard == (index, len(self.shards))]
        if given and not fits:
            self.check_shard(index, *given[0])
        return lookup_pb2.LookupDescription(versions=fits, max_ids_per_request=description.max_ids_per_request)

    def name(self, index: int, error: ServingError) -> None:
        """Make an error say which shard it came from."""
        error.args = (f"shard {index} of {len(self.shards)}: {error}",)

    def check_shard(self, index: int, given_index: int, given_num: int) -> None:
        """Refuse a server that holds another shard than its place says.

        Raises:
            BrokenAnswerError: It does: its rows would be out-of-vocabulary rows, without any other sign.
        """
        expected = len(self.shards)
        if (given_index, max(1, given_num)) != (index, expected):
            holds = f"shard {given_index} of {given_num}" if given_num > 1 else "a release that is not split"
            raise BrokenAnswerError(
                f"{self.shards[index].server} holds {holds}. List the servers in the order of "
                "their shards, with a | between them"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address}, timeout_s={self.timeout_s})"
