"""An exact id map with what deltas added to it and dropped of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multifacet.artifacts import ArtifactError
from multifacet.serving.release.placing.placed_ids import PlacedIds
from multifacet.tables.ids import IdColumn, IdIndex, find_ids

if TYPE_CHECKING:
    import numpy.typing as npt

    from multifacet.serving.release.sharding.hashed_shard import HashedShard
    from multifacet.tables.ids import IdMap, Ids, IdType

NUM_ARRAYS: Final = 4
KnownIds: TypeAlias = "IdMap | HashedShard | PlacedIds | ChangedIds"
"""A map from ids to rows as servers hold it."""


class ChangedIds:
    """Finds the rows of ids that a whole release has, less dropped ones, and of those that were added since.

    An id that was dropped is unknown: it has the out-of-vocabulary row. One that comes back has a new row.

    Args:
        whole: The exact map of the whole release.
        num_rows: Rows up to now, those of dropped ids included.
        added: The added ids, an arrow array of the map's type.
        added_rows: int32, the row of each.
        dropped: Ids of the whole map that are dropped.

    Attributes:
        oov_row: The row of unknown ids: the last one of the whole release's map, wherever later rows end.
        num_rows: Rows of the table.
        index: The whole map's arrays.

    Example:
        >>> from multifacet.tables import IdMap
        >>> ids = ChangedIds.of(IdMap.exact([30, 10, 20])).change([40], [10])
        >>> ids.rows([30, 10, 40, 50]).tolist(), ids.num_rows, ids.oov_row
        ([0, 3, 4, 3], 5, 3)
    """

    num_hashes: Final = 1
    seed: Final = 0

    def __init__(
        self, whole: IdMap | PlacedIds, num_rows: int, added: pa.Array, added_rows: npt.NDArray[np.int32], dropped: pa.Array
    ) -> None:
        if whole.index is None or whole.oov_row is None:
            raise ValueError(f"{whole!r} has no ids to add to")
        self.whole = whole
        self.id_type: IdType = whole.id_type
        self.num_rows = num_rows
        self.oov_row: int = whole.oov_row
        self.index: IdIndex | PlacedIds = whole.index
        self._added, self._added_rows, self._dropped = added, added_rows, dropped
        self.added = IdIndex.build(IdColumn.of(added, self.id_type))
        self.added.arrays["rows"] = added_rows[self.added.arrays["rows"]].astype(np.int32, copy=False)
        self.dropped = IdIndex.build(IdColumn.of(dropped, self.id_type))

    @classmethod
    def of(cls, whole: IdMap | PlacedIds) -> ChangedIds:
        """The same map, nothing changed."""
        empty = pa.array([], pa.int64() if whole.id_type == "int64" else pa.large_string())
        return cls(whole, whole.num_rows, empty, np.empty(0, np.int32), empty)

    def change(self, added: Ids, dropped: Ids) -> ChangedIds:
        """The map after one more delta.

        Args:
            added: Ids that are not known now; they get the rows from `num_rows` on.
            dropped: Ids that are.

        Raises:
            ArtifactError: An added id is known, or a dropped one is not.
        """
        kind = self._added.type
        new, gone = pa.array(added, kind), pa.array(dropped, kind)
        for what, ids, known in (("added", new, False), ("dropped", gone, True)):
            rows = self.rows(ids)
            odd = np.flatnonzero((rows != self.oov_row) != known)
            if len(odd):
                raise ArtifactError(
                    f"id {ids[int(odd[0])].as_py()!r} is {what}, and the base {'does not know it' if known else 'knows it'}: "
                    "the delta is of another base"
                )
        stays = pc.invert(pc.is_in(self._added, value_set=gone))
        was_added = pc.is_in(gone, value_set=self._added)
        num_rows = self.num_rows + len(new)
        return ChangedIds(
            self.whole,
            num_rows,
            pa.concat_arrays([self._added.filter(stays), new]),
            np.concatenate(
                [self._added_rows[stays.to_numpy(zero_copy_only=False)], np.arange(self.num_rows, num_rows, dtype=np.int32)]
            ),
            pa.concat_arrays([self._dropped, gone.filter(pc.invert(was_added))]),
        )

    def rows(self, ids: Ids) -> npt.NDArray[np.int32]:
        """As `IdMap.rows`."""
        column = IdColumn.of(ids, self.id_type)
        found = self.index.lookup(column, self.oov_row)
        if len(self.dropped):
            found[self.dropped.lookup(column, -1) >= 0] = self.oov_row
        if len(self.added):
            rows = self.added.lookup(column, -1)
            found = np.where(rows >= 0, rows, found)
        return found

    def find(self, ids: npt.NDArray[np.int64], rows: npt.NDArray[np.int32]) -> int:
        """As `IdMap.find`."""
        num_unknown = self.whole.find(ids, rows)
        mend: Any = amend
        return int(mend(*self.arrays(), num_unknown, self.oov_row, ids, rows))

    def arrays(self) -> tuple[Any, ...]:
        """What `amend` reads of the added and of the dropped ids: starts, keys, rows, shift of each."""
        parts: list[Any] = []
        for index in (self.added, self.dropped):
            parts += [index.arrays["starts"], index.arrays["keys"], index.arrays["rows"], np.uint64(index.shift)]
        return tuple(parts)

    def known_ids(self) -> pa.Array:
        """All ids that have a row now, those of the whole map first."""
        ids = self.whole.known_ids(np.arange(self.whole.num_rows - 1, dtype=np.int64))
        whole = pa.array(ids, self._added.type)
        return pa.concat_arrays([whole.filter(pc.invert(pc.is_in(whole, value_set=self._dropped))), self._added])


def is_placed(known: object) -> bool:
    """Whether the rows of a map stand where its ids say: of the map of a whole release, or of one that deltas changed."""
    return isinstance(known.whole if isinstance(known, ChangedIds) else known, PlacedIds)


@numba.njit(nogil=True, cache=True)
def amend(
    added_starts: Any,
    added_keys: Any,
    added_rows: Any,
    added_shift: Any,
    dropped_starts: Any,
    dropped_keys: Any,
    dropped_rows: Any,
    dropped_shift: Any,
    num_unknown: Any,
    missing: Any,
    ids: Any,
    rows: Any,
) -> Any:
    """Mend the rows that the whole map gave; how many ids are unknown."""
    if len(added_keys) == 0 and len(dropped_keys) == 0:
        return num_unknown
    others = np.empty(len(ids), np.int32)
    if len(dropped_keys):
        find_ids(dropped_starts, dropped_keys, dropped_rows, dropped_shift, -1, ids, others)
        for position in range(len(ids)):
            if others[position] >= 0:
                num_unknown += rows[position] != missing
                rows[position] = missing
    if len(added_keys) and num_unknown:
        find_ids(added_starts, added_keys, added_rows, added_shift, -1, ids, others)
        for position in range(len(ids)):
            if others[position] >= 0:
                num_unknown -= 1
                rows[position] = others[position]
    return num_unknown
