"""Losses of queries over shared candidates: their gradients of the scores, in place, row by row, without autograd.

A loss reads scores [C, B, N] (C chunks of B queries, each chunk with N candidates of its own) and leaves in their place the
derivative of the weighted loss. What a query is scored against is `scores + bias`, where a bias of -inf leaves a candidate
out: it gets a derivative of exactly 0. Each query has one target among its chunk's candidates; all others are negatives.

    softmax            log of the sum of exp(s_j), minus s_target
    logistic           log(1 + exp(-s_target - margin)) + mean of log(1 + exp(s_j + margin)) over the negatives
    self-adversarial   the same, the negatives weighted by their softmax at a temperature, held constant (Sun et al., ICLR 2019)
    margin             mean of max(0, margin - s_target + s_j) over the negatives

All arrays are float32 and int32 and are given whole; the kernels release the GIL and run on the caller's thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numba
import numpy as np

from tables.exponential import exp_nonpositive, log1p_unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LossName", "RowLoss"]

LossName = Literal["softmax", "logistic", "margin", "self_adversarial"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLoss:
    """A loss over the scores of queries against their chunk's candidates.

    Attributes:
        name: which loss.
        margin: of margin; for logistic and self_adversarial, what is added to every score before its sigmoid (a distance is
            never positive, so without one no score would pass for likely).
        temperature: of self_adversarial: factor of the scores in the softmax that weighs the negatives.

    Example:
        >>> scores, bias = np.zeros((1, 1, 4), dtype=np.float32), np.zeros((1, 4), np.float32)
        >>> loss = RowLoss(name="softmax")(
        ...     scores, bias=bias, targets=np.zeros((1, 1), np.int32), weights=np.ones((1, 1), np.float32)
        ... )
        >>> round(loss, 4), scores[0, 0].tolist()
        (1.3863, [-0.75, 0.25, 0.25, 0.25])
    """

    name: LossName
    margin: float = 0.0
    temperature: float = 1.0

    def __call__(
        self,
        scores: NDArray[np.float32],
        *,
        bias: NDArray[np.float32],
        targets: NDArray[np.int32],
        weights: NDArray[np.float32],
    ) -> float:
        """Replace scores by the derivatives of the weighted loss.

        Args:
            scores: float32 [C, B, N], contiguous; changed in place.
            bias: added to the scores of a chunk's candidates, float32 [C, N]; -inf leaves a candidate out.
            targets: int32 [C, B], each query's right candidate, whose bias is finite.
            weights: float32 [C, B], what a query's loss is multiplied by in the derivatives. A query of weight 0 is padding:
                it has no loss and derivatives of 0.

        Returns:
            The sum of the queries' losses in nats, unweighted, padding left out.
        """
        if self.name == "softmax":
            return float(_softmax(scores, bias, targets, weights))
        margin = np.float32(self.margin)
        if self.name == "margin":
            return float(_margin(scores, bias, targets, weights, margin))
        temperature = np.float32(self.temperature if self.name == "self_adversarial" else 0.0)
        return float(_logistic(scores, bias, targets, weights, margin, temperature))


# `nnan` and `nsz` in the maximum alone: it does not vectorise otherwise. A NaN still reaches the derivatives.
@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "nnan", "nsz"})
def _add_and_find_largest(row: Any, bias: Any) -> Any:
    largest = np.float32(-np.inf)
    for column in range(len(row)):
        value = row[column] + bias[column]
        row[column] = value
        largest = max(largest, value)
    return largest


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "arcp"}, error_model="numpy")
def _exponentiate(row: Any, largest: Any) -> Any:
    total = np.float32(0.0)
    for column in range(len(row)):
        value = exp_nonpositive(row[column] - largest)
        row[column] = value
        total += value
    return total


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _softmax(scores: Any, bias: Any, targets: Any, weights: Any) -> float:
    loss = 0.0
    for chunk in range(scores.shape[0]):
        for query in range(scores.shape[1]):
            row = scores[chunk, query]
            weight = weights[chunk, query]
            if weight == 0.0:
                row[:] = np.float32(0.0)
                continue
            largest = _add_and_find_largest(row, bias[chunk])
            target = targets[chunk, query]
            chosen = row[target]
            total = _exponentiate(row, largest)
            loss += np.log(total) + largest - chosen
            factor = weight / total
            for column in range(len(row)):
                row[column] *= factor
            row[target] -= weight
    return loss


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "arcp"}, error_model="numpy")
def _logistic(scores: Any, bias: Any, targets: Any, weights: Any, margin: Any, temperature: Any) -> float:
    zero, one = np.float32(0.0), np.float32(1.0)
    shares = np.empty(scores.shape[2], dtype=np.float32)
    loss = 0.0
    for chunk in range(scores.shape[0]):
        for query in range(scores.shape[1]):
            row = scores[chunk, query]
            weight = weights[chunk, query]
            if weight == zero:
                row[:] = zero
                continue
            largest = _add_and_find_largest(row, bias[chunk])
            target = targets[chunk, query]
            chosen = row[target] + margin
            for column in range(len(row)):
                excess = (row[column] - largest) * temperature if temperature > zero else zero
                shares[column] = exp_nonpositive(excess) if row[column] > -np.inf else zero
            shares[target] = zero
            total = zero
            for column in range(len(row)):
                total += shares[column]
            factor = one / total if total > zero else zero
            negatives_loss = zero
            for column in range(len(row)):
                value = max(row[column] + margin, np.float32(-1e30))
                small = exp_nonpositive(-abs(value))
                sigmoid = (one if value > zero else small) / (one + small)
                share = shares[column] * factor
                negatives_loss += share * (max(value, zero) + log1p_unit(small))
                row[column] = weight * share * sigmoid
            small = exp_nonpositive(-abs(chosen))
            loss += max(-chosen, zero) + log1p_unit(small) + negatives_loss
            row[target] = -weight * (small if chosen > zero else one) / (one + small)
    return loss


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "arcp"}, error_model="numpy")
def _margin(scores: Any, bias: Any, targets: Any, weights: Any, margin: Any) -> Any:
    zero, one = np.float32(0.0), np.float32(1.0)
    loss: Any = 0.0
    for chunk in range(scores.shape[0]):
        for query in range(scores.shape[1]):
            row = scores[chunk, query]
            weight = weights[chunk, query]
            if weight == zero:
                row[:] = zero
                continue
            target = targets[chunk, query]
            threshold = row[target] + bias[chunk, target] - margin
            row[target] = -np.float32(np.inf)
            num_negatives = zero
            violated = zero
            excess = zero
            for column in range(len(row)):
                value = row[column] + bias[chunk, column]
                over = value - threshold
                violates = over > zero
                num_negatives += one if value > -np.inf else zero
                violated += one if violates else zero
                excess += over if violates else zero
                row[column] = one if violates else zero
            share = one / max(num_negatives, one)
            loss += excess * share
            for column in range(len(row)):
                row[column] *= weight * share
            row[target] = -weight * share * violated
    return loss
