"""Ranking metrics with bootstrap intervals over users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from multifacet.inputs import expect_type, kind, number, takes, whole
from multifacet.kernels.threads import run_ranges
from multifacet.ranking.evaluation.calibration import as_numbers, correct_for_sampling
from multifacet.ranking.examples.examples import Examples

if TYPE_CHECKING:
    from numpy.typing import NDArray


_LOG_CLIP = 1e-7
_NO_WEIGHTS = np.zeros(0, np.int64)


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
    order, tie_ends = _presort(labels, scores)
    shares = _NO_WEIGHTS if weights is None else _row_weights(labels, weights, order)
    return float(_weighted_roc_auc(labels[order] > 0, np.zeros(len(labels), np.int64), tie_ends, np.ones(1, np.int64), shares))


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
    order, tie_ends = _presort(labels, scores)
    shares = _row_weights(labels, weights, order)[::-1]
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
    _presort(labels, scores)
    if np.shape(groups) != np.shape(labels):
        raise ValueError(f"labels are {list(np.shape(labels))} and groups {list(np.shape(groups))}; expected one axis alike")
    _, group = np.unique(groups, return_inverse=True)
    order = np.lexsort((scores, group))
    area, share = _group_areas(labels[order] > 0, scores[order], group[order], _row_weights(labels, weights, order))
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
    order, tie_ends = _presort(labels, scores)
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
    shares = _NO_WEIGHTS if weights is None else _row_weights(labels, weights, order)
    areas = np.empty(num_resamples, dtype=np.float64)

    def resample(start: int, stop: int) -> None:
        for resample_number in range(start, stop):
            areas[resample_number] = _weighted_roc_auc(positive, row_user_idx, tie_ends, draws[resample_number], shares)

    run_ranges(resample, num_resamples, min_size=8)
    return areas


@takes(confidence=number(above=0, below=1), num_resamples=whole(1), seed=whole(0))
def evaluate(
    scores: NDArray[np.float32],
    examples: Examples,
    *,
    num_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Measure scores against labels; where examples have weights, each counts for its weight in all but the numbers of them.

    Args:
        scores: Probabilities of (ctr, cvr), [n, 2].
        examples: The scored examples.
        num_resamples: Bootstrap resamples of users for the ROC-AUC's interval.
        confidence: Coverage of the interval.
        seed: Seed of the bootstrap.

    Returns:
        Under "ctr", and under "cvr" over the examples whose label is known (absent if there are none or they are
        all alike): num_examples, num_positives, roc_auc, roc_auc_low, roc_auc_high, group_roc_auc (within users; absent if no
        user has both labels), pr_auc, log_loss,
        normalized_entropy and calibration (mean prediction / mean label). For "ctr" also calibration_corrected:
        the same over all exposures that could be drawn, with predictions and rows corrected for the sampling.

    Raises:
        ValueError: If the shapes do not match, a score is no probability, or the CTR labels are all alike.
    """
    expect_type("scores", scores, np.ndarray)
    expect_type("examples", examples, Examples)
    if scores.shape != (len(examples), 2):
        raise ValueError(f"scores are {list(scores.shape)}; expected [{len(examples)}, 2], columns ctr and cvr")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("scores are not all within [0, 1]; pass probabilities, not logits")
    metrics = {
        "ctr": _task_metrics(
            scores[:, 0],
            examples.ctr_label,
            examples.user_id,
            examples.weight,
            num_resamples=num_resamples,
            confidence=confidence,
            seed=seed,
        )
    }
    metrics["ctr"]["calibration_corrected"] = _calibration_corrected(scores[:, 0], examples)
    known = np.isfinite(examples.cvr_label)
    if len(np.unique(examples.cvr_label[known])) == 2:
        metrics["cvr"] = _task_metrics(
            scores[known, 1],
            examples.cvr_label[known],
            examples.user_id[known],
            None if examples.weight is None else examples.weight[known],
            num_resamples=num_resamples,
            confidence=confidence,
            seed=seed,
        )
    return metrics


