"""Requests as traffic has them: a few ids come often, most come seldom."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from multifacet.serving.client.grpc_clients import RankerClient
from multifacet.serving.client.lookups import LookupConnection
from multifacet.serving.release.bases import lineage

if TYPE_CHECKING:
    from multifacet.serving.release.manifest import ReleaseTable
    from multifacet.serving.release.placing.placed_ids import PlacedIds
    from multifacet.serving.release.release import Release
    from multifacet.serving.wire.packing import IdArray
    from multifacet.tables.ids import IdMap

Request = Callable[[], object]
"""Sends one request and waits for its answer."""

_SCATTER = 0x9E3779B97F4A7C15


class SkewedIds:
    """Draws known ids of one id map by a Zipf law: the k-th most frequent comes in proportion to k ** -exponent.

    Which ids are frequent has nothing to do with where their rows are.

    Args:
        id_map: The map; of a hashed one, whose ids nobody knows, integers from 0 on are drawn.
        *others: The maps of the other shards, if this is an exact one of a shard.
        exponent: 0 draws uniformly; web and ads traffic is near 1.

    Raises:
        ValueError: The map is a hashed one of strings, or the exponent is negative.

    Example:
        >>> from multifacet.tables.ids.id_map import IdMap
        >>> ids = SkewedIds(IdMap.exact([5, 6, 7]), exponent=1.0)
        >>> set(ids.draw(np.random.default_rng(0), 1000)) == {5, 6, 7}
        True
    """

    def __init__(self, id_map: IdMap | PlacedIds, *others: IdMap | PlacedIds, exponent: float):
        if exponent < 0:
            raise ValueError(f"the exponent is {exponent}: expected 0 (uniform) or more")
        if id_map.oov_row is None and id_map.id_type == "string":
            raise ValueError("a hashed map of strings does not say which strings there are: no ids can be drawn")
        self._id_maps = (id_map, *others)
        self._is_hashed = id_map.oov_row is None
        # Where each map's ids begin among those of all.
        self._starts = np.cumsum([0] + [part.num_rows - (part.oov_row is not None) for part in self._id_maps])
        self._num_ids = int(self._starts[-1])
        self._exponent = exponent
        self._stride = _coprime(self._num_ids)

    def draw(self, generator: np.random.Generator, num: int) -> npt.NDArray[np.int64] | npt.NDArray[np.object_]:
        """Ids [num], which may repeat."""
        places = ((self._ranks(generator.random(num)) * self._stride) % self._num_ids).astype(np.int64)
        if self._is_hashed:
            return places
        if len(self._id_maps) == 1:
            return self._id_maps[0].known_ids(places)
        owners = np.searchsorted(self._starts, places, side="right") - 1
        is_int64 = self._id_maps[0].id_type == "int64"
        ids: IdArray = np.empty(num, np.int64) if is_int64 else np.empty(num, np.object_)
        for owner, part in enumerate(self._id_maps):
            chosen = owners == owner
            ids[chosen] = part.known_ids(places[chosen] - self._starts[owner])
        return ids

    def _ranks(self, uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.uint64]:
        """Ranks from 0, by the inverse of the law's integral: exact enough from the second rank on, for any number of ids."""
        size = self._num_ids
        if abs(self._exponent - 1) < 1e-9:
            ranks = np.exp(uniform * np.log(size + 1.0))
        else:
            power = 1 - self._exponent
            ranks = (uniform * ((size + 1.0) ** power - 1) + 1) ** (1 / power)
        found: npt.NDArray[np.uint64] = np.clip(ranks.astype(np.uint64), 1, size) - np.uint64(1)
        return found


def lookup_request(
    release: Release, client: LookupConnection, *, num_ids: int, exponent: float, seed: int
) -> Callable[[], Request]:
    """Draws lookups of a release: the ids of every feature, shared out evenly, none twice.

    Args:
        release: What the server holds.
        client: Asks it.
        num_ids: Ids of one request, all features together.
        exponent: See `SkewedIds`.
        seed: Of what is drawn.
    """
    generator = np.random.default_rng(seed)
    sources = _sources(release, exponent)
    each = max(1, num_ids // len(sources))

    def draw() -> Request:
        ids = {feature: np.unique(source.draw(generator, each)) for feature, source in sources.items()}
        return lambda: client.lookup(release.version, ids)

    return draw


def rank_request(
    release: Release, client: RankerClient, *, num_candidates: int, exponent: float, seed: int
) -> Callable[[], Request]:
    """Draws ranking requests: one id of the first feature (the user), candidates of the others, normal dense features.

    Where the model reads a sequence, one of full length; where it has lists of ids of a feature, half full ones on average.
    """
    generator = np.random.default_rng(seed)
    manifest = release.manifest
    sources = _sources(release, exponent)
    lists = manifest.list_lengths
    user = next(feature for feature in manifest.id_features if feature not in lists)
    others = [feature for feature in manifest.id_features if feature != user]
    num_dense = len(manifest.dense_features)

    def draw() -> Request:
        request_ids = {user: sources[user].draw(generator, 1).tolist()[0]}
        candidates: dict[str, Any] = {}
        for feature in others:
            if feature not in lists:
                candidates[feature] = sources[feature].draw(generator, num_candidates)
                continue
            sizes = generator.integers(0, lists[feature] + 1, num_candidates)
            candidates[feature] = np.split(sources[feature].draw(generator, int(sizes.sum())), np.cumsum(sizes)[:-1])
        dense = generator.standard_normal((num_candidates, num_dense), np.float32)
        sequences = {}
        if manifest.sequence is not None:
            source = sources[manifest.history_tables[0].feature]
            sequences[manifest.sequence.feature] = source.draw(generator, manifest.sequence.length)
        return lambda: client.rank(request_ids, candidates, dense=dense, sequences=sequences)

    return draw


def _sources(release: Release, exponent: float) -> dict[str, SkewedIds]:
    sources: dict[str, SkewedIds] = {}
    for table in release.tables:
        if table.feature not in sources:
            sources[table.feature] = SkewedIds(*_id_maps(release, table), exponent=exponent)
    return sources


def _id_maps(release: Release, table: ReleaseTable) -> list[IdMap | PlacedIds]:
    """A table's id map, or those of all of its shards; a hashed one is the same in each. Of a delta: the whole release's."""
    if release.base:
        whole = lineage(release, verify=False, half="lookup")[0]
        return _id_maps(whole, next(other for other in whole.tables if other.name == table.name))
    if release.shard is not None or not table.shard_rows:
        return [release.id_map(table.id_map)]
    maps = []
    for shard in range(release.num_shards):
        maps.append(type(release).open(release.path, verify=False, half="lookup", shard=shard).id_map(table.id_map))
        if maps[0].oov_row is None:
            break
    return maps


def _coprime(size: int) -> np.uint64:
    """A stride that visits every place: ranks next to each other land far apart."""
    stride = _SCATTER % size or 1
    while np.gcd(stride, size) != 1:
        stride += 1
    return np.uint64(stride % (1 << 31))
