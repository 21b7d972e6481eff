"""The variance of ROC-AUC in closed form, and tests between models on the same examples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from multifacet.inputs import expect_type, number
from multifacet.ranking.evaluation.metrics import roc_auc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class DeLongTest:
    """Two models' ROC-AUC on the same examples.

    Attributes:
        roc_auc: Area of the first.
        baseline_roc_auc: Area of the second.
        difference: First minus second.
        difference_low: Lower end of the difference's interval.
        difference_high: Upper end.
        p_value: Two-sided, of no difference; 1 where the models rank alike.
    """

    roc_auc: float
    baseline_roc_auc: float
    difference: float
    difference_low: float
    difference_high: float
    p_value: float


def delong_covariance(labels: NDArray[Any], scores: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Estimate the covariance matrix of several models' ROC-AUC (DeLong, DeLong and Clarke-Pearson 1988).

    In O(n log n) by mid-ranks (Sun and Xu 2014). It takes examples as independent; where a user has many, as is usual
    in ranking, the variance is too small: see `evaluation.compare`, which resamples users.

    Args:
        labels: 0 or 1, [n].
        scores: Each model's scores, [n] each.

    Returns:
        float64 [models, models].

    Raises:
        ValueError: As `roc_auc`, or there are fewer than two positives or negatives.
    """
    expect_type("scores", scores, list, tuple, np.ndarray, hint="an array for each model")
    if not len(scores):
        raise ValueError("there are no models' scores: give those of one or more")
    for values in scores:
        roc_auc(labels, values)  # refuses what has no area
    positive = labels > 0
    num_positives, num_negatives = int(positive.sum()), int((~positive).sum())
    if min(num_positives, num_negatives) < 2:
        raise ValueError(f"{num_positives} positives and {num_negatives} negatives; a variance needs two of each")
    by_positive, by_negative = [], []
    for values in scores:
        ranks = _midranks(values)
        # Share of the other class that each example is ranked on the right side of.
        by_positive.append((ranks[positive] - _midranks(values[positive])) / num_negatives)
        by_negative.append(1 - (ranks[~positive] - _midranks(values[~positive])) / num_positives)
    covariance: NDArray[np.float64] = (
        np.atleast_2d(np.cov(by_positive)) / num_positives + np.atleast_2d(np.cov(by_negative)) / num_negatives
    )
    return covariance


def delong_interval(labels: NDArray[Any], scores: NDArray[Any], *, confidence: float = 0.95) -> tuple[float, float]:
    """Compute an interval of ROC-AUC, normal on the logit scale so that it stays within 0 and 1.

    Args:
        labels: 0 or 1, [n].
        scores: [n].
        confidence: Coverage.

    Returns:
        Lower and upper end.
    """
    area = roc_auc(labels, scores)
    deviation = math.sqrt(max(delong_covariance(labels, [scores])[0, 0], 0.0))
    if area in (0.0, 1.0) or deviation == 0:
        return area, area
    center, reach = math.log(area / (1 - area)), _quantile(confidence) * deviation / (area * (1 - area))
    return 1 / (1 + math.exp(reach - center)), 1 / (1 + math.exp(-reach - center))


def delong_test(labels: NDArray[Any], scores: NDArray[Any], baseline: NDArray[Any], *, confidence: float = 0.95) -> DeLongTest:
    """Test whether two models' ROC-AUC differ on the same examples.

    Args:
        labels: 0 or 1, [n].
        scores: The model's scores, [n].
        baseline: The other's, [n].
        confidence: Coverage of the difference's interval.
    """
    areas = roc_auc(labels, scores), roc_auc(labels, baseline)
    covariance = delong_covariance(labels, [scores, baseline])
    deviation = math.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0.0))
    difference, reach = areas[0] - areas[1], _quantile(confidence) * deviation
    # Two models that rank alike differ by nothing at all.
    p_value = math.erfc(abs(difference) / deviation / math.sqrt(2)) if deviation > 0 else float(difference == 0)
    return DeLongTest(
        roc_auc=areas[0],
        baseline_roc_auc=areas[1],
        difference=difference,
        difference_low=difference - reach,
        difference_high=difference + reach,
        p_value=p_value,
    )


def _quantile(confidence: float) -> float:
    number(above=0, below=1)("confidence", confidence)
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _midranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Rank values from 1; tied values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks
