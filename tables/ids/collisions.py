"""How the ids of a list share the rows of a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class CollisionReport:
    """How many ids of a list share their place in a table.

    Attributes:
        num_ids: Distinct ids in the list.
        num_rows: The table's rows.
        num_hashes: Rows that an id reads.
        rows_used: Rows that at least one of the ids reads.
        colliding_ids: Ids whose rows (all of them and in order, when there are several hashes) are also another id's.
        collision_rate: colliding_ids / num_ids.
        expected_collision_rate: The same under a uniform random hash; 0 for an exact map.
        max_ids_per_row: The ids that read the fullest row.
        oov_ids: Ids that an exact map does not know; they all read its out-of-vocabulary row.
    """

    num_ids: int
    num_rows: int
    num_hashes: int
    rows_used: int
    colliding_ids: int
    collision_rate: float
    expected_collision_rate: float
    max_ids_per_row: int
    oov_ids: int

    @classmethod
    def of(cls, rows: NDArray[np.int32], *, num_rows: int, oov_row: int | None) -> Self:
        """Counts.

        Args:
            rows: int32 [n, num_hashes], the rows of n distinct ids.
            num_rows: The table's rows.
            oov_row: An exact map's out-of-vocabulary row; None for a hashed map.
        """
        num_ids, num_hashes = rows.shape
        if num_hashes == 1:
            _, loads = np.unique(rows, return_counts=True)
            sharing = loads
        else:
            _, sharing = np.unique(rows, axis=0, return_counts=True)
            _, loads = np.unique(_distinct_within_ids(rows), return_counts=True)
        colliding_ids = int(sharing[sharing > 1].sum())
        return cls(
            num_ids=num_ids,
            num_rows=num_rows,
            num_hashes=num_hashes,
            rows_used=len(loads),
            colliding_ids=colliding_ids,
            collision_rate=colliding_ids / max(1, num_ids),
            expected_collision_rate=_expected_rate(num_ids, num_rows**num_hashes) if oov_row is None else 0.0,
            max_ids_per_row=int(loads.max(initial=0)),
            oov_ids=0 if oov_row is None else int((rows == oov_row).sum()),
        )


def _distinct_within_ids(rows: NDArray[np.int32]) -> NDArray[np.int32]:
    """Drops the rows that one id reads twice, which are not shared by that."""
    ordered = np.sort(rows, axis=1)
    first = np.ones(ordered.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return ordered[first]


def _expected_rate(num_ids: int, num_places: int) -> float:
    """1 - (1 - 1 / places) ** (ids - 1): the chance that another id falls on the same place."""
    if num_ids <= 1:
        return 0.0
    if num_places == 1:
        return 1.0
    return -math.expm1((num_ids - 1) * math.log1p(-1.0 / num_places))
