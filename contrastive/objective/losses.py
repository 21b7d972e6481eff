"""Losses of queries over shared candidates: derivatives of the scores, in place, without autograd.

A batch has G distinct queries, each with one or more positives, and U candidates that all of them share. A query is compared
with every candidate once, however many positives it has. With the scores s_j = similarity / temperature + bias_j, one
positive t costs

    softmax    log(exp(s_t) + sum of exp(s_j) over the negatives) - s_t                     (InfoNCE, sampled softmax)
    ccl        (1 - s_t) + weight * mean of max(0, s_j - margin) over the negatives         (Mao et al., CIKM 2021)
    bpr        mean of log(1 + exp(s_j - s_t)) over the negatives                           (Rendle et al., UAI 2009)
    bilateral  weight * log(mean of exp(s_j) over the negatives) - s_t                      (Wu et al., ICDE 2024)

In the bilateral loss the positive is not in the sum, and has no bias; a query's positives are no negatives of each other,
masked or not. Its source takes the log of the mean of exp(s_t) where a batch holds several positives of a user; here each is an
example of its own, as in the other losses: that log lets the nearest one alone learn.

The negatives are the candidates that are not masked; where known positives are masked, a query's other positives are too, and
where they are not, they count as negatives. A masked candidate has a derivative of exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numba
import numpy as np

from multifacet.kernels.exponential import exp_nonpositive, log1p_unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.contrastive.candidates.candidates import Slots

__all__ = ["LossName", "ScoreLoss"]

LossName = Literal["softmax", "ccl", "bpr", "bilateral"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreLoss:
    """A loss over the scores of queries against the batch's candidates.

    Attributes:
        name: which loss.
        margin: of ccl.
        negative_weight: of ccl and bilateral: weight of the negatives' part.

    Example:
        >>> from multifacet.contrastive.candidates.candidates import Slots
        >>> one = Slots(indptr=np.array([0, 1]), slots=np.zeros(1, np.int32))
        >>> scores = np.zeros((1, 4), np.float32)
        >>> loss = ScoreLoss(name="softmax")(scores, scale=1.0, bias=np.zeros(4, np.float32), targets=one, masked=one, first=0)
        >>> round(loss, 4), scores.tolist()
        (1.3863, [[-0.75, 0.25, 0.25, 0.25]])
    """

    name: LossName
    margin: float = 0.0
    negative_weight: float = 1.0

    def __call__(
        self,
        scores: NDArray[np.float32],
        *,
        scale: float,
        bias: NDArray[np.float32],
        targets: Slots,
        masked: Slots | None,
        first: int,
    ) -> float:
        """Replace similarities by the derivatives of the summed loss of all positives, by score.

        Args:
            scores: similarities of some queries and all candidates, float32 [n, U], contiguous; changed in place.
            scale: one over the temperature.
            bias: added to the scaled similarities, float32 [U].
            targets: places of each query's positives among the candidates; a place may stand more than once.
            masked: places that are no negatives; a query's own positives may be among them.
            first: number of the first of these queries in `targets` and `masked`.

        Returns:
            The sum of the positives' losses.
        """
        arrays = (targets.indptr, targets.slots, *((masked.indptr, masked.slots) if masked else (_NO_INDPTR, _NO_SLOTS)))
        if self.name == "softmax":
            return float(_softmax(scores, np.float32(scale), bias, *arrays, first))
        if self.name == "ccl":
            margin, weight = np.float32(self.margin), np.float32(self.negative_weight)
            return float(_ccl(scores, np.float32(scale), bias, *arrays, first, margin, weight))
        if self.name == "bilateral":
            return float(_bilateral(scores, np.float32(scale), bias, *arrays, first, np.float32(self.negative_weight)))
        return float(_bpr(scores, np.float32(scale), bias, *arrays, first))


_NO_INDPTR = np.zeros(0, dtype=np.int64)
_NO_SLOTS = np.zeros(0, dtype=np.int32)


@numba.njit(nogil=True, cache=True)
def _mask(row: Any, query: int, indptr: Any, slots: Any) -> None:
    if len(indptr):
        for position in range(indptr[query], indptr[query + 1]):
            row[slots[position]] = -np.inf


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _scale(row: Any, scale: Any, bias: Any) -> None:
    for column in range(len(row)):
        row[column] = row[column] * scale + bias[column]


# `nnan` and `nsz` in the maximum alone: it does not vectorise otherwise. A NaN still reaches the derivatives.
@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "nnan", "nsz"})
def _largest(row: Any) -> Any:
    largest = np.float32(-np.inf)
    for column in range(len(row)):
        largest = max(largest, row[column])
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
def _softmax(
    scores: Any,
    scale: Any,
    bias: Any,
    target_indptr: Any,
    target_slots: Any,
    masked_indptr: Any,
    masked_slots: Any,
    first: int,
) -> float:
    loss = 0.0
    kept = np.empty(64, dtype=np.float32)
    is_masked = np.empty(64, dtype=np.bool_)
    for number in range(len(scores)):
        row = scores[number]
        targets = target_slots[target_indptr[first + number] : target_indptr[first + number + 1]]
        if len(targets) > len(kept):
            kept = np.empty(2 * len(targets), dtype=np.float32)
            is_masked = np.empty(2 * len(targets), dtype=np.bool_)
        _scale(row, scale, bias)
        for place in range(len(targets)):
            kept[place] = row[targets[place]]
        _mask(row, first + number, masked_indptr, masked_slots)
        largest = _largest(row)
        for place in range(len(targets)):
            is_masked[place] = row[targets[place]] == -np.inf
            largest = max(largest, kept[place])
        total = _exponentiate(row, largest)
        factor = np.float32(0.0)
        for place in range(len(targets)):
            own = exp_nonpositive(kept[place] - largest)
            whole = total + own if is_masked[place] else total
            loss += np.log(whole) + largest - kept[place]
            factor += np.float32(1.0) / whole
            kept[place] = own / whole
        for column in range(len(row)):
            row[column] *= factor
        for place in range(len(targets)):
            # An unmasked target has its own share of every positive's loss already.
            row[targets[place]] += (kept[place] if is_masked[place] else np.float32(0.0)) - np.float32(1.0)
    return loss


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _hinge(row: Any, margin: Any) -> Any:
    """Sum of the excess over the margin; leaves 1 where there is some."""
    zero, one = np.float32(0.0), np.float32(1.0)
    excess = zero
    for column in range(len(row)):
        over = row[column] - margin
        excess += max(over, zero)
        row[column] = one if over > zero else zero
    return excess


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _ccl(
    scores: Any,
    scale: Any,
    bias: Any,
    target_indptr: Any,
    target_slots: Any,
    masked_indptr: Any,
    masked_slots: Any,
    first: int,
    margin: Any,
    weight: Any,
) -> float:
    loss = 0.0
    kept = np.empty(64, dtype=np.float32)
    for number in range(len(scores)):
        row = scores[number]
        targets = target_slots[target_indptr[first + number] : target_indptr[first + number + 1]]
        if len(targets) > len(kept):
            kept = np.empty(2 * len(targets), dtype=np.float32)
        _scale(row, scale, bias)
        for slot in targets:
            loss += 1.0 - row[slot]
        _mask(row, first + number, masked_indptr, masked_slots)
        # An unmasked positive is a negative of the query's other positives, not of itself.
        num_own = np.int64(row[targets[0]] > -np.inf)
        share = weight / np.float32(max(int(_count_finite(row) - num_own), 1))
        if num_own:
            for slot in targets:
                loss -= share * max(row[slot] - margin, np.float32(0.0))
        num_targets = np.float32(len(targets))
        loss += share * num_targets * _hinge(row, margin)
        own_share = share if num_own else np.float32(0.0)
        for place in range(len(targets)):
            kept[place] = np.float32(1.0) + own_share * row[targets[place]]
        for column in range(len(row)):
            row[column] *= share * num_targets
        for place in range(len(targets)):
            row[targets[place]] -= kept[place]
    return loss


@numba.njit(nogil=True, cache=True)
def _count_finite(row: Any) -> int:
    count = 0
    for column in range(len(row)):
        count += row[column] > -np.inf
    return count


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "arcp"}, error_model="numpy")
def _add_sigmoids(row: Any, target: Any, sums: Any) -> tuple[Any, Any]:
    """Add sigmoid(row - target) to the sums; give its total, and that of log(1 + exp(row - target))."""
    zero, one = np.float32(0.0), np.float32(1.0)
    total = zero
    loss = zero
    for column in range(len(row)):
        difference = max(row[column] - target, np.float32(-1e30))
        small = exp_nonpositive(-abs(difference))
        sigmoid = (one if difference > zero else small) / (one + small)
        sums[column] += sigmoid
        total += sigmoid
        loss += max(difference, zero) + log1p_unit(small)
    return total, loss


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _bpr(
    scores: Any,
    scale: Any,
    bias: Any,
    target_indptr: Any,
    target_slots: Any,
    masked_indptr: Any,
    masked_slots: Any,
    first: int,
) -> float:
    loss = 0.0
    sums = np.empty(scores.shape[1], dtype=np.float32)
    kept = np.empty(64, dtype=np.float32)
    for number in range(len(scores)):
        row = scores[number]
        targets = target_slots[target_indptr[first + number] : target_indptr[first + number + 1]]
        if len(targets) > len(kept):
            kept = np.empty(2 * len(targets), dtype=np.float32)
        _scale(row, scale, bias)
        for place in range(len(targets)):
            kept[place] = row[targets[place]]
        _mask(row, first + number, masked_indptr, masked_slots)
        num_negatives = _count_finite(row)
        sums[:] = np.float32(0.0)
        for place in range(len(targets)):
            slot = targets[place]
            # A positive is not its own negative.
            was = row[slot]
            row[slot] = -np.inf
            count = np.float32(max(num_negatives - (1 if was > -np.inf else 0), 1))
            total, cost = _add_sigmoids(row, kept[place], sums)
            row[slot] = was
            loss += cost / count
            kept[place] = total / count
        share = np.float32(1.0) / np.float32(max(num_negatives - (1 if row[targets[0]] > -np.inf else 0), 1))
        for column in range(len(row)):
            row[column] = sums[column] * share
        for place in range(len(targets)):
            row[targets[place]] -= kept[place]
    return loss


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _bilateral(
    scores: Any,
    scale: Any,
    bias: Any,
    target_indptr: Any,
    target_slots: Any,
    masked_indptr: Any,
    masked_slots: Any,
    first: int,
    weight: Any,
) -> float:
    loss = 0.0
    for number in range(len(scores)):
        row = scores[number]
        targets = target_slots[target_indptr[first + number] : target_indptr[first + number + 1]]
        for slot in targets:
            loss -= row[slot] * scale
        _scale(row, scale, bias)
        _mask(row, first + number, masked_indptr, masked_slots)
        for slot in targets:
            row[slot] = -np.inf
        num_targets = np.float32(len(targets))
        num_negatives = _count_finite(row)
        if num_negatives:
            largest = _largest(row)
            total = _exponentiate(row, largest)
            loss += num_targets * weight * (np.log(total / np.float32(num_negatives)) + largest)
            factor = num_targets * weight / total
            for column in range(len(row)):
                row[column] *= factor
        else:
            row[:] = np.float32(0.0)
        for slot in targets:
            row[slot] -= np.float32(1.0)
    return loss
