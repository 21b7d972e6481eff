"""Ranking metrics of one model's scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from multifacet.inputs import expect_type
from multifacet.ranking.evaluation.calibration import as_numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray


_LOG_CLIP = 1e-7
NO_WEIGHTS = np.zeros(0, np.int64)


def roc_auc(labels: NDArray[Any], scores: NDArray[Any], weights: NDArray[Any] | None = None) -> float:
    """Compute the area under the ROC curve; tied scores count half.

    Args:
        labels: 0 or 1, [n].
        scores: [n].
        weights: What each row counts for, [n]; None: 1. A whole number counts as so many rows.

    Returns:
        Area in [0, 1].

    Raises:
        ValueError: If only one class is present, a label is neither 0 nor 1, a score is not finite, or a weight is negative
            or not finite, or a class has only weights of zero.

    Example:
        >>> roc_auc(np.array([0, 1, 1]), np.array([0.1, 0.1, 0.9]))
        0.75
    """
    order, tie_ends = presort(labels, scores)
    shares = NO_WEIGHTS if weights is None else row_weights(labels, weights, order)
    return float(weighted_roc_auc(labels[order] > 0, np.zeros(len(labels), np.int64), tie_ends, np.ones(1, np.int64), shares))


def pr_auc(labels: NDArray[Any], scores: NDArray[Any], weights: NDArray[Any] | None = None) -> float:
    """Compute the area under the precision-recall curve as average precision (no interpolation).

    Args:
        labels: 0 or 1, [n].
        scores: [n].
        weights: What each row counts for, [n]; None: 1. A whole number counts as so many rows.

    Returns:
        Sum over thresholds of precision times the gain of recall.

    Raises:
        ValueError: As `roc_auc`.
    """
    order, tie_ends = presort(labels, scores)
    shares = row_weights(labels, weights, order)[::-1]
    ends = len(labels) - np.concatenate([[0], tie_ends[:-1]])  # rows at or above each distinct score
    positives = np.cumsum(shares * (labels[order][::-1] > 0))[ends - 1][::-1]
    above = np.cumsum(shares)[ends - 1][::-1]
    precision = positives / np.where(above > 0, above, 1)
    gains = np.diff(positives, prepend=0) / positives[-1]
    return float((precision * gains).sum())


def log_loss(labels: NDArray[Any], probabilities: NDArray[Any], weights: NDArray[Any] | None = None) -> float:
    """Compute the mean binary cross entropy in nats, weighted if so asked; probabilities are clipped to [1e-7, 1 - 1e-7].

    Raises:
        ValueError: If a label is neither 0 nor 1, a probability is none, the columns differ in length or are empty, or a weight
            is negative or not finite, or all are zero.
    """
    _check_columns(labels, probabilities, "probabilities")
    if not len(labels) or not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels hold the values {np.unique(labels).tolist()[:5]}; expected 0 and 1 and nothing else")
    if not np.isfinite(probabilities).all():
        raise ValueError(f"{int((~np.isfinite(probabilities)).sum())} of {len(labels)} probabilities are not finite")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities are not all within [0, 1]; pass probabilities, not logits")
    weights = None if weights is None else _checked_weights(labels, weights)
    clipped = np.clip(probabilities.astype(np.float64), _LOG_CLIP, 1 - _LOG_CLIP)
    losses = -np.where(labels > 0, np.log(clipped), np.log1p(-clipped))
    return float(losses.mean() if weights is None else np.average(losses, weights=weights))


def group_roc_auc(
    labels: NDArray[Any], scores: NDArray[Any], groups: NDArray[Any], weights: NDArray[Any] | None = None
) -> float:
    """Compute the mean over groups, such as users, of the ROC-AUC within each (GAUC; Zhou et al. 2018, arXiv 1706.06978).

    It tells how well a user's own candidates are ordered, which is all that a ranker does. A group counts for as much as its
    rows; one without both labels tells nothing and is left out.

    Args:
        labels: 0 or 1, [n].
        scores: [n].
        groups: Group of each row, [n].
        weights: What each row counts for, [n]; None: 1. A whole number counts as so many rows.

    Returns:
        Area in [0, 1]; NaN if no group has both labels.

    Raises:
        ValueError: As `roc_auc`, or if the groups are not as many as the rows.

    Example:
        >>> group_roc_auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.8, 0.9]), np.array([7, 7, 8, 8]))
        1.0
    """
    presort(labels, scores)
    if np.shape(groups) != np.shape(labels):
        raise ValueError(f"labels are {list(np.shape(labels))} and groups {list(np.shape(groups))}; expected one axis alike")
    _, group = np.unique(groups, return_inverse=True)
    order = np.lexsort((scores, group))
    area, share = _group_areas(labels[order] > 0, scores[order], group[order], row_weights(labels, weights, order))
    return float(area / share) if share else float("nan")


def normalized_entropy(labels: NDArray[Any], probabilities: NDArray[Any], weights: NDArray[Any] | None = None) -> float:
    """Compute log loss over the entropy of always predicting the labels' mean (He et al. 2014); below 1 is better.

    Raises:
        ValueError: As `log_loss`, or if the labels are all alike.
    """
    loss = log_loss(labels, probabilities, weights)
    mean = np.average(labels.astype(np.float64), weights=weights)
    if not 0 < mean < 1:
        raise ValueError(f"the labels that count are all {mean:.0f}, and their entropy is 0: normalized entropy needs both")
    return loss / log_loss(labels, np.full(len(labels), mean), weights)


def presort(labels: NDArray[Any], scores: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows by ascending score, and the end of each run of tied scores."""
    _check_columns(labels, scores, "scores")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    found = np.unique(labels).tolist()
    if found != [0, 1]:
        raise ValueError(f"labels hold the values {found[:5]}; ROC-AUC needs both 0 and 1 and nothing else")
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    return order, np.append(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, len(ordered))


