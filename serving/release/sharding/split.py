"""Splits tables and their id maps over lookup hosts, by the rule of `serving.release.sharding.shards`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from multifacet.serving.release.sharding.hashed_shard import HashedShard, can_split
from multifacet.serving.release.sharding.shards import shard_of
from multifacet.tables.ids import IdMap

if TYPE_CHECKING:
    import numpy.typing as npt

    from multifacet.serving.release.placing.placed_ids import PlacedIds
    from multifacet.serving.wire.packing import IdArray


class RowStream(Protocol):
    """A file that takes rows one after the other."""

    def write(self, rows: Any, /) -> int:
        """Take the next rows; how many bytes they were."""
        ...


class TableSplit(Protocol):
    """Which rows of a table go to which shard, for all tables of one id map.

    Attributes:
        shard_rows: Number of rows in each shard, the out-of-vocabulary row of each included.
    """

    shard_rows: tuple[int, ...]

    def write(self, rows: npt.NDArray[np.uint8], first_row: int, streams: Sequence[RowStream]) -> None:
        """Write a chunk of the table, the chunks in order, to where each of its rows belongs.

        Args:
            rows: uint8 [n, row_bytes], encoded.
            first_row: Row of the table that the chunk begins with.
            streams: The file of each shard.
        """

    def id_map(self, shard: int) -> IdMap:
        """The id map that goes with a shard."""
        ...


class ExactSplit:
    """Of an exact map: each shard has its own ids' rows, in the table's order, and then the table's out-of-vocabulary row.

    Args:
        id_map: The map of the whole table.
        num_shards: How many shards.

    Example:
        >>> split = ExactSplit(IdMap.exact([30, 10, 20]), 2)
        >>> split.shard_rows, [split.id_map(shard).rows([30, 10, 20]).tolist() for shard in range(2)]
        ((4, 1), [[0, 1, 2], [0, 0, 0]])
    """

    def __init__(self, id_map: IdMap, num_shards: int):
        self._id_type = id_map.id_type
        self._num_shards = num_shards
        self._ids = ids_by_row(id_map)
        self._shards = shard_of(self._ids, num_shards).astype(np.uint16)
        self.shard_rows = tuple((np.bincount(self._shards, minlength=num_shards) + 1).tolist())

    def write(self, rows: npt.NDArray[np.uint8], first_row: int, streams: Sequence[RowStream]) -> None:
        """As `TableSplit`."""
        shards = self._shards[first_row : first_row + len(rows)]
        order = np.argsort(shards, kind="stable")
        bounds = np.searchsorted(shards[order], np.arange(self._num_shards + 1))
        for shard, stream in enumerate(streams):
            chosen = order[bounds[shard] : bounds[shard + 1]]
            stream.write(rows[chosen].data)
            if first_row + len(rows) > len(self._shards):  # the out-of-vocabulary row, which is the table's last
                stream.write(rows[-1].data)

    def id_map(self, shard: int) -> IdMap:
        """As `TableSplit`."""
        ids = self._ids[self._shards == shard]
        return IdMap.exact(pa.array(ids, pa.int64() if self._id_type == "int64" else pa.large_string()))


class HashedSplit:
    """Of a hashed map of the shards' own seed: each shard has a range of the table's rows, and a row of zeros behind them.

    A server that is asked for an id of another shard answers with that row: zeros decode to a vector of zeros in every format.

    Args:
        id_map: The map of the whole table.
        num_shards: How many shards.
    """

    def __init__(self, id_map: IdMap, num_shards: int):
        self._whole = id_map
        self._parts = [HashedShard(id_map, shard, num_shards) for shard in range(num_shards)]
        self.shard_rows = tuple(part.num_rows for part in self._parts)

    def write(self, rows: npt.NDArray[np.uint8], first_row: int, streams: Sequence[RowStream]) -> None:
        """As `TableSplit`."""
        stop = first_row + len(rows)
        for part, stream in zip(self._parts, streams, strict=True):
            part_stop = part.first_row + part.oov_row
            begin, end = max(part.first_row, first_row), min(part_stop, stop)
            if begin < end:
                stream.write(rows[begin - first_row : end - first_row].data)
                if end == part_stop:
                    stream.write(bytes(rows.shape[1]))

    def id_map(self, shard: int) -> IdMap:  # noqa: ARG002
        """As `TableSplit`: the whole map, which is a few numbers; a server makes a `HashedShard` of it."""
        return self._whole


def split_of(id_map: IdMap, num_shards: int) -> TableSplit | None:
    """How to split the tables of an id map; None if they are to lie whole in every shard.

    Args:
        id_map: Of the whole table.
        num_shards: How many shards; 1 splits nothing.
    """
    if num_shards == 1:
        return None
    if id_map.index is not None:
        return ExactSplit(id_map, num_shards)
    return HashedSplit(id_map, num_shards) if can_split(id_map) else None


def ids_by_row(id_map: IdMap | PlacedIds) -> IdArray:
    """The ids that an exact map knows, in the order of their rows."""
    if id_map.num_rows == 1:
        return np.empty(0, np.int64) if id_map.id_type == "int64" else np.empty(0, np.object_)
    ids = id_map.known_ids(np.arange(id_map.num_rows - 1, dtype=np.int64))
    ordered = np.empty_like(ids)
    ordered[id_map.rows(ids)] = ids
    return ordered
