"""The known answers of queries, for what is drawn against them to leave out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

__all__ = ["AnswerIndex"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerIndex:
    """The known answers of each distinct query, as compressed sparse rows.

    Attributes:
        queries: the number of each edge's query among the distinct ones, int32 [E].
        indptr: int64 [Q + 1].
        answers: rows that answer a query, ascending, int32 [indptr[-1]].
    """

    queries: NDArray[np.int32]
    indptr: NDArray[np.int64]
    answers: NDArray[np.int32]

    @classmethod
    def of(cls, known: NDArray[np.int32], relations: NDArray[np.int32], asked: NDArray[np.int32]) -> Self:
        """Index edges by (known end, relation), in memory of the order of their number.

        Args:
            known: the end that queries are made of, int32 [E].
            relations: int32 [E].
            asked: the end that answers them, int32 [E].
        """
        order = np.lexsort((asked, relations, known))
        starts = np.ones(len(order), dtype=np.bool_)
        starts[1:] = (known[order[1:]] != known[order[:-1]]) | (relations[order[1:]] != relations[order[:-1]])
        queries = np.empty(len(order), dtype=np.int32)
        queries[order] = np.cumsum(starts, dtype=np.int32) - 1
        indptr = np.append(np.flatnonzero(starts), len(order)).astype(np.int64)
        return cls(queries=queries, indptr=indptr, answers=asked[order])
