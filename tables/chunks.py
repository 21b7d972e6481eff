"""Candidates of chunks: each chunk of a batch's positives is compared with rows that it shares, drawn for it alone.

A batch is C chunks of B positives. A chunk's candidates are its own positives (in-batch negatives), uniform draws and
degree-weighted draws, so that all of its scores are one matrix product, and a batch's are one batched product:

    positives  [[7, 3, 7], ...]      rows     [[7, 3, 7, 9, 1, 7], ...]      as drawn
    uniform    [[9, 1, 7], ...]  ->  bias     [[.., .., -inf, .., .., -inf], ...]
                                     targets  [[0, 1, 0], ...]               where the positive stands first

Each row counts ONCE in its chunk, however often it was drawn: its first place has its bias, all others have -inf, and so no
share in a softmax and no gradient. A positive is never its own negative, and the chance that a row is among the candidates
has a closed form (see `CandidateSampler`, which draws for a single chunk).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from tables.negatives import AliasSampler, UniformSampler, degree_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["AnswerIndex", "ChunkCandidates", "ChunkSampler"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerIndex:
    """The known answers of each distinct query, as compressed sparse rows.

    Attributes:
        queries: the number of each edge's query among the distinct ones, int32 [E].
        indptr: int64 [Q + 1].
        answers: rows that answer a query, ascending, int32 [indptr[-1]].
    """

    queries: NDArray[np.int32]
    indptr: NDArray[np.int64]
    answers: NDArray[np.int32]

    @classmethod
    def of(cls, known: NDArray[np.int32], relations: NDArray[np.int32], asked: NDArray[np.int32]) -> AnswerIndex:
        """Index edges by (known end, relation), in memory of the order of their number.

        Args:
            known: the end that queries are made of, int32 [E].
            relations: int32 [E].
            asked: the end that answers them, int32 [E].
        """
        order = np.lexsort((asked, relations, known))
        starts = np.ones(len(order), dtype=np.bool_)
        starts[1:] = (known[order[1:]] != known[order[:-1]]) | (relations[order[1:]] != relations[order[:-1]])
        queries = np.empty(len(order), dtype=np.int32)
        queries[order] = np.cumsum(starts, dtype=np.int32) - 1
        indptr = np.append(np.flatnonzero(starts), len(order)).astype(np.int64)
        return cls(queries=queries, indptr=indptr, answers=asked[order])


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkCandidates:
    """What C chunks of B positives are compared with.

    Attributes:
        rows: rows of the candidates' table, int32 [C, N].
        targets: the place of each positive among its chunk's candidates, int32 [C, B].
        bias: float32 [C, N]: minus the log of the chance of being a candidate (0 without the correction), and -inf where a
            row stands again or a chunk has fewer positives than B.
        hits: places to leave out of a query's loss, its own target never among them, as compressed sparse rows over
            the C * B queries: `hits_indptr` int64 [C * B + 1] and `hits` int32; None if nothing is masked.
        hits_indptr: see `hits`.
    """

    rows: NDArray[np.int32]
    targets: NDArray[np.int32]
    bias: NDArray[np.float32]
    hits: NDArray[np.int32] | None = None
    hits_indptr: NDArray[np.int64] | None = None

    @classmethod
    def concatenate(cls, parts: Sequence[ChunkCandidates]) -> ChunkCandidates:
        """Put chunks that were drawn apart into one batch."""
        hits = [part.hits for part in parts if part.hits is not None]
        bounds = [part.hits_indptr for part in parts if part.hits_indptr is not None]
        shifts = np.cumsum([0, *(len(part) for part in hits)])
        return cls(
            rows=np.concatenate([part.rows for part in parts]),
            targets=np.concatenate([part.targets for part in parts]),
            bias=np.concatenate([part.bias for part in parts]),
            hits=np.concatenate(hits) if hits else None,
            hits_indptr=np.concatenate([[0], *(bound[1:] + shift for bound, shift in zip(bounds, shifts[:-1], strict=True))])
            if hits
            else None,
        )

    def shifted(self, offset: int) -> ChunkCandidates:
        """Count the rows from another start."""
        return replace(self, rows=self.rows + np.int32(offset)) if offset else self

    def mask(self, scores: NDArray[np.float32], first_chunk: int) -> None:
        """Put -inf where a query's candidate is to be left out, in the scores [c, B, N] of the chunks from `first_chunk` on."""
        if self.hits is not None:
            _mask(scores, self.hits_indptr, self.hits, first_chunk)


