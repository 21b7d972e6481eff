"""How often rows are positives, and what follows: degree-weighted draws, and the chance of being a candidate."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np

from multifacet.training import AliasSampler, degree_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["Counts", "Frequencies", "count_positives", "write_bias"]


class Counts(NamedTuple):
    """How often rows are positives of one group.

    Attributes:
        rows: those that are, ascending, int32 [n].
        counts: int64 or float64 [n].
    """

    rows: NDArray[np.int32]
    counts: NDArray[Any]


def count_positives(
    positives: NDArray[np.int32], weights: NDArray[np.float64] | None = None, bounds: NDArray[np.int64] | None = None
) -> Iterator[Counts]:
    """Count the positives of edges, group after group.

    Args:
        positives: int32 [E].
        weights: how often each edge counts, float64 [E]; None for once.
        bounds: int64 [G + 1], where the edges lie in G groups, one after the other; None for a single group of all.
    """
    pairs = itertools.pairwise([0, len(positives)] if bounds is None else bounds.tolist())
    for pair in pairs:
        yield _count(positives[slice(*pair)], None if weights is None else weights[slice(*pair)])


def _count(positives: NDArray[np.int32], weights: NDArray[np.float64] | None) -> Counts:
    if weights is None:
        return Counts(*np.unique(positives, return_counts=True))
    rows, places = np.unique(positives, return_inverse=True)
    return Counts(rows, np.bincount(places, weights=weights, minlength=len(rows)))


class Frequencies(NamedTuple):
    """How often rows are positives, group after group.

    Rows that are never a positive are not listed: what a sampler keeps for each of many relations stays as small as its edges.

    Attributes:
        bounds: of the groups in all others, int64 [G + 1].
        seen: the rows, ascending within a group, int32 [bounds[-1]].
        log_missed_positive: log of the chance that one positive is another row, float64.
        log_missed_degree: that one degree-weighted draw is.
        stays: of the alias method, see `AliasSampler`: the chance that a drawn place stays itself, float64.
        alias: the place in its group that it turns into otherwise, int32.
    """

    bounds: NDArray[np.int64]
    seen: NDArray[np.int32]
    log_missed_positive: NDArray[np.float64]
    log_missed_degree: NDArray[np.float64]
    stays: NDArray[np.float64]
    alias: NDArray[np.int32]

    @classmethod
    def of(cls, counted: Counts, num_degree: int, degree_power: float) -> Frequencies:
        """Give one group's."""
        seen, counts = counted
        log_missed_degree, stays, alias = np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int32)
        if num_degree:
            weights = degree_weights(counts, degree_power)
            log_missed_degree = _log_missed(weights / weights.sum())
            stays, alias = AliasSampler(weights).tables
        bounds = np.array([0, len(seen)], dtype=np.int64)
        return cls(bounds, seen, _log_missed(counts / counts.sum()), log_missed_degree, stays, alias)

    @classmethod
    def concatenate(cls, groups: Sequence[Frequencies]) -> Frequencies:
        """Put groups after each other."""
        bounds = np.cumsum([0, *(len(group.seen) for group in groups)])
        return cls(bounds, *(np.concatenate(columns) for columns in zip(*(group[1:] for group in groups), strict=True)))

    def draw(self, groups: NDArray[np.int32], size: int, generator: np.random.Generator) -> NDArray[np.int32]:
        """Draw rows of each of some groups by their weights, int32 [C, size]."""
        begins, ends = self.bounds[groups][:, None], self.bounds[groups + 1][:, None]
        places = generator.integers(0, ends - begins, size=(len(groups), size))
        stays = generator.random(places.shape) < self.stays[begins + places]
        return self.seen[begins + np.where(stays, places, self.alias[begins + places])]


def _log_missed(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log of the chance that one draw is another row."""
    missed: NDArray[np.float64] = np.log1p(-np.minimum(probability, 1.0 - 1e-12))
    return missed


@numba.njit(nogil=True, cache=True, error_model="numpy")
def write_bias(
    rows: Any,
    lengths: Any,
    groups: Any,
    bounds: Any,
    seen: Any,
    log_missed_positive: Any,
    log_missed_degree: Any,
    log_missed_uniform: float,
    num_degree: int,
    full_length: int,
    bias_of_full_chunks: Any,
    bias: Any,
) -> None:
    """Write minus the log of the chance of each of the rows [C, N] to be among its chunk's candidates."""
    unseen = -np.log(max(-np.expm1(log_missed_uniform), 1e-30))
    for chunk in range(len(rows)):
        group_begin, group_end = bounds[groups[chunk]], bounds[groups[chunk] + 1]
        for slot in range(rows.shape[1]):
            row = rows[chunk, slot]
            begin, end = group_begin, group_end
            while begin < end:
                middle = (begin + end) // 2
                if seen[middle] < row:
                    begin = middle + 1
                else:
                    end = middle
            if begin == group_end or seen[begin] != row:
                bias[chunk, slot] = unseen
                continue
            if lengths[chunk] == full_length and len(bias_of_full_chunks):
                bias[chunk, slot] = bias_of_full_chunks[begin]
                continue
            log_missed = log_missed_uniform + (lengths[chunk] - 1) * log_missed_positive[begin]
            if num_degree > 0:
                log_missed += num_degree * log_missed_degree[begin]
            bias[chunk, slot] = -np.log(max(-np.expm1(log_missed), 1e-30))
