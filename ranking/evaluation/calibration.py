"""Whether predicted probabilities are what happens: by bucket, and after negatives were drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from multifacet.inputs import expect_type, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        weight: What its examples count for together: their number, without weights.
    """

    low: float
    high: float
    num_examples: int
    predicted: float
    observed: float
    weight: float = 0.0

    def __post_init__(self) -> None:
        if not self.weight:
            object.__setattr__(self, "weight", float(self.num_examples))

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
        ValueError: If there are no examples, shapes differ, a probability is none, a label is neither 0 nor 1, or a weight is
            negative or not finite.
        TypeError: If something holds no numbers.
    """
    values = _probabilities(probabilities)
    truth = as_numbers("labels", labels)
    shares = np.ones(len(values)) if weights is None else as_numbers("weights", weights)
    if truth.shape != values.shape or shares.shape != values.shape or not len(values):
        raise ValueError(
            f"labels {list(truth.shape)}, probabilities {list(values.shape)}, weights {list(shares.shape)}: expected one axis "
            "alike, not empty"
        )
    if not ((truth == 0) | (truth == 1)).all():
        raise ValueError(f"labels hold {truth[(truth != 0) & (truth != 1)][0]:g}; expected 0 and 1 only")
    if not ((shares >= 0) & np.isfinite(shares)).all() or not shares.sum() > 0:
        raise ValueError("weights must be finite and not negative, and not all zero")
    whole()("num_buckets", num_buckets)
    if num_buckets < 1:
        raise ValueError(f"num_buckets is {num_buckets}; expected at least 1")
    edges = np.unique(np.quantile(values, np.linspace(0, 1, num_buckets + 1)[1:-1]))
    bucket_of = np.searchsorted(edges, values)
    buckets = []
    for bucket in np.unique(bucket_of):
        chosen = bucket_of == bucket
        total = shares[chosen].sum()
        if total == 0:
            continue
        buckets.append(
            CalibrationBucket(
                low=float(values[chosen].min()),
                high=float(values[chosen].max()),
                num_examples=int(chosen.sum()),
                predicted=float((shares[chosen] * values[chosen]).sum() / total),
                observed=float((shares[chosen] * truth[chosen]).sum() / total),
                weight=float(total),
            )
        )
    return buckets


def expected_calibration_error(buckets: Sequence[CalibrationBucket]) -> float:
    """Compute the mean distance of predicted and observed over buckets, by what their examples count for.

    Raises:
        ValueError: If there are no buckets.
    """
    expect_type("buckets", buckets, list, tuple, hint="calibration_buckets gives them")
    if not buckets:
        raise ValueError("there are no buckets: give those of calibration_buckets")
    for bucket in buckets:
        expect_type("a part of buckets", bucket, CalibrationBucket)
    total = sum(bucket.weight for bucket in buckets)
    return sum(bucket.weight * abs(bucket.predicted - bucket.observed) for bucket in buckets) / total


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
        ValueError: If a rate is not a positive number, a probability is none, or they are not as many.
        TypeError: If something holds no numbers.

    Example:
        >>> correct_for_sampling(np.array([0.5]), 0.25)
        array([0.2])
    """
    rate = as_numbers("negative_rate", negative_rate)
    if not ((rate > 0) & np.isfinite(rate)).all():
        raise ValueError("negative_rate holds values that are not positive numbers")
    values = _probabilities(probabilities)
    if rate.ndim and rate.shape != values.shape:
        raise ValueError(f"{list(values.shape)} probabilities and {list(rate.shape)} rates; expected one rate, or one for each")
    # Divided by the rate, so that a probability of 1 stays 1 at any rate.
    return values / (values + (1 - values) / rate)


def as_numbers(what: str, given: Any) -> NDArray[np.float64]:
    """Take an array of numbers as float64.

    Args:
        what: Its name, for the error.
        given: An array, list or tensor.

    Raises:
        TypeError: If it holds no numbers.
    """
    array = np.asarray(given)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{what} are {array.dtype}; expected numbers")
    return array.astype(np.float64)


def _probabilities(given: Any) -> NDArray[np.float64]:
    values = as_numbers("probabilities", given)
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        raise ValueError(
            f"probabilities are not all within [0, 1], such as {values[wrong][0]:g}; pass probabilities, not logits"
        )
    return values