@takes(confidence=number(above=0, below=1), num_resamples=whole(1), seed=whole(0))
def compare(
    scores: NDArray[np.float32],
    baseline: NDArray[np.float32],
    examples: Examples,
    *,
    num_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Measure the difference in ROC-AUC between two models on the same resamples of users, by the examples' weights if any.

    Args:
        scores: Probabilities of (ctr, cvr), [n, 2].
        baseline: The same of the model to compare with.
        examples: The scored examples.
        num_resamples: Bootstrap resamples of users.
        confidence: Coverage of the interval.
        seed: Seed of the bootstrap.

    Returns:
        Under "ctr" and, where labels are known, "cvr": difference, difference_low and difference_high of ROC-AUC, and
        p_value, two-sided: twice the smaller share of resamples on either side of no difference, at least
        2 / (num_resamples + 1), which is as little as so many resamples can tell.
    """
    expect_type("examples", examples, Examples)
    for name, values in (("scores", scores), ("baseline", baseline)):
        expect_type(name, values, np.ndarray)
        if values.shape != (len(examples), 2):
            raise ValueError(f"{name} is {list(values.shape)}; expected [{len(examples)}, 2], columns ctr and cvr")
    differences: dict[str, dict[str, float]] = {}
    for task, (column, labels) in enumerate((("ctr", examples.ctr_label), ("cvr", examples.cvr_label))):
        known = np.isfinite(labels)
        if len(np.unique(labels[known])) < 2:
            continue
        users = examples.user_id[known]
        pair = [values[known, task] for values in (scores, baseline)]
        weights = None if examples.weight is None else examples.weight[known]
        areas = [roc_auc(labels[known], values, weights) for values in pair]
        resampled = [
            bootstrap_roc_auc(labels[known], values, users, num_resamples=num_resamples, seed=seed, weights=weights)
            for values in pair
        ]
        resampled_difference = resampled[0] - resampled[1]
        low, high = _interval(resampled_difference, confidence)
        differences[column] = {
            "difference": areas[0] - areas[1],
            "difference_low": low,
            "difference_high": high,
            "p_value": _p_value(resampled_difference),
        }
    return differences


def _task_metrics(
    scores: NDArray[np.float32],
    labels: NDArray[np.float32],
    users: NDArray[np.int64],
    weights: NDArray[np.float32] | None,
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, float]:
    resampled = bootstrap_roc_auc(labels, scores, users, num_resamples=num_resamples, seed=seed, weights=weights)
    low, high = _interval(resampled, confidence)
    within = group_roc_auc(labels, scores, users, weights)
    predicted, observed = (np.average(values.astype(np.float64), weights=weights) for values in (scores, labels))
    grouped = {} if np.isnan(within) else {"group_roc_auc": within}
    return {
        "num_examples": len(labels),
        "num_positives": int(labels.sum()),
        "roc_auc": roc_auc(labels, scores, weights),
        "roc_auc_low": low,
        "roc_auc_high": high,
        **grouped,
        "pr_auc": pr_auc(labels, scores, weights),
        "log_loss": log_loss(labels, scores, weights),
        "normalized_entropy": normalized_entropy(labels, scores, weights),
        "calibration": float(predicted / observed),
    }


def _calibration_corrected(scores: NDArray[np.float32], examples: Examples) -> float:
    """Compute predicted over observed responses over all exposures that could be drawn.

    A drawn negative stands for 1 / sampling_rate exposures.
    """
    corrected = correct_for_sampling(scores, examples.negative_rate)
    weight = 1 / examples.sampling_rate.astype(np.float64)
    if examples.weight is not None:
        weight *= examples.weight
    return float((weight * corrected).sum() / (weight * examples.ctr_label).sum())


def _interval(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _p_value(differences: NDArray[np.float64]) -> float:
    known = differences[np.isfinite(differences)]
    # One more on each side, so that no finite number of resamples makes a difference certain.
    tail = min((known <= 0).sum(), (known >= 0).sum()) + 1
    return min(1.0, 2 * float(tail) / (len(known) + 1))


def _presort(labels: NDArray[Any], scores: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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


def _row_weights(
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
def _weighted_roc_auc(
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
