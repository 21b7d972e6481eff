"""Laying a batch's edges out, and drawing what each side is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from multifacet.kge.batches.batch import Batch, BatchSide
from multifacet.kge.batches.chunks import ChunkCandidates
from multifacet.tables.optim import Occurrences

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from multifacet.kge.batches.answers import AnswerIndex
    from multifacet.kge.batches.chunks import ChunkSampler
    from multifacet.kge.models.model import Side

__all__ = ["OTHER_SIDE", "SIDES", "BatchDraws", "Scratch"]

SIDES: tuple[Side, Side] = ("tail", "head")
OTHER_SIDE: dict[Side, Side] = {"tail": "head", "head": "tail"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scratch:
    """What the draws of all pairs of node types share.

    Attributes:
        slot_of_row: int32 of -1, as many as a type has rows; of all types' together where places are told.
        slot_of_key: int32 of -1, [2 R].
        tells_places: whether a batch says in which places each row occurs, as the kernels of a process with whole tables need;
            else its rows are int64, of which all types together may have any number.
    """

    slot_of_row: NDArray[np.int32]
    slot_of_key: NDArray[np.int32]
    tells_places: bool

    @classmethod
    def of(cls, num_nodes: Mapping[str, int], num_relations: int, *, tells_places: bool) -> Scratch:
        """Allocate for node types and relations."""
        counts = num_nodes.values()
        return cls(
            slot_of_row=np.full(sum(counts) if tells_places else max(counts), -1, dtype=np.int32),
            slot_of_key=np.full(2 * num_relations, -1, dtype=np.int32),
            tells_places=tells_places,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchDraws:
    """Draws batches of edges between one pair of node types.

    Attributes:
        chunk_size: edges a chunk, B.
        mixes_relations: whether a chunk's relations are mixed.
        num_shares: edges of a full batch, where each edge of any batch weighs as one of those; None: each batch's weights sum
            to 1.
        weights: of the relations, float32 [R].
        first_inverse: number by which the keys of head queries begin.
        offsets: first row of each side's type in the block of all types.
        samplers: what each side is compared with.
        group_of_relation: the samplers' group, by the number of each relation.
        scratch: shared with other draws of the same thread.
    """

    chunk_size: int
    mixes_relations: bool
    num_shares: int | None
    weights: NDArray[np.float32]
    first_inverse: int
    offsets: Mapping[Side, int]
    samplers: Mapping[Side, ChunkSampler]
    group_of_relation: NDArray[np.int32]
    scratch: Scratch

    def draw(
        self,
        columns: Mapping[Side, NDArray[Any]],
        relations: NDArray[Any],
        positions: NDArray[np.int64],
        bounds: NDArray[np.int64],
        generator: np.random.Generator,
        known: Mapping[Side, AnswerIndex] | None = None,
    ) -> Batch:
        """Draw a batch.

        Args:
            columns: heads and tails of edges between the two types, as rows of these.
            relations: of the edges.
            positions: of the batch's edges among them, int64 [E].
            bounds: of its chunks in `positions`, int64 [C + 1].
            generator: source of randomness.
            known: answers to mask, by side; their queries are those of `columns`.
        """
        size, num_chunks = self.chunk_size, len(bounds) - 1
        lengths = np.diff(bounds).astype(np.int32)
        weights = np.empty((num_chunks, size), dtype=np.float32)
        padded = np.empty((num_chunks, size), dtype=np.int64)
        num_shares = len(positions) if self.num_shares is None else self.num_shares
        _lay_out_edges(positions, bounds, relations, self.weights, num_shares, padded, weights)
        row_type = np.int32 if self.scratch.tells_places else np.int64
        sides = []
        for side, other in OTHER_SIDE.items():
            sampler = self.samplers[side]
            asked, keys = np.empty((2, num_chunks, size), dtype=np.int32)
            rows = np.empty((num_chunks, size + sampler.num_candidates), dtype=row_type)
            first_key = self.first_inverse if side == "head" else 0
            arrays = columns[other], columns[side], relations
            _lay_out_ends(padded, *arrays, self.offsets[other], first_key, rows, asked, keys)
            answers = known.get(side) if known else None
            candidates = sampler.draw(
                asked,
                lengths,
                generator,
                queries=answers.queries[padded] if answers is not None else None,
                known=answers,
                groups=self.group_of_relation[keys[:, 0] - first_key],
            )
            rows[:, size:] = candidates.rows
            rows[:, size:] += row_type(self.offsets[side])
            sides.append(BatchSide(side=side, rows=rows, keys=keys, candidates=replace(candidates, rows=rows[:, size:])))
        named_rows, named_keys = self._name_places(lengths, (sides[0], sides[1]))
        return Batch(
            num_edges=len(positions),
            weights=weights,
            sides=(sides[0], sides[1]),
            rows=Occurrences.of(named_rows, self.scratch.slot_of_row),
            keys=Occurrences.of(named_keys, self.scratch.slot_of_key),
        )

    def nothing(self) -> Batch:
        """Give a batch without edges: of a process that has no more of them, while others have."""
        sides = []
        for side in OTHER_SIDE:
            width = self.chunk_size + self.samplers[side].num_candidates
            rows, keys = np.empty((0, width), dtype=np.int32), np.empty((0, self.chunk_size), dtype=np.int32)
            bias = np.empty((0, width - self.chunk_size), dtype=np.float32)
            candidates = ChunkCandidates(rows=rows[:, self.chunk_size :], targets=keys, bias=bias)
            sides.append(BatchSide(side=side, rows=rows, keys=keys, candidates=candidates))
        none = np.empty(0, dtype=np.int32)
        return Batch(
            num_edges=0,
            weights=np.empty((0, self.chunk_size), dtype=np.float32),
            sides=(sides[0], sides[1]),
            rows=Occurrences.of(none, self.scratch.slot_of_row),
            keys=Occurrences.of(none, self.scratch.slot_of_key),
        )

    def _name_places(
        self, lengths: NDArray[np.int32], sides: tuple[BatchSide, BatchSide]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Give the row and the key of each place with a gradient; none where places are not told."""
        if not self.scratch.tells_places:
            return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32)
        rows = np.empty(sides[0].rows.size + sides[1].rows.size, dtype=np.int32)
        keys = np.empty((2, len(lengths), self.chunk_size if self.mixes_relations else 1), dtype=np.int32)
        first, second = ((part.rows, part.candidates.bias, part.keys) for part in sides)
        _name_places(lengths, first, second, rows, keys)
        return rows, keys.ravel()


