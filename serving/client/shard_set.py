"""What goes to the shards of a release, and how what comes from them is checked and put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from multifacet.serving.client.replica_group import common_description
from multifacet.serving.core import agreement
from multifacet.serving.errors import BrokenAnswerError, ServingError, VersionNotLoadedError
from multifacet.serving.protocol import lookup_pb2
from multifacet.serving.release.sharding.shards import Partition, partition
from multifacet.serving.wire.answers import LookupAnswer, TableRows
from multifacet.serving.wire.packing import IdArray


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
    """Cut a lookup into the shards' parts; see `serving.release.sharding.shards` for the rule."""
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


class ShardSet:
    """The servers of all shards, by name, and what is known of the versions that they hold; safe to share between threads.

    Args:
        servers: How messages name the server, or servers, of each shard.
    """

    def __init__(self, servers: Sequence[str]):
        self.servers = tuple(servers)
        self._features: dict[str, dict[str, str]] = {}

    def __len__(self) -> int:
        return len(self.servers)

    def name(self, index: int, error: ServingError) -> None:
        """Make an error say which shard it came from."""
        error.args = (f"shard {index} of {len(self)}: {error}",)

    def known_features(self, version: str) -> Mapping[str, str] | None:
        """The feature of each table of a version; None if the first shard's description was not seen since it was loaded."""
        return self._features.get(version)

    def learn_features(self, version: str, first: lookup_pb2.LookupDescription) -> Mapping[str, str]:
        """Take the features of all versions from the first shard's description; forget versions that are gone.

        Raises:
            VersionNotLoadedError: The wanted version is not there.
        """
        features = {entry.version: {table.table: table.feature for table in entry.tables} for entry in first.versions}
        self._features = features
        if version not in features:
            raise VersionNotLoadedError(
                f"shard 0 of {len(self)}: {self.servers[0]}: version {version} is not loaded; loaded: {', '.join(features)}",
                loaded=list(features),
            )
        return features[version]

    def fitting(self, index: int, description: lookup_pb2.LookupDescription) -> lookup_pb2.LookupDescription:
        """The versions of which a server holds the shard that it should; others, whole or cut otherwise, may be there too.

        Raises:
            BrokenAnswerError: The server holds no version cut into these shards.
        """
        given = [(entry.shard_index, max(1, entry.num_shards)) for entry in description.versions]
        fits = [entry for entry, shard in zip(description.versions, given, strict=True) if shard == (index, len(self))]
        if given and not fits:
            self._check_shard(index, *given[0])
        return lookup_pb2.LookupDescription(
            versions=fits,
            max_ids_per_request=description.max_ids_per_request,
            current_version=description.current_version,
            partly_held=description.partly_held,
        )

    def check(self, index: int, version: str, answer: LookupAnswer) -> None:
        """Refuse an answer of another version, or of another shard.

        Raises:
            VersionNotLoadedError: The version is not the one that was asked for.
            BrokenAnswerError: The shard is not.
        """
        given_shard = (answer.shard_index, max(1, answer.num_shards))
        fault = agreement.misfit(version, answer.version, (index, len(self)), given_shard)
        if fault == "version":
            raise VersionNotLoadedError(
                f"{self.servers[index]} answered with rows of version {answer.version}, asked for was {version}: rows of two "
                "versions are never put together",
                loaded=(answer.version,),
            )
        if fault:
            self._check_shard(index, answer.shard_index, answer.num_shards)

    def join(self, version: str, whole: Cut, features: Mapping[str, str], answers: Sequence[LookupAnswer]) -> LookupAnswer:
        """Put checked answers together, in the order of the ids.

        Args:
            version: Their version.
            whole: What was asked.
            features: The feature of each table.
            answers: One for each of its parts.

        Raises:
            BrokenAnswerError: A shard's rows are not as many as its ids, or not as another shard's are.
        """
        return LookupAnswer(
            version=version,
            tables={
                table: self._join(table, feature, whole, answers)
                for table, feature in features.items()
                if feature in whole.partitions
            },
            server_us=max(answer.server_us for answer in answers),
        )

    def _join(self, name: str, feature: str, cut: Cut, answers: Sequence[LookupAnswer]) -> TableRows:
        order, starts = cut.partitions[feature]
        whole: npt.NDArray[np.uint8] | None = None
        first: TableRows | None = None
        num_unknown_ids = 0
        for part, answer in zip(cut.parts, answers, strict=True):
            if feature not in part.ids:
                continue
            table = answer.tables.get(name)
            positions = order[starts[part.shard] : starts[part.shard + 1]]
            first = first or table
            if first is None or table is None or (len(positions), *_shape(first)) != (len(table.rows), *_shape(table)):
                raise BrokenAnswerError(
                    f"shard {part.shard} of {len(self)}: {self.servers[part.shard]} sent for table {name!r} and "
                    f"{len(positions)} ids {table and (len(table.rows), *_shape(table))}, another shard "
                    f"{first and _shape(first)} (rows; row_bytes, dim, precision)"
                )
            if whole is None:
                whole = np.empty((len(order), first.rows.shape[1]), np.uint8)
            as_one = np.dtype((np.void, whole.shape[1]))
            whole.view(as_one)[positions] = np.ascontiguousarray(table.rows).view(as_one)
            num_unknown_ids += table.num_unknown_ids
        assert first is not None and whole is not None  # noqa: S101, PT018
        return TableRows(whole, first.dim, first.precision, num_unknown_ids)

    def _check_shard(self, index: int, given_index: int, given_num: int) -> None:
        """Refuse another shard: its rows would be out-of-vocabulary rows, without any other sign."""
        if (given_index, max(1, given_num)) != (index, len(self)):
            holds = f"shard {given_index} of {given_num}" if given_num > 1 else "a release that is not split"
            raise BrokenAnswerError(
                f"{self.servers[index]} holds {holds}. List the servers in the order of their shards, with a | between them"
            )


def as_whole(descriptions: Sequence[lookup_pb2.LookupDescription]) -> lookup_pb2.LookupDescription:
    """The description of all shards together from what they have in common."""
    common = common_description(descriptions)
    versions = [entry.version for entry in common.versions]
    # A version that some servers of one shard lack may still be had whole.
    had = [{*description.partly_held, *(entry.version for entry in description.versions)} for description in descriptions]
    return lookup_pb2.LookupDescription(
        versions=[lookup_pb2.LookupVersion(version=entry.version, tables=entry.tables) for entry in common.versions],
        max_ids_per_request=common.max_ids_per_request,
        current_version=common.current_version,
        partly_held=sorted(set.intersection(*had) - set(versions)),
    )


def _shape(table: TableRows) -> tuple[int, int, str]:
    return table.rows.shape[1], table.dim, table.precision
