"""The candidate rows that a batch of positives is compared with, drawn once for the whole batch.

A batch's candidates are the batch's own positives (in-batch negatives), the positives of past batches (a queue), hard
negatives, uniform draws and degree-weighted draws, all from the table of the positives' node type. Each row stands among them
ONCE, however often and from whatever source it was drawn:

    positives  [7, 3, 7]     candidates.rows      [7, 3, 9, 1]     every row once
    queue      [9, 3]    ->  candidates.targets   [0, 1, 0]        where the positives stand
    uniform    [1, 7]        candidates.masked    query 1: [2]     known positives of query 1 among them

so a positive can't also be its own negative, and the chance that a row is among the candidates has a closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from multifacet.training import AliasSampler, UniformSampler, degree_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.training import PairIndex

__all__ = ["CandidateSampler", "Candidates", "Slots"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Slots:
    """Places among the candidates for each of G queries, as compressed sparse rows.

    Attributes:
        indptr: int64 [G + 1].
        slots: places, int32 [indptr[-1]].
    """

    indptr: NDArray[np.int64]
    slots: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """What the G queries of a batch, with B positives in all, are compared with.

    Attributes:
        rows: distinct rows of the candidates' table, int32 [U].
        targets: where each query's positives stand in `rows`.
        log_inclusion: log of the chance that each row is among the candidates, float32 [U].
        masked: known positives among the candidates, a query's own included; None if none are masked.
        only_positives: whether a row stands among them only as a positive of the batch, bool [U]; None if that is no matter.
    """

    rows: NDArray[np.int32]
    targets: Slots
    log_inclusion: NDArray[np.float32]
    masked: Slots | None
    only_positives: NDArray[np.bool_] | None = None


class CandidateSampler:
    """Draws the candidates of a batch: its own positives, and any mixture of further sources.

    If the table has no more rows than the draws asked for, all of its rows are the candidates: the softmax is then exact.

    With N_s draws from source s, each holding row j with probability p_s(j), row j is among the candidates with probability

        1 - prod_s (1 - p_s(j)) ** N_s

    whose log is `Candidates.log_inclusion`; for the batch alone this is log(1 - (1 - p)^N). A softmax over
    `score - log_inclusion` has its optimum at the log probability of the positive given the query (logQ correction; Yi et al.,
    RecSys 2019, extended to a mixture of sources by inclusion probabilities). Where a batch draws several positives, or
    several hard negatives, of one query together, that is ONE draw of several rows, and p_s(j) the chance that it holds j.

    Args:
        positive_weights: how often each row is a positive (any positive scale), [num_rows]; degree-weighted draws follow its
            power.
        positive_chance: chance that the positives that a batch draws for one query hold each row, [num_rows]; None if it
            draws one at a time, in proportion to `positive_weights`.
        num_uniform: uniform draws a batch.
        num_degree: degree-weighted draws a batch.
        degree_power: the power of `positive_weights` that degree-weighted draws follow.
        queue_size: past positives kept as negatives.
        in_batch: whether a batch's positives are negatives; else `Candidates.only_positives` says which rows are none.

    Attributes:
        queue: positives of past batches, newest last, int32 [at most queue_size].

    Raises:
        ValueError: if a number of draws is negative.
    """

    def __init__(
        self,
        positive_weights: NDArray[np.float64],
        *,
        positive_chance: NDArray[np.float64] | None = None,
        num_uniform: int = 0,
        num_degree: int = 0,
        degree_power: float = 0.75,
        queue_size: int = 0,
        in_batch: bool = True,
    ) -> None:
        for name, value in (("num_uniform", num_uniform), ("num_degree", num_degree), ("queue_size", queue_size)):
            if value < 0:
                raise ValueError(f"{name} counts draws and can't be negative, got {value}")
        self.num_rows = len(positive_weights)
        self.num_uniform = num_uniform
        self.num_degree = num_degree
        if positive_chance is None:
            positive_chance = positive_weights / max(float(np.sum(positive_weights)), 1e-300)
        self._log_missed_positive = _log_missed(positive_chance)
        self._log_missed_hard: NDArray[np.float32] | None = None
        self._uniform = UniformSampler(self.num_rows)
        self._log_missed_degree: NDArray[np.float32] | None = None
        self._degree: AliasSampler | None = None
        if num_degree:
            weights = degree_weights(positive_weights, degree_power)
            self._degree = AliasSampler(weights)
            self._log_missed_degree = _log_missed(weights / weights.sum())
        self._queue_size = queue_size
        self._in_batch = in_batch
        self.queue: NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._slot_of_row = np.full(self.num_rows, -1, dtype=np.int32)

    def set_hard_chance(self, chance: NDArray[np.float64]) -> None:
        """Say how likely one query's hard negatives are to hold each row, [num_rows]."""
        self._log_missed_hard = _log_missed(chance)

    def draw(
        self,
        positives: NDArray[np.int32],
        indptr: NDArray[np.int64],
        generator: np.random.Generator,
        *,
        num_draws: int,
        hard: NDArray[np.int32] | None = None,
        queries: NDArray[np.int32] | None = None,
        known: PairIndex | None = None,
    ) -> Candidates:
        """Draw a batch's candidates, then put its positives into the queue.

        Args:
            positives: the positives of each query, int32 [B].
            indptr: where each query's positives begin, int64 [G + 1].
            generator: source of randomness.
            num_draws: draws that the positives are from; a query that was drawn twice has the positives of both.
            hard: hard negatives, int32, any number.
            queries: the row of each query, int32 [G]; needed with `known`.
            known: the known positives of each query, masked.

        Returns:
            The candidates.
        """
        drawn = [positives, self.queue]
        if hard is not None:
            drawn.append(hard)
        if self.num_rows <= sum(map(len, drawn)) + self.num_uniform + self.num_degree:
            rows = np.arange(self.num_rows, dtype=np.int32)
            slots = positives
            log_inclusion = np.zeros(self.num_rows, dtype=np.float32)
            slot_of_row = rows
        else:
            drawn.append(self._uniform.draw(self.num_uniform, generator))
            if self._degree is not None:
                drawn.append(self._degree.draw(self.num_degree, generator))
            rows, slots = _compact(np.concatenate(drawn), len(positives), self._slot_of_row)
            log_inclusion = self.log_inclusion(rows, num_draws, len(positives) // num_draws)
            slot_of_row = self._slot_of_row
        only_positives = None
        if not self._in_batch:
            only_positives = np.zeros(len(rows), dtype=np.bool_)
            if slot_of_row is self._slot_of_row:
                only_positives[slots] = True
                only_positives[slot_of_row[np.concatenate(drawn[1:])]] = False
        masked = None
        if known is not None:
            if queries is None:
                raise ValueError("masking known positives needs the row of each query: pass `queries`")
            masked_indptr, places = _known_slots(queries, known.indptr, known.indices, rows, slot_of_row)
            masked = Slots(indptr=masked_indptr, slots=places)
        if slot_of_row is self._slot_of_row:
            self._slot_of_row[rows] = -1
        if self._queue_size:
            self.queue = np.concatenate([self.queue, positives])[-self._queue_size :]
        return Candidates(
            rows=rows,
            targets=Slots(indptr=indptr, slots=slots),
            log_inclusion=log_inclusion,
            masked=masked,
            only_positives=only_positives,
        )

    def log_inclusion(self, rows: NDArray[np.int32], num_draws: int, per_query: int) -> NDArray[np.float32]:
        """Give the log of the chance that each row is among the candidates of a batch, float32 [n].

        A draw of the batch sees the positives of the num_draws - 1 others, and those in the queue.
        """
        log_missed = (num_draws - 1 + len(self.queue) / per_query) * self._log_missed_positive[rows].astype(np.float64)
        if self._log_missed_hard is not None:
            log_missed += num_draws * self._log_missed_hard[rows]
        if self.num_uniform:
            log_missed += self.num_uniform * np.log1p(-1.0 / max(self.num_rows, 2))
        if self._log_missed_degree is not None:
            log_missed += self.num_degree * self._log_missed_degree[rows]
        inclusion: NDArray[np.float64] = np.maximum(-np.expm1(log_missed), 1e-30)
        return np.log(inclusion).astype(np.float32)

    def __repr__(self) -> str:
        return (
            f"CandidateSampler(num_rows={self.num_rows}, uniform={self.num_uniform}, degree={self.num_degree}, "
            f"queue={self._queue_size})"
        )


def _log_missed(chance: NDArray[np.float64]) -> NDArray[np.float32]:
    """Log of the chance that one draw does not hold each row, float32 [num_rows]."""
    return np.log1p(-np.minimum(chance, 1.0 - 1e-12)).astype(np.float32)


@numba.njit(nogil=True, cache=True)
def _compact(drawn: Any, num_positives: int, slot_of_row: Any) -> tuple[Any, Any]:
    """Keep each drawn row once, in order of first appearance; leave `slot_of_row` filled for them."""
    rows = np.empty(len(drawn), dtype=np.int32)
    slots = np.empty(num_positives, dtype=np.int32)
    num_distinct = 0
    for position in range(len(drawn)):
        row = drawn[position]
        slot = slot_of_row[row]
        if slot < 0:
            slot = num_distinct
            slot_of_row[row] = slot
            rows[slot] = row
            num_distinct += 1
        if position < num_positives:
            slots[position] = slot
    return rows[:num_distinct].copy(), slots


@numba.njit(nogil=True, cache=True)
def _known_slots(queries: Any, known_indptr: Any, known_indices: Any, rows: Any, slot_of_row: Any) -> tuple[Any, Any]:
    """Look each query's known positives up among the candidates."""
    num_candidates = len(rows)
    # A hub's positives are searched for each candidate; any other query's positives are looked up one by one.
    hub_degree = num_candidates * 4
    indptr = np.zeros(len(queries) + 1, dtype=np.int64)
    slots = np.empty(32 * len(queries) + num_candidates, dtype=np.int32)
    count = 0
    for number in range(len(queries)):
        query = queries[number]
        if count + num_candidates > len(slots):
            grown = np.empty(2 * len(slots) + num_candidates, dtype=np.int32)
            grown[:count] = slots[:count]
            slots = grown
        known = known_indices[known_indptr[query] : known_indptr[query + 1]]
        if len(known) > hub_degree:
            for slot in range(num_candidates):
                position = np.searchsorted(known, rows[slot])
                if position < len(known) and known[position] == rows[slot]:
                    slots[count] = slot
                    count += 1
        else:
            for position in range(len(known)):
                slot = slot_of_row[known[position]]
                if slot >= 0:
                    slots[count] = slot
                    count += 1
        indptr[number + 1] = count
    return indptr, slots[:count].copy()