@numba.njit(nogil=True, cache=True)
def _lay_out_edges(
    positions: Any, bounds: Any, relations: Any, weight_of_relation: Any, num_shares: int, padded: Any, weights: Any
) -> None:
    """Write each chunk's positions, those of its padding 0, and the weights of its edges."""
    share = np.float32(1.0) / np.float32(num_shares)
    for chunk in range(padded.shape[0]):
        for edge in range(padded.shape[1]):
            place = bounds[chunk] + edge
            if place < bounds[chunk + 1]:
                padded[chunk, edge] = positions[place]
                weights[chunk, edge] = weight_of_relation[relations[positions[place]]] * share
            else:
                padded[chunk, edge] = 0
                weights[chunk, edge] = np.float32(0.0)


@numba.njit(nogil=True, cache=True)
def _lay_out_ends(
    padded: Any, known: Any, asked: Any, relations: Any, first_row: int, first_key: int, rows: Any, positives: Any, keys: Any
) -> None:
    """Write the rows of known ends, the positives as rows of their type, and the keys of one side."""
    for chunk in range(padded.shape[0]):
        for edge in range(padded.shape[1]):
            position = padded[chunk, edge]
            rows[chunk, edge] = known[position] + first_row
            positives[chunk, edge] = asked[position]
            keys[chunk, edge] = relations[position] + first_key


@numba.njit(nogil=True, cache=True)
def _name_places(lengths: Any, first: Any, second: Any, named: Any, named_keys: Any) -> None:
    """Write the row and the key of each place with a gradient, and -1 for the others."""
    place = 0
    for position in range(2):
        rows, bias, keys = first if position == 0 else second
        size, num_named = keys.shape[1], named_keys.shape[2]
        for chunk in range(len(lengths)):
            for slot in range(rows.shape[1]):
                counts = slot < lengths[chunk] if slot < size else bias[chunk, slot - size] > -np.inf
                named[place] = rows[chunk, slot] if counts else -1
                place += 1
            for edge in range(num_named):
                named_keys[position, chunk, edge] = keys[chunk, edge] if edge < lengths[chunk] else -1
