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

from multifacet.kge.batches.frequencies import Counts, Frequencies, write_bias
from multifacet.training import UniformSampler

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from multifacet.kge.batches.answers import AnswerIndex

__all__ = ["ChunkCandidates", "ChunkSampler"]


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

    def shifted(self, offset: int) -> ChunkCandidates:
        """Count the rows from another start."""
        return replace(self, rows=self.rows + np.int32(offset)) if offset else self


class ChunkSampler:
    """Draws the candidates of chunks of positives of one table.

    If the table has no more rows than the draws asked for, all of its rows are every chunk's candidates: the softmax is then
    exact.

    Args:
        positives: how often rows are positives of the edges that chunks are made of, in each of the groups of which a chunk
            takes one: in-batch negatives follow that frequency, and degree-weighted draws its power. Not looked at where a
            chunk's candidates are all rows.
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
        positives: Iterable[Counts],
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
        self._bias_of_row: NDArray[np.float32] | None = None
        self._bias_of_full_chunks = np.zeros(0, dtype=np.float32)
        if self.takes_all:
            return
        groups = [Frequencies.of(counted, num_degree, degree_power) for counted in positives]
        self._frequencies = Frequencies.concatenate(groups)
        self._log_missed_uniform = num_uniform * np.log1p(-1.0 / max(num_rows, 2))
        if not self._corrects:
            return
        seen, log_missed = self._frequencies.seen, self._log_missed_uniform
        log_missed = log_missed + (chunk_size - 1) * self._frequencies.log_missed_positive
        if num_degree:
            log_missed += num_degree * self._frequencies.log_missed_degree
        self._bias_of_full_chunks = -np.log(np.maximum(-np.expm1(log_missed), 1e-30)).astype(np.float32)
        if len(groups) == 1 and 4 * len(seen) >= num_rows:
            self._bias_of_row = -self.log_inclusion(np.arange(num_rows, dtype=np.int32), chunk_size)

    def log_inclusion(self, rows: NDArray[np.int32], num_positives: int, group: int = 0) -> NDArray[np.float32]:
        """Give the log of the chance that each row is among the candidates of a chunk of so many positives, float32 [...].

        A row of the chunk sees the positives of the others: one less than all.
        """
        bias = np.empty((1, rows.size), dtype=np.float32)
        self._fill_bias(rows.reshape(1, -1), np.array([num_positives], np.int32), np.array([group], np.int32), bias)
        return -bias.reshape(rows.shape)

    def draw(
        self,
        positives: NDArray[np.int32],
        lengths: NDArray[np.int32],
        generator: np.random.Generator,
        *,
        queries: NDArray[np.int32] | None = None,
        known: AnswerIndex | None = None,
        groups: NDArray[np.int32] | None = None,
    ) -> ChunkCandidates:
        """Draw the candidates of some chunks.

        Args:
            positives: int32 [C, B]; what lies past a chunk's length is padding.
            lengths: positives of each chunk, int32 [C].
            generator: source of randomness.
            queries: the number of each positive's query in `known`, int32 [C, B].
            known: answers to mask; needs `queries`.
            groups: each chunk's group, int32 [C]; None where there is one.

        Returns:
            The candidates.
        """
        num_chunks, size = positives.shape
        groups = np.zeros(num_chunks, dtype=np.int32) if groups is None else groups
        if self.takes_all:
            rows = np.broadcast_to(np.arange(self.num_rows, dtype=np.int32), (num_chunks, self.num_rows)).copy()
            num_drawn = 0
        else:
            drawn = [positives, self._uniform.draw(num_chunks * self.num_uniform, generator).reshape(num_chunks, -1)]
            if self.num_degree:
                drawn.append(self._frequencies.draw(groups, self.num_degree, generator))
            rows = np.concatenate(drawn, axis=1)
            num_drawn = size
        bias = self._bias(rows, lengths, groups)
        targets = np.zeros((num_chunks, size), dtype=np.int32)
        if known is None:
            _place(rows, positives, lengths, num_drawn, self._slot_of_row, targets, bias)
            return ChunkCandidates(rows=rows, targets=targets, bias=bias)
        if queries is None:
            raise ValueError("masking known answers needs the number of each positive's query: pass `queries`")
        arrays = rows, positives, lengths, num_drawn, self._slot_of_row, targets, bias
        hits, indptr = _place_with_hits(*arrays, queries, known.indptr, known.answers)
        return ChunkCandidates(rows=rows, targets=targets, bias=bias, hits=hits, hits_indptr=indptr)

    def _bias(self, rows: NDArray[np.int32], lengths: NDArray[np.int32], groups: NDArray[np.int32]) -> NDArray[np.float32]:
        if not self._corrects:
            return np.zeros(rows.shape, dtype=np.float32)
        if self._bias_of_row is not None and (lengths == self.chunk_size).all():
            return self._bias_of_row[rows]
        bias = np.empty(rows.shape, dtype=np.float32)
        self._fill_bias(rows, lengths, groups, bias)
        return bias

    def _fill_bias(
        self,
        rows: NDArray[np.int32],
        lengths: NDArray[np.int32],
        groups: NDArray[np.int32],
        bias: NDArray[np.float32],
    ) -> None:
        frequencies = self._frequencies
        arrays = frequencies.bounds, frequencies.seen, frequencies.log_missed_positive, frequencies.log_missed_degree
        full = self.chunk_size, self._bias_of_full_chunks
        write_bias(rows, lengths, groups, *arrays, self._log_missed_uniform, self.num_degree, *full, bias)

    def __repr__(self) -> str:
        return (
            f"ChunkSampler(num_rows={self.num_rows}, chunk_size={self.chunk_size}, uniform={self.num_uniform}, "
            f"degree={self.num_degree})"
        )


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
def _enlarge(values: Any, count: int, size: int) -> Any:
    larger = np.empty(size, dtype=np.int32)
    for place in range(count):
        larger[place] = values[place]
    return larger


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
                    hits = _enlarge(hits, count, 2 * len(hits) + num_candidates)
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
