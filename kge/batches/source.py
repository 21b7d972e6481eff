"""Batches of triples in chunks, each chunk with negatives of its own, drawn for both sides.

All node types' rows stand in one block, type after type, so that a batch names its rows by one number. The triples of one
pair of node types make batches together; within a chunk their relations are mixed, unless the model maps candidates into a
space of the relation's own: then a chunk has one relation.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from multifacet.kge.batches.answers import AnswerIndex
from multifacet.kge.batches.batch import Batch, BatchSide
from multifacet.kge.batches.chunks import ChunkSampler
from multifacet.kge.batches.repetitions import Repetitions
from multifacet.kge.models.projections import ProjectionKind
from multifacet.kge.models.registry import build_model
from multifacet.tables.optim import Occurrences

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from multifacet.kge.config import KgeConfig
    from multifacet.kge.models.model import Side
    from multifacet.kge.triples.triples import TripleSet

__all__ = ["BatchSource", "place_types"]

_SIDES: tuple[Side, Side] = ("tail", "head")
_OTHER: dict[Side, Side] = {"tail": "head", "head": "tail"}


def place_types(num_nodes: Mapping[str, int]) -> dict[str, int]:
    """Give each node type's first row in the block of all types' rows."""
    offsets, total = {}, 0
    for node_type, count in num_nodes.items():
        offsets[node_type] = total
        total += count
    if total >= np.iinfo(np.int32).max:
        raise ValueError(f"{total} nodes in all: rows are int32, so one table holds at most {np.iinfo(np.int32).max}")
    return offsets


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pool:
    """The triples of one pair of node types, relation by relation."""

    columns: dict[Side, NDArray[np.int32]]
    offsets: dict[Side, int]
    relations: NDArray[np.int32]
    bounds: NDArray[np.int64]  # of each present relation's triples
    repetitions: Repetitions | None  # of weighted triples
    samplers: dict[Side, ChunkSampler]
    group_of_relation: NDArray[np.int32]  # the sampler's group, by the number of each of the relations of all pools
    known: dict[Side, AnswerIndex]


class BatchSource:
    """Draws the batches of an epoch.

    Args:
        triples: what is learned from.
        config: sizes of batches, chunks and negatives.
        evenly: whether an edge of a batch that is not full weighs no more than others; else each batch's weights sum to 1.

    Attributes:
        chunk_size: edges a chunk, B.
        num_chunks: chunks of a full batch, C.
        mixes_relations: whether a chunk's relations are mixed.
        max_candidates: the most candidates that a side has.
    """

    def __init__(self, triples: TripleSet, config: KgeConfig, *, evenly: bool = False) -> None:
        self.config = config
        self._evenly = evenly
        self.chunk_size = min(config.chunk_size, config.batch_size)
        self.num_chunks = max(1, config.batch_size // self.chunk_size)
        self.mixes_relations = build_model(config).projection.kind == ProjectionKind.NONE
        self._num_relations = len(triples.relation_names)
        self._weights = np.array([config.relation_weights.get(name, 1.0) for name in triples.relation_names], np.float32)
        offsets = place_types(triples.num_nodes)
        self._slot_of_row = np.full(sum(triples.num_nodes.values()), -1, dtype=np.int32)
        self._slot_of_key = np.full(2 * self._num_relations, -1, dtype=np.int32)
        pairs: dict[tuple[str, str], list[int]] = {}
        for number, name in enumerate(triples.relation_names):
            pairs.setdefault(triples.ends[name], []).append(number)
        self._pools = []
        for ends, numbers in pairs.items():
            order = np.flatnonzero(np.isin(triples.relations, numbers))
            if len(order):
                order = order[np.argsort(triples.relations[order], kind="stable")]
                self._pools.append(self._pool(triples, order, ends, offsets))
        self.max_candidates = max(sampler.num_candidates for pool in self._pools for sampler in pool.samplers.values())

    def epoch(self, generator: np.random.Generator) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Draw the order of an epoch: its batches, shuffled, each as pool, positions of triples, and bounds of chunks.

        Args:
            generator: source of randomness.
        """
        batches = []
        for number, pool in enumerate(self._pools):
            order, bounds = self._shuffle(pool, generator)
            begins = np.concatenate([np.arange(begin, end, self.chunk_size) for begin, end in itertools.pairwise(bounds)])
            ends = np.minimum(begins + self.chunk_size, np.repeat(bounds[1:], -(-np.diff(bounds) // self.chunk_size)))
            if len(bounds) > 2:
                shuffled = generator.permutation(len(begins))
                begins, ends = begins[shuffled], ends[shuffled]
            for first in range(0, len(begins), self.num_chunks):
                chosen = slice(first, first + self.num_chunks)
                parts = [order[begin:end] for begin, end in zip(begins[chosen], ends[chosen], strict=True)]
                chunk_bounds = np.cumsum([0, *(len(part) for part in parts)])
                batches.append((number, np.concatenate(parts) if len(parts) > 1 else parts[0], chunk_bounds))
        return [batches[position] for position in generator.permutation(len(batches))]

    def batches(
        self, epoch: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]], generator: np.random.Generator
    ) -> Iterator[Batch]:
        """Draw an epoch's batches, one after the other."""
        for pool, positions, bounds in epoch:
            yield self.draw(pool, positions, bounds, generator)

    def draw(self, pool: int, positions: NDArray[np.int64], bounds: NDArray[np.int64], generator: np.random.Generator) -> Batch:
        """Draw the negatives of a batch.

        Args:
            pool: number of the pair of node types.
            positions: of the batch's triples in the pool, int64 [E].
            bounds: of its chunks in `positions`, int64 [C + 1].
            generator: source of randomness.
        """
        chosen, size = self._pools[pool], self.chunk_size
        num_chunks = len(bounds) - 1
        lengths = np.diff(bounds).astype(np.int32)
        weights = np.empty((num_chunks, size), dtype=np.float32)
        padded = np.empty((num_chunks, size), dtype=np.int64)
        num_shares = self.num_chunks * size if self._evenly else len(positions)
        _lay_out_edges(positions, bounds, chosen.relations, self._weights, num_shares, padded, weights)
        sides = []
        for side, other in _OTHER.items():
            sampler = chosen.samplers[side]
            asked, keys = np.empty((2, num_chunks, size), dtype=np.int32)
            rows = np.empty((num_chunks, size + sampler.num_candidates), dtype=np.int32)
            first_key = self._num_relations if self.config.reciprocal and side == "head" else 0
            arrays = chosen.columns[other], chosen.columns[side], chosen.relations
            _lay_out_ends(padded, *arrays, chosen.offsets[other], first_key, rows, asked, keys)
            known = chosen.known.get(side)
            candidates = sampler.draw(
                asked,
                lengths,
                generator,
                queries=known.queries[padded] if known is not None else None,
                known=known,
                groups=chosen.group_of_relation[keys[:, 0] - first_key],
            )
            rows[:, size:] = candidates.rows
            rows[:, size:] += np.int32(chosen.offsets[side])
            sides.append(BatchSide(side=side, rows=rows, keys=keys, candidates=replace(candidates, rows=rows[:, size:])))
        named = np.empty(sides[0].rows.size + sides[1].rows.size, dtype=np.int32)
        named_keys = np.empty((2, num_chunks, size if self.mixes_relations else 1), dtype=np.int32)
        first, second = ((part.rows, part.candidates.bias, part.keys) for part in sides)
        _name_places(lengths, first, second, named, named_keys)
        return Batch(
            num_edges=len(positions),
            weights=weights,
            sides=(sides[0], sides[1]),
            rows=Occurrences.of(named, self._slot_of_row),
            keys=Occurrences.of(named_keys.ravel(), self._slot_of_key),
        )

    def _shuffle(self, pool: _Pool, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shuffle a pool's triples, within each relation or all of them; give the bounds of what may share a chunk."""
        cap, repetitions = self.config.max_edges_per_relation, pool.repetitions
        places = None if repetitions is None else repetitions.draw(generator)
        if cap is None and self.mixes_relations:
            order = generator.permutation(len(pool.relations)) if places is None else places.shuffle(generator)
            return order, np.array([0, len(order)])
        parts = []
        for begin, end in zip(pool.bounds[:-1].tolist(), pool.bounds[1:].tolist(), strict=True):
            if places is None:
                parts.append(begin + generator.permutation(end - begin)[:cap])
            else:
                parts.append(places.shuffle(generator, begin, end, cap))
        order = np.concatenate(parts)
        if self.mixes_relations:
            return generator.permutation(order), np.array([0, len(order)])
        return order, np.cumsum([0, *(len(part) for part in parts)])

    def _pool(self, triples: TripleSet, order: NDArray[np.int64], ends: tuple[str, str], offsets: Mapping[str, int]) -> _Pool:
        config = self.config
        relations = triples.relations[order]
        bounds = np.append(np.flatnonzero(np.diff(relations, prepend=-1)), len(relations)).astype(np.int64)
        columns: dict[Side, NDArray[np.int32]] = {"head": triples.heads[order], "tail": triples.tails[order]}
        weights = None if triples.weights is None else triples.weights[order]
        types: dict[Side, str] = {"head": ends[0], "tail": ends[1]}
        samplers: dict[Side, ChunkSampler] = {}
        for side in _SIDES:
            num_rows = triples.num_nodes[types[side]]
            samplers[side] = ChunkSampler(
                columns[side],
                num_rows,
                chunk_size=self.chunk_size,
                num_uniform=config.num_uniform,
                num_degree=config.num_degree,
                degree_power=config.degree_power,
                logq=config.corrects_logq,
                slot_of_row=self._slot_of_row[:num_rows],
                bounds=None if self.mixes_relations else bounds,
                weights=weights,
            )
        known: dict[Side, AnswerIndex] = {}
        if config.mask_known:
            known["tail"] = AnswerIndex.of(columns["head"], relations, columns["tail"])
            known["head"] = AnswerIndex.of(columns["tail"], relations, columns["head"])
        group_of_relation = np.zeros(len(triples.relation_names), dtype=np.int32)
        if not self.mixes_relations:
            group_of_relation[relations[bounds[:-1]]] = np.arange(len(bounds) - 1)
        return _Pool(
            columns=columns,
            offsets={side: offsets[types[side]] for side in _SIDES},
            relations=relations,
            bounds=bounds,
            repetitions=None
            if weights is None
            else Repetitions.of(weights, bounded=config.max_edges_per_relation is not None, where=" and ".join(ends)),
            samplers=samplers,
            group_of_relation=group_of_relation,
            known=known,
        )


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
