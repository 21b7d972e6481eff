"""A model's metrics with intervals over users, and two models compared on the same examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from multifacet.inputs import expect_type, number, takes, whole
from multifacet.ranking.evaluation.calibration import correct_for_sampling
from multifacet.ranking.evaluation.intervals import bootstrap_roc_auc, interval, p_value
from multifacet.ranking.evaluation.metrics import (
    group_roc_auc,
    log_loss,
    normalized_entropy,
    pr_auc,
    roc_auc,
)
from multifacet.ranking.examples.examples import Examples

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
        low, high = interval(resampled_difference, confidence)
        differences[column] = {
            "difference": areas[0] - areas[1],
            "difference_low": low,
            "difference_high": high,
            "p_value": p_value(resampled_difference),
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
    low, high = interval(resampled, confidence)
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
