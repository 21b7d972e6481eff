"""The candidate rows that a batch of positives is compared with, drawn once for the whole batch.

A batch's candidates are the batch's own positives (in-batch negatives), the positives of past batches (a
queue), uniform draws and degree-weighted draws, all from the table of the positives' node type. Each row
stands among them ONCE, however often and from whatever source it was drawn:

    positives  [7, 3, 7]     candidates.rows     [7, 3, 9, 1]     every row once
    queue      [9, 3]    ->  candidates.targets  [0, 1, 0]        where row i's positive stands
    uniform    [1, 7]        candidates.hits     row 1: [2]       known answers of row 1's query, masked

so a positive can't also be its own negative, and the chance that a row is among the candidates has a closed
form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np

from tables.negatives import AliasSampler, UniformSampler, degree_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tables.pairs import PairIndex

__all__ = ["CandidateSampler", "Candidates", "Hits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hits:
    """Candidates that answer an example's query, as compressed sparse rows over the batch's G distinct queries.

    All but the example's own target are masked.

    Attributes:
        groups: which of the distinct queries each example has, int32 [B].
        indptr: int64 [G + 1].
        slots: positions among the candidates, int32 [indptr[-1]].
    """

    groups: NDArray[np.int32]
    indptr: NDArray[np.int64]
    slots: NDArray[np.int32]

    def part(self, examples: slice) -> Hits:
        """Give the hits of some of the examples."""
        return Hits(groups=self.groups[examples], indptr=self.indptr, slots=self.slots)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """What a batch of B positives is compared with.

    Attributes:
        rows: distinct rows of the candidates' table, int32 [U].
        targets: position in `rows` of each positive, int32 [B].
        log_inclusion: log of the chance that each row is among the candidates, float32 [U].
        hits: known answers among the candidates, or None if none are masked.
    """

    rows: NDArray[np.int32]
    targets: NDArray[np.int32]
    log_inclusion: NDArray[np.float32]
    hits: Hits | None


class CandidateSampler:
    """Draws the candidates of a batch: its own positives, and any mixture of further sources.

    If the table has no more rows than the draws asked for, all of its rows are the candidates: the softmax is
    then exact.

    With N_s draws from source s, each giving row j with probability p_s(j), row j is among the candidates with
    probability

        1 - prod_s (1 - p_s(j)) ** N_s

    whose log is `Candidates.log_inclusion`; for the batch alone this is log(1 - (1 - p)^N). A softmax over
    `score - log_inclusion` has its optimum at the log probability of the positive given the query (logQ
    correction; Yi et al., RecSys 2019, extended to a mixture of sources by inclusion probabilities).

    Args:
        positive_weights: how often each row is a positive (any positive scale), [num_rows]. In-batch and queued
            rows are draws in proportion to it, and degree-weighted draws to its power.
        num_uniform: uniform draws a batch.
        num_degree: degree-weighted draws a batch.
        degree_power: the power of `positive_weights` that degree-weighted draws follow.
        queue_size: past positives kept as negatives.
        slot_of_row: a table's scratch of -1, int32 [num_rows], for samplers of one table to share; None to make one.

    Raises:
        ValueError: if a number of draws is negative.
    """

    def __init__(
        self,
        positive_weights: NDArray[np.float64],
        *,
        num_uniform: int = 0,
        num_degree: int = 0,
        degree_power: float = 0.75,
        queue_size: int = 0,
        slot_of_row: NDArray[np.int32] | None = None,
    ) -> None:
        for name, value in (("num_uniform", num_uniform), ("num_degree", num_degree), ("queue_size", queue_size)):
            if value < 0:
                raise ValueError(f"{name} counts draws and can't be negative, got {value}")
        self.num_rows = len(positive_weights)
        self.num_uniform = num_uniform
        self.num_degree = num_degree
        total = float(np.sum(positive_weights))
        self._log_missed_positive = _log_missed(positive_weights / max(total, 1e-300))
        self._uniform = UniformSampler(self.num_rows)
        self._log_missed_degree: NDArray[np.float32] | None = None
        self._degree: AliasSampler | None = None
        if num_degree:
            weights = degree_weights(positive_weights, degree_power)
            self._degree = AliasSampler(weights)
            self._log_missed_degree = _log_missed(weights / weights.sum())
        self._queue = np.empty(queue_size, dtype=np.int32)
        self._queue_length = 0
        self._slot_of_row = np.full(self.num_rows, -1, dtype=np.int32) if slot_of_row is None else slot_of_row

    @property
    def queue(self) -> NDArray[np.int32]:
        """Positives of past batches, newest last, int32 [at most queue_size]."""
        return self._queue[: self._queue_length]

    @queue.setter
    def queue(self, positives: NDArray[np.int32]) -> None:
        self._queue_length = len(positives)
        self._queue[: self._queue_length] = positives

    def draw(
        self,
        positives: NDArray[np.int32],
        generator: np.random.Generator,
        *,
        queries: NDArray[np.int32] | None = None,
        known: PairIndex | None = None,
    ) -> Candidates:
        """Draw a batch's candidates, then put its positives into the queue.

        Args:
            positives: the row of each example's positive, int32 [B].
            generator: source of randomness.
            queries: the row of each example's query, int32 [B]; needed with `known`.
            known: the known answers of each query, masked unless they are the example's own positive.

        Returns:
            The candidates.
        """
        batch_size = len(positives)
        num_draws = batch_size + self.num_uniform + self.num_degree + len(self._queue)
        if self.num_rows <= num_draws:
            rows = np.arange(self.num_rows, dtype=np.int32)
            targets = positives
            log_inclusion = np.zeros(self.num_rows, dtype=np.float32)
            slot_of_row = rows
        else:
            drawn = [positives, self.queue, self._uniform.draw(self.num_uniform, generator)]
            if self._degree is not None:
                drawn.append(self._degree.draw(self.num_degree, generator))
            rows, targets = _compact(np.concatenate(drawn), batch_size, self._slot_of_row)
            log_inclusion = self.log_inclusion(rows, batch_size)
            slot_of_row = self._slot_of_row
        hits = None
        if known is not None:
            if queries is None:
                raise ValueError("masking known answers needs the row of each example's query: pass `queries`")
            groups, indptr, slots = _known_hits(queries, known.indptr, known.indices, rows, slot_of_row)
            hits = Hits(groups=groups, indptr=indptr, slots=slots)
        if slot_of_row is self._slot_of_row:
            self._slot_of_row[rows] = -1
        self._push(positives)
        return Candidates(rows=rows, targets=targets, log_inclusion=log_inclusion, hits=hits)

    def log_inclusion(self, rows: NDArray[np.int32], batch_size: int) -> NDArray[np.float32]:
        """Give the log of the chance that each row is among the candidates of a batch, float32 [n].

        A row of the batch sees the positives of the batch_size - 1 others.
        """
        num_positives = batch_size - 1 + self._queue_length
        log_missed = num_positives * self._log_missed_positive[rows].astype(np.float64)
        if self.num_uniform:
            log_missed += self.num_uniform * np.log1p(-1.0 / max(self.num_rows, 2))
        if self._log_missed_degree is not None:
            log_missed += self.num_degree * self._log_missed_degree[rows]
        inclusion: NDArray[np.float64] = np.maximum(-np.expm1(log_missed), 1e-30)
        return np.log(inclusion).astype(np.float32)

    def _push(self, positives: NDArray[np.int32]) -> None:
        size = len(self._queue)
        if not size:
            return
        kept = self._queue[max(0, self._queue_length + len(positives) - size) : self._queue_length]
        queue = np.concatenate([kept, positives])[-size:]
        self._queue_length = len(queue)
        self._queue[: self._queue_length] = queue

    def __repr__(self) -> str:
        return (
            f"CandidateSampler(num_rows={self.num_rows}, uniform={self.num_uniform}, "
            f"degree={self.num_degree}, queue={len(self._queue)})"
        )


def _log_missed(probability: NDArray[np.float64]) -> NDArray[np.float32]:
    """Log of the chance that one draw is another row, float32 [num_rows]."""
    return np.log1p(-np.minimum(probability, 1.0 - 1e-12)).astype(np.float32)


@numba.njit(nogil=True, cache=True)
def _compact(
    drawn: NDArray[np.int32], batch_size: int, slot_of_row: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Keep each drawn row once, in order of first appearance; leave `slot_of_row` filled for them."""
    rows = np.empty(len(drawn), dtype=np.int32)
    targets = np.empty(batch_size, dtype=np.int32)
    num_distinct = 0
    for position in range(len(drawn)):
        row = drawn[position]
        slot = slot_of_row[row]
        if slot < 0:
            slot = num_distinct
            slot_of_row[row] = slot
            rows[slot] = row
            num_distinct += 1
        if position < batch_size:
            targets[position] = slot
    return rows[:num_distinct], targets