class ChunkSampler:
    """Draws the candidates of chunks of positives of one table.

    If the table has no more rows than the draws asked for, all of its rows are every chunk's candidates: the softmax is then
    exact.

    Args:
        positives: the positives of all edges that chunks are made of, int32 [E]: in-batch negatives follow their frequency,
            and degree-weighted draws its power.
        num_rows: rows of the table.
        chunk_size: positives a chunk, B.
        num_uniform: uniform draws a chunk.
        num_degree: degree-weighted draws a chunk.
        degree_power: the power of a row's frequency that degree-weighted draws follow.
        logq: whether the bias holds minus the log inclusion probability.
        slot_of_row: a table's scratch of -1, int32 [num_rows], for samplers of one table to share; None to make one.
    """

    def __init__(
        self,
        positives: NDArray[np.int32],
        num_rows: int,
        *,
        chunk_size: int,
        num_uniform: int,
        num_degree: int = 0,
        degree_power: float = 0.75,
        logq: bool = False,
        slot_of_row: NDArray[np.int32] | None = None,
    ) -> None:
        self.num_rows = num_rows
        self.chunk_size = chunk_size
        self.num_uniform = num_uniform
        self.num_degree = num_degree
        num_draws = chunk_size + num_uniform + num_degree
        self.takes_all = num_rows <= num_draws
        self.num_candidates = min(num_rows, num_draws)
        self._slot_of_row = np.full(num_rows, -1, dtype=np.int32) if slot_of_row is None else slot_of_row
        self._uniform = UniformSampler(num_rows)
        self._corrects = logq and not self.takes_all
        self._degree: AliasSampler | None = None
        self._bias_of_row: NDArray[np.float32] | None = None
        if self.takes_all:
            return
        # Rows that are never a positive are not listed: a sampler for each of many relations stays as small as its edges.
        self._seen, counts = np.unique(positives, return_counts=True)
        self._missed_positive = _log_missed(counts / counts.sum())
        if num_degree:
            weights = degree_weights(counts, degree_power)
            self._degree = AliasSampler(weights)
            self._missed_degree = _log_missed(weights / weights.sum())
        if self._corrects and 4 * len(self._seen) >= num_rows:
            self._bias_of_row = -self.log_inclusion(np.arange(num_rows, dtype=np.int32), chunk_size)

    def log_inclusion(self, rows: NDArray[np.int32], num_positives: int) -> NDArray[np.float32]:
        """Give the log of the chance that each row is among the candidates of a chunk of so many positives, float32 [...].

        A row of the chunk sees the positives of the others: one less than all.
        """
        places = np.minimum(np.searchsorted(self._seen, rows), len(self._seen) - 1)
        log_missed = (num_positives - 1) * self._missed_positive[places]
        if self._degree is not None:
            log_missed += self.num_degree * self._missed_degree[places]
        log_missed[self._seen[places] != rows] = 0.0
        log_missed += self.num_uniform * np.log1p(-1.0 / max(self.num_rows, 2))
        inclusion: NDArray[np.float64] = np.maximum(-np.expm1(log_missed), 1e-30)
        return np.log(inclusion).astype(np.float32)

    def draw(
        self,
        positives: NDArray[np.int32],
        lengths: NDArray[np.int32],
        generator: np.random.Generator,
        *,
        queries: NDArray[np.int32] | None = None,
        known: AnswerIndex | None = None,
    ) -> ChunkCandidates:
        """Draw the candidates of some chunks.

        Args:
            positives: int32 [C, B]; what lies past a chunk's length is padding.
            lengths: positives of each chunk, int32 [C].
            generator: source of randomness.
            queries: the number of each positive's query in `known`, int32 [C, B].
            known: answers to mask; needs `queries`.

        Returns:
            The candidates.
        """
        num_chunks, size = positives.shape
        if self.takes_all:
            rows = np.broadcast_to(np.arange(self.num_rows, dtype=np.int32), (num_chunks, self.num_rows)).copy()
            bias = np.zeros(rows.shape, dtype=np.float32)
            num_drawn = 0
        else:
            drawn = [positives, self._uniform.draw(num_chunks * self.num_uniform, generator).reshape(num_chunks, -1)]
            if self._degree is not None:
                draws = self._degree.draw(num_chunks * self.num_degree, generator)
                drawn.append(self._seen[draws].reshape(num_chunks, -1))
            rows = np.concatenate(drawn, axis=1)
            bias = self._bias(rows, lengths)
            num_drawn = size
        targets = np.zeros((num_chunks, size), dtype=np.int32)
        if known is None:
            _place(rows, positives, lengths, num_drawn, self._slot_of_row, targets, bias)
            return ChunkCandidates(rows=rows, targets=targets, bias=bias)
        if queries is None:
            raise ValueError("masking known answers needs the number of each positive's query: pass `queries`")
        arrays = rows, positives, lengths, num_drawn, self._slot_of_row, targets, bias
        hits, indptr = _place_with_hits(*arrays, queries, known.indptr, known.answers)
        return ChunkCandidates(rows=rows, targets=targets, bias=bias, hits=hits, hits_indptr=indptr)

    def _bias(self, rows: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        if not self._corrects:
            return np.zeros(rows.shape, dtype=np.float32)
        if self._bias_of_row is not None:
            bias = self._bias_of_row[rows]
            others = np.flatnonzero(lengths < self.chunk_size)
        else:
            bias = np.empty(rows.shape, dtype=np.float32)
            others = np.arange(len(rows))
        for chunk in others:
            bias[chunk] = -self.log_inclusion(rows[chunk], int(lengths[chunk]))
        return bias

    def __repr__(self) -> str:
        return (
            f"ChunkSampler(num_rows={self.num_rows}, chunk_size={self.chunk_size}, uniform={self.num_uniform}, "
            f"degree={self.num_degree})"
        )


def _log_missed(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log of the chance that one draw is another row."""
    missed: NDArray[np.float64] = np.log1p(-np.minimum(probability, 1.0 - 1e-12))
    return missed


@numba.njit(nogil=True, cache=True)
def _enter(rows: Any, num_padded: int, num_drawn: int, slot_of_row: Any, bias: Any) -> None:
    """Give each row its first place, and all later places and the padding no share."""
    for slot in range(len(rows)):
        if num_drawn - num_padded <= slot < num_drawn:
            rows[slot] = 0
            bias[slot] = -np.inf
        elif slot_of_row[rows[slot]] < 0:
            slot_of_row[rows[slot]] = slot
        else:
            bias[slot] = -np.inf


@numba.njit(nogil=True, cache=True)
def _leave(rows: Any, slot_of_row: Any) -> None:
    for slot in range(len(rows)):
        slot_of_row[rows[slot]] = -1


@numba.njit(nogil=True, cache=True)
def _place(rows: Any, positives: Any, lengths: Any, num_drawn: int, slot_of_row: Any, targets: Any, bias: Any) -> None:
    for chunk in range(rows.shape[0]):
        padded = num_drawn - lengths[chunk] if num_drawn > 0 else 0
        _enter(rows[chunk], padded, num_drawn, slot_of_row, bias[chunk])
        for example in range(lengths[chunk]):
            targets[chunk, example] = slot_of_row[positives[chunk, example]]
        _leave(rows[chunk], slot_of_row)


@numba.njit(nogil=True, cache=True)
def _place_with_hits(
    rows: Any,
    positives: Any,
    lengths: Any,
    num_drawn: int,
    slot_of_row: Any,
    targets: Any,
    bias: Any,
    queries: Any,
    known_indptr: Any,
    answers: Any,
) -> tuple[Any, Any]:
    num_chunks, size = positives.shape
    num_candidates = rows.shape[1]
    indptr = np.zeros(num_chunks * size + 1, dtype=np.int64)
    hits = np.empty(16 * num_chunks * size + num_candidates, dtype=np.int32)
    count = 0
    for chunk in range(num_chunks):
        padded = num_drawn - lengths[chunk] if num_drawn > 0 else 0
        _enter(rows[chunk], padded, num_drawn, slot_of_row, bias[chunk])
        for example in range(size):
            if example < lengths[chunk]:
                target = slot_of_row[positives[chunk, example]]
                targets[chunk, example] = target
                if count + num_candidates > len(hits):
                    grown = np.empty(2 * len(hits) + num_candidates, dtype=np.int32)
                    grown[:count] = hits[:count]
                    hits = grown
                query = queries[chunk, example]
                begin, end = known_indptr[query], known_indptr[query + 1]
                if end - begin > 4 * num_candidates:  # a hub: its answers are searched for each candidate
                    for slot in range(num_candidates):
                        place = begin + np.searchsorted(answers[begin:end], rows[chunk, slot])
                        if slot != target and place < end and answers[place] == rows[chunk, slot]:
                            hits[count] = slot
                            count += 1
                else:
                    for place in range(begin, end):
                        slot = slot_of_row[answers[place]]
                        if slot >= 0 and slot != target:
                            hits[count] = slot
                            count += 1
            indptr[chunk * size + example + 1] = count
        _leave(rows[chunk], slot_of_row)
    return hits[:count], indptr


@numba.njit(nogil=True, cache=True)
def _mask(scores: Any, indptr: Any, hits: Any, first_chunk: int) -> None:
    num_chunks, size, _ = scores.shape
    for chunk in range(num_chunks):
        for example in range(size):
            place = (first_chunk + chunk) * size + example
            for position in range(indptr[place], indptr[place + 1]):
                scores[chunk, example, hits[position]] = -np.inf
