"""The part of a hashed id map that one shard of a release holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np

from multifacet.kernels.hashing import mix64, reduce_range, seed_stream
from multifacet.serving.release.sharding.shards import SHARD_SEED
from multifacet.tables.ids import IdColumn

if TYPE_CHECKING:
    import numpy.typing as npt

    from multifacet.tables.ids import IdMap, Ids, IdType


class HashedShard:
    """Finds the rows of ids in one shard of a hashed table.

    A hashed table's row is floor(h x rows / 2**64), an id's shard floor(h x shards / 2**64), of one and the same hash h of the
    id if the table's seed is that of the shards. So the rows that a shard's ids may have are a range of the table's, and two
    neighbours have at most the row in common in which one ends and the other begins. A table of another seed has ids of every
    shard in every row, and cannot be split.

    Args:
        whole: The hashed map of the whole table.
        shard: Which shard.
        num_shards: Of how many.

    Attributes:
        first_row: Row of the whole table that is row 0 here.
        num_rows: Rows here, the out-of-vocabulary row included, which no whole hashed table has: it is for other shards' ids.
        oov_row: That row, the last one.
        id_type: Type of the ids.

    Raises:
        ValueError: The table cannot be split.

    Example:
        >>> from multifacet.tables import IdMap
        >>> parts = [HashedShard(IdMap.hashed(10, id_type="int64"), shard, 4) for shard in range(4)]
        >>> [(part.first_row, part.num_rows - 1) for part in parts]
        [(0, 3), (2, 3), (5, 3), (7, 3)]
    """

    num_hashes: Final = 1
    index: Final = None

    def __init__(self, whole: IdMap, shard: int, num_shards: int):
        if not can_split(whole) or not 0 <= shard < num_shards:
            raise ValueError(f"{whole!r} of seed {whole.seed} has no shard {shard} of {num_shards}: expected seed {SHARD_SEED}")
        self.id_type: IdType = whole.id_type
        self.seed = whole.seed
        self.whole_rows = whole.num_rows
        self.shard = shard
        self.num_shards = num_shards
        self.first_row = _first_hash(shard, num_shards) * whole.num_rows >> 64
        last_row = (_first_hash(shard + 1, num_shards) - 1) * whole.num_rows >> 64
        self.oov_row = last_row + 1 - self.first_row
        self.num_rows = self.oov_row + 1
        self._seed = seed_stream(self.seed, 1)[0]

    def rows(self, ids: Ids) -> npt.NDArray[np.int32]:
        """The row of each id here; the out-of-vocabulary row for one of another shard.

        Args:
            ids: [n] of this map's `id_type`, without nulls.

        Returns:
            int32 [n].
        """
        rows = np.empty(len(ids), np.int32)
        self.find(IdColumn.of(ids, self.id_type).keys, rows)
        return rows

    def find(self, ids: npt.NDArray[np.int64], rows: npt.NDArray[np.int32]) -> int:
        """Look int64 ids up into memory that is there.

        Args:
            ids: int64 [n].
            rows: int32 [n], written.

        Returns:
            How many ids are of another shard.
        """
        found: int = find_hashed(
            ids, self._seed, self.whole_rows, self.shard, self.num_shards, self.first_row, self.oov_row, rows
        )
        return found


def can_split(whole: IdMap) -> bool:
    """Whether a hashed table can be split into shards; see `HashedShard`."""
    return whole.index is None and whole.num_hashes == 1 and whole.seed == SHARD_SEED


def _first_hash(shard: int, num_shards: int) -> int:
    """The smallest hash of a shard's ids."""
    return -((-shard << 64) // num_shards)


@numba.njit(nogil=True, cache=True)
def find_hashed(
    ids: Any, seed: Any, whole_rows: Any, shard: Any, num_shards: Any, first_row: Any, missing: Any, rows: Any
) -> Any:
    """Fills rows (int32 [n]); how many ids are of another shard."""
    size, parts = np.uint64(whole_rows), np.uint64(num_shards)
    num_missing = 0
    for position in range(len(ids)):
        hashed = mix64(mix64(np.uint64(ids[position])) + seed)
        owned = np.int64(reduce_range(hashed, parts)) == shard
        rows[position] = np.int32(np.int64(reduce_range(hashed, size)) - first_row) if owned else missing
        num_missing += not owned
    return num_missing
