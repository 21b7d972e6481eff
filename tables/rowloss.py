"""Losses of queries over shared candidates: their gradients of the scores, in place, row by row, without autograd.

A loss reads the scores [B, N] of a chunk's queries against its candidates and leaves in their place the
derivative of the weighted loss. What a query is scored against is `scores + bias`, where a bias of -inf leaves a candidate
out: it gets a derivative of exactly 0. Each query has one target among its chunk's candidates; all others are negatives.

    softmax            log of the sum of exp(s_j), minus s_target
    logistic           log(1 + exp(-s_target - margin)) + mean of log(1 + exp(s_j + margin)) over the negatives
    self-adversarial   the same, the negatives weighted by their softmax at a temperature, held constant (Sun et al., ICLR 2019)
    margin             mean of max(0, margin - s_target + s_j) over the negatives

All arrays are float32 and int32 and are given whole; the kernels release the GIL and run on the caller's thread.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numba
import numpy as np

from multifacet.tables.exponential import exp_nonpositive, log1p_unit

__all__ = ["RowLoss", "differentiate_rows"]


class RowLoss(IntEnum):
    """A loss over the scores of queries against their chunk's candidates, by the number that kernels know it by."""

    SOFTMAX = 0
    LOGISTIC = 1
    SELF_ADVERSARIAL = 2
    MARGIN = 3


@numba.njit(nogil=True, cache=True, inline="always")
def differentiate_rows(loss: int, margin: Any, temperature: Any, scores: Any, bias: Any, targets: Any, weights: Any) -> float:
    """Replace a chunk's scores by the derivatives of the weighted loss.

    Args:
        loss: which one.
        margin: float32; of margin; for logistic and self-adversarial, what is added to every score before its sigmoid (a
            distance is never positive, so without one no score would pass for likely).
        temperature: float32; of self-adversarial: factor of the scores in the softmax that weighs the negatives.
        scores: float32 [B, N], contiguous; changed in place.
        bias: added to the scores of the candidates, float32 [N]; -inf leaves a candidate out.
        targets: int32 [B], each query's right candidate, whose bias is finite.
        weights: float32 [B], what a query's loss is multiplied by in the derivatives. A query of weight 0 is padding: it has
            no loss and derivatives of 0.

    Returns:
        The sum of the queries' losses in nats, unweighted, padding left out.

    Example:
        >>> scores, zeros = np.zeros((1, 4), np.float32), np.zeros(4, np.float32)
        >>> one = np.float32(1.0)
        >>> loss = differentiate_rows(0, one, one, scores, zeros, np.zeros(1, np.int32), np.ones(1, np.float32))
        >>> round(loss, 4), scores[0].tolist()
        (1.3863, [-0.75, 0.25, 0.25, 0.25])
    """
    shares = np.empty(scores.shape[1], dtype=np.float32)
    total = 0.0
    for query in range(scores.shape[0]):
        row, weight, target = scores[query], weights[query], targets[query]
        if weight == 0.0:
            for column in range(len(row)):
                row[column] = np.float32(0.0)
        elif loss == RowLoss.SOFTMAX:
            total += _softmax(row, bias, target, weight)
        elif loss == RowLoss.MARGIN:
            total += _margin(row, bias, target, weight, margin)
        else:
            scale = temperature if loss == RowLoss.SELF_ADVERSARIAL else np.float32(0.0)
            total += _logistic(row, bias, target, weight, margin, scale, shares)
    return total


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


@numba.njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _softmax(row: Any, bias: Any, target: Any, weight: Any) -> Any:
    largest = _add_and_find_largest(row, bias)
    chosen = row[target]
    total = _exponentiate(row, largest)
    factor = weight / total
    for column in range(len(row)):
        row[column] *= factor
    row[target] -= weight
    return np.log(total) + largest - chosen


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "arcp"}, error_model="numpy")
def _logistic(row: Any, bias: Any, target: Any, weight: Any, margin: Any, temperature: Any, shares: Any) -> Any:
    zero, one = np.float32(0.0), np.float32(1.0)
    largest = _add_and_find_largest(row, bias)
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
    row[target] = -weight * (small if chosen > zero else one) / (one + small)
    return max(-chosen, zero) + log1p_unit(small) + negatives_loss


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "arcp"}, error_model="numpy")
def _margin(row: Any, bias: Any, target: Any, weight: Any, margin: Any) -> Any:
    zero, one = np.float32(0.0), np.float32(1.0)
    threshold = row[target] + bias[target] - margin
    row[target] = -np.float32(np.inf)
    num_negatives, violated, excess = zero, zero, zero
    for column in range(len(row)):
        value = row[column] + bias[column]
        over = value - threshold
        violates = over > zero
        num_negatives += one if value > -np.inf else zero
        violated += one if violates else zero
        excess += over if violates else zero
        row[column] = one if violates else zero
    share = one / max(num_negatives, one)
    for column in range(len(row)):
        row[column] *= weight * share
    row[target] = -weight * share * violated
    return excess * share
