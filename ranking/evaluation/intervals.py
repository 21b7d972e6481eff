"""Intervals of ROC-AUC by resampling users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from multifacet.inputs import kind, takes, whole
from multifacet.kernels.threads import run_ranges
from multifacet.ranking.evaluation.metrics import NO_WEIGHTS, presort, row_weights, weighted_roc_auc

if TYPE_CHECKING:
    from numpy.typing import NDArray


@takes(num_resamples=whole(1), seed=whole(0), population=kind(np.ndarray))
def bootstrap_roc_auc(
    labels: NDArray[Any],
    scores: NDArray[Any],
    users: NDArray[Any],
    *,
    num_resamples: int = 200,
    seed: int = 0,
    population: NDArray[Any] | None = None,
    weights: NDArray[Any] | None = None,
) -> NDArray[np.float64]:
    """Compute ROC-AUC on resamples of users: a user's rows are drawn together, with replacement.

    The rows of one user are not independent, so resampling rows would give intervals that are too narrow. The same
    users and seed give the same resamples, so two models' areas can be subtracted resample by resample.

    Args:
        labels: 0 or 1, [n].
        scores: [n].
        users: User of each row, [n].
        num_resamples: Resamples R.
        seed: Seed of the draws.
        population: Distinct users that are drawn from, ascending; those of the rows by default. Named when several sets
            of rows, not all with rows of every user, must get the same resamples.
        weights: What each row counts for, [n]; None: 1. A whole number counts as so many rows.

    Returns:
        float64 [R]; NaN for a resample without positives or without negatives.

    Raises:
        ValueError: As `roc_auc`, or if a row's user is not in the population.
    """
    order, tie_ends = presort(labels, scores)
    if np.shape(users) != labels.shape:
        raise ValueError(f"labels are {list(labels.shape)} and users are {list(np.shape(users))}; expected one axis alike")
    distinct, user_idx = np.unique(users, return_inverse=True)
    if population is not None:
        strangers = np.setdiff1d(distinct, population, assume_unique=True)
        if len(strangers):
            raise ValueError(
                f"{len(strangers)} users, {strangers[0]} the first, are not in the population of {len(population)}"
            )
        user_idx = np.searchsorted(population, distinct)[user_idx]
        distinct = population
    draws = np.random.default_rng(seed).multinomial(len(distinct), np.full(len(distinct), 1 / len(distinct)), num_resamples)
    positive, row_user_idx = labels[order] > 0, user_idx[order]
    shares = NO_WEIGHTS if weights is None else row_weights(labels, weights, order)
    areas = np.empty(num_resamples, dtype=np.float64)

    def resample(start: int, stop: int) -> None:
        for resample_number in range(start, stop):
            areas[resample_number] = weighted_roc_auc(positive, row_user_idx, tie_ends, draws[resample_number], shares)

    run_ranges(resample, num_resamples, min_size=8)
    return areas


def interval(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Give the central interval of resampled values; those that are NaN do not count."""
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def p_value(differences: NDArray[np.float64]) -> float:
    """Give the two-sided p-value of a difference from zero, of its resamples."""
    known = differences[np.isfinite(differences)]
    # One more on each side, so that no finite number of resamples makes a difference certain.
    tail = min((known <= 0).sum(), (known >= 0).sum()) + 1
    return min(1.0, 2 * float(tail) / (len(known) + 1))
