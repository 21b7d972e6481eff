"""The k best columns of each row of a score matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from multifacet.tables.threads import run_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["top_k"]

_MIN_SCORES_PER_THREAD = 1 << 17


def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.int32]:
    """Find the k best columns of each row, best first; of equal scores the lower column is the better one.

    A row is read once and compared with the k-th best score so far, which almost no score passes: about the cost of
    reading, where a selection or a sort of the row costs ten times that.

    Args:
        scores: float32 [R, N], without NaN.
        k: columns wanted of each row, 1 to N.

    Returns:
        int32 [R, k].

    Raises:
        ValueError: if k is out of range.

    Example:
        >>> top_k(np.array([[0.1, 0.7, 0.7, 0.3]], dtype=np.float32), 3)
        array([[1, 2, 3]], dtype=int32)
    """
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k is {k}, but a row has {scores.shape[1]} scores; expected 1 to that")
    best = np.empty((len(scores), k), dtype=np.int32)
    min_rows = max(1, _MIN_SCORES_PER_THREAD // scores.shape[1])
    run_ranges(lambda start, stop: _top_k(scores, best, start, stop), len(scores), min_size=min_rows)
    return best


@numba.njit(nogil=True, cache=True)
def _top_k(scores: Any, best: Any, start: int, stop: int) -> None:
    k = best.shape[1]
    kept = np.empty(k, dtype=np.float32)
    for row in range(start, stop):
        count = 0
        for column in range(scores.shape[1]):
            score = scores[row, column]
            if count == k:
                if score <= kept[k - 1]:
                    continue
                place = k - 1
            else:
                place = count
                count += 1
            while place > 0 and kept[place - 1] < score:
                kept[place] = kept[place - 1]
                best[row, place] = best[row, place - 1]
                place -= 1
            kept[place] = score
            best[row, place] = column