def _check_columns(labels: NDArray[Any], values: NDArray[Any], name: str) -> None:
    for what, column in (("labels", labels), (name, values)):
        as_numbers(what, column)
        expect_type(what, column, np.ndarray)
    if labels.shape != values.shape or labels.ndim != 1:
        raise ValueError(f"labels are {list(labels.shape)} and {name} {list(values.shape)}; expected one axis alike")


def _checked_weights(labels: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
    shares = as_numbers("weights", weights).astype(np.float64)
    if shares.shape != labels.shape:
        raise ValueError(f"labels are {list(labels.shape)} and weights {list(shares.shape)}; expected one axis alike")
    if not (np.isfinite(shares) & (shares >= 0)).all() or not shares.any():
        raise ValueError("weights must be finite and not negative, and not all zero")
    return shares


def row_weights(
    labels: NDArray[Any], weights: NDArray[Any] | None, order: NDArray[np.int64]
) -> NDArray[np.int64] | NDArray[np.float64]:
    """Return what sorted rows count for: integers where they have no weights, which add up exactly."""
    if weights is None:
        return np.ones(len(labels), np.int64)
    shares = _checked_weights(labels, weights)
    for label in (0, 1):
        if not shares[labels == label].any():
            raise ValueError(f"the rows of label {label} all have weight zero; ROC-AUC needs both labels")
    return shares[order]


@numba.njit(nogil=True, cache=True)
def weighted_roc_auc(
    positive: NDArray[np.bool_],
    user_idx: NDArray[np.int64],
    tie_ends: NDArray[np.int64],
    draws: NDArray[np.int64],
    weights: NDArray[Any],
) -> float:
    """Compute ROC-AUC with each row counted as often as its user was drawn times its weight; rows are sorted by score."""
    # Twice the number of (positive, negative) pairs in order, so that a tie counts 1: all in integers, without weights.
    nothing = weights.dtype.type(0)
    weighted = len(weights) > 0
    ordered_pairs = nothing
    negatives_below = nothing
    num_positives = nothing
    start = 0
    for end in tie_ends:
        tied_positives = nothing
        tied_negatives = nothing
        for row in range(start, end):
            count = draws[user_idx[row]] + nothing
            if weighted:
                count *= weights[row]
            if positive[row]:
                tied_positives += count
            else:
                tied_negatives += count
        ordered_pairs += tied_positives * (2 * negatives_below + tied_negatives)
        negatives_below += tied_negatives
        num_positives += tied_positives
        start = end
    pairs = 2 * num_positives * negatives_below
    return ordered_pairs / pairs if pairs > 0 else np.nan


@numba.njit(nogil=True, cache=True)
def _group_areas(positive: Any, scores: Any, group: Any, weights: Any) -> Any:
    """Sum the groups' areas times their rows' weights, and those weights; rows are sorted by group and score."""
    nothing = weights[0] - weights[0]
    total, share, start = 0.0, nothing, 0
    while start < len(group):
        pairs = negatives = positives = nothing
        place = start
        while place < len(group) and group[place] == group[start]:
            tied_positives = tied_negatives = nothing
            first = place
            while place < len(group) and group[place] == group[start] and scores[place] == scores[first]:
                if positive[place]:
                    tied_positives += weights[place]
                else:
                    tied_negatives += weights[place]
                place += 1
            pairs += tied_positives * (2 * negatives + tied_negatives)
            negatives += tied_negatives
            positives += tied_positives
        if positives > 0 and negatives > 0:
            total += (positives + negatives) * pairs / (2.0 * positives * negatives)
            share += positives + negatives
        start = place
    return total, share
