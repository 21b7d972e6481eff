"""Whether predicted probabilities are what happens: by bucket, and after negatives were drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class CalibrationBucket:
    """Examples of similar predictions.

    Attributes:
        low: Smallest prediction.
        high: Largest prediction.
        num_examples: Examples, unweighted.
        predicted: Mean prediction.
        observed: Mean label.
    """

    low: float
    high: float
    num_examples: int
    predicted: float
    observed: float

    @property
    def ratio(self) -> float:
        """Predicted over observed; infinite where nothing happened."""
        return self.predicted / self.observed if self.observed > 0 else float("inf")


def calibration_buckets(
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    *,
    num_buckets: int = 10,
    weights: NDArray[Any] | None = None,
) -> list[CalibrationBucket]:
    """Compare predictions with labels in buckets of about equally many examples.

    Equal predictions are never divided between buckets, so there may be fewer than asked for.

    Args:
        labels: 0 or 1, [n].
        probabilities: [n].
        num_buckets: Buckets, at most.
        weights: What each example counts for, such as 1 / its sampling rate, [n]; None: 1.

    Raises:
        ValueError: If there are no examples, shapes differ, or a probability is none.
    """
    values = np.asarray(probabilities, np.float64)
    shares = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    if labels.shape != values.shape or shares.shape != values.shape or not len(values):
        raise ValueError(f"labels {list(labels.shape)}, probabilities {list(values.shape)}: expected one axis alike, not empty")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("probabilities are not all within [0, 1]; pass probabilities, not logits")
    if num_buckets < 1:
        raise ValueError(f"num_buckets is {num_buckets}; expected at least 1")
    edges = np.unique(np.quantile(values, np.linspace(0, 1, num_buckets + 1)[1:-1]))
    bucket_of = np.searchsorted(edges, values)
    buckets = []
    for bucket in np.unique(bucket_of):
        chosen = bucket_of == bucket
        total = shares[chosen].sum()
        buckets.append(
            CalibrationBucket(
                low=float(values[chosen].min()),
                high=float(values[chosen].max()),
                num_examples=int(chosen.sum()),
                predicted=float((shares[chosen] * values[chosen]).sum() / total),
                observed=float((shares[chosen] * labels[chosen]).sum() / total),
            )
        )
    return buckets


def expected_calibration_error(buckets: list[CalibrationBucket]) -> float:
    """Compute the mean distance of predicted and observed over buckets, by their number of examples."""
    total = sum(bucket.num_examples for bucket in buckets)
    return sum(bucket.num_examples * abs(bucket.predicted - bucket.observed) for bucket in buckets) / total


def correct_for_sampling(probabilities: NDArray[Any], negative_rate: NDArray[Any] | float) -> NDArray[np.float64]:
    """Turn probabilities of a model that was trained on drawn negatives into those over all exposures.

    If negatives were kept (or drawn) at a rate r and positives all kept, the model's odds are too high by 1 / r, so
    ``p' = p r / (p r + 1 - p)`` (He et al. 2014, section 6.3, here with a rate for each example).

    Args:
        probabilities: [n].
        negative_rate: Expected number of times that the example would be drawn were it a negative; above 0.

    Returns:
        float64 [n].

    Raises:
        ValueError: If a rate is not a positive number.

    Example:
        >>> correct_for_sampling(np.array([0.5]), 0.25)
        array([0.2])
    """
    rate = np.asarray(negative_rate, np.float64)
    if not ((rate > 0) & np.isfinite(rate)).all():
        raise ValueError("negative_rate holds values that are not positive numbers")
    values = np.asarray(probabilities, np.float64)
    # Divided by the rate, so that a probability of 1 stays 1 at any rate.
    return values / (values + (1 - values) / rate)