@numba.njit(nogil=True, cache=True)
def _known_hits(
    queries: NDArray[np.int32],
    known_indptr: NDArray[np.int64],
    known_indices: NDArray[np.int32],
    rows: NDArray[np.int32],
    slot_of_row: NDArray[np.int32],
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]:
    """Look the known answers of each distinct query up among the candidates."""
    num_candidates = len(rows)
    # A hub's answers are searched for each candidate; any other query's answers are looked up one by one.
    hub_degree = num_candidates * 4
    groups = np.empty(len(queries), dtype=np.int32)
    group_of_query = np.full(len(known_indptr) - 1, -1, dtype=np.int32)
    indptr = np.zeros(len(queries) + 1, dtype=np.int64)
    slots = np.empty(32 * len(queries) + num_candidates, dtype=np.int32)
    num_groups = 0
    count = 0
    for example in range(len(queries)):
        query = queries[example]
        if group_of_query[query] >= 0:
            groups[example] = group_of_query[query]
            continue
        groups[example] = num_groups
        group_of_query[query] = num_groups
        if count + num_candidates > len(slots):
            grown = np.empty(2 * len(slots) + num_candidates, dtype=np.int32)
            grown[:count] = slots[:count]
            slots = grown
        answers = known_indices[known_indptr[query] : known_indptr[query + 1]]
        if len(answers) > hub_degree:
            for slot in range(num_candidates):
                position = np.searchsorted(answers, rows[slot])
                if position < len(answers) and answers[position] == rows[slot]:
                    slots[count] = slot
                    count += 1
        else:
            for position in range(len(answers)):
                slot = slot_of_row[answers[position]]
                if slot >= 0:
                    slots[count] = slot
                    count += 1
        num_groups += 1
        indptr[num_groups] = count
    return groups, indptr[: num_groups + 1], slots[:count]
