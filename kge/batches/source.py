"""Batches of triples in chunks, each chunk with negatives of its own, drawn for both sides.

All node types' rows stand in one block, type after type, so that a batch names its rows by one number. The triples of one
pair of node types make batches together; within a chunk their relations are mixed, unless the model maps candidates into a
space of the relation's own: then a chunk has one relation.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from multifacet.kge.batches.answers import AnswerIndex
from multifacet.kge.batches.chunks import ChunkSampler
from multifacet.kge.batches.draws import SIDES, BatchDraws, Scratch
from multifacet.kge.batches.epochs import Epoch
from multifacet.kge.batches.frequencies import count_positives
from multifacet.kge.batches.repetitions import Repetitions
from multifacet.kge.models.projections import ProjectionKind
from multifacet.kge.models.registry import build_model
from multifacet.kge.triples.triples import TripleSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from multifacet.kge.batches.batch import Batch
    from multifacet.kge.config import KgeConfig
    from multifacet.kge.models.model import Side
    from multifacet.training import Position

__all__ = ["BatchSource", "place_types", "source_in_memory"]


def place_types(num_nodes: Mapping[str, int], *, narrow: bool = True) -> dict[str, int]:
    """Give each node type's first row in the block of all types' rows.

    Args:
        num_nodes: node type -> rows.
        narrow: whether rows have to be int32, as those of one process's tables.
    """
    offsets, total = {}, 0
    for node_type, count in num_nodes.items():
        offsets[node_type] = total
        total += count
    if narrow and total >= np.iinfo(np.int32).max:
        raise ValueError(f"{total} nodes in all: rows are int32, so one table holds at most {np.iinfo(np.int32).max}")
    return offsets


def source_in_memory(triples: object, config: KgeConfig, *, tells_places: bool = True) -> BatchSource:
    """Give what draws batches of triples in memory.

    Raises:
        TypeError: if they are not in memory.
    """
    if not isinstance(triples, TripleSet):
        raise TypeError(f"split.train is {triples!r}; expected a TripleSet: what is not in memory has a source of its own")
    return BatchSource(triples, config, tells_places=tells_places)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pool:
    """The triples of one pair of node types, relation by relation."""

    columns: dict[Side, NDArray[np.int32]]
    relations: NDArray[np.int32]
    bounds: NDArray[np.int64]  # of each present relation's triples
    repetitions: Repetitions | None  # of weighted triples
    known: dict[Side, AnswerIndex]
    draws: BatchDraws


class BatchSource:
    """Draws the batches of an epoch.

    Args:
        triples: what is learned from.
        config: sizes of batches, chunks and negatives.
        evenly: whether an edge of a batch that is not full weighs no more than others; else each batch's weights sum to 1.
        tells_places: see `Scratch`.

    Attributes:
        chunk_size: edges a chunk, B.
        num_chunks: chunks of a full batch, C.
        mixes_relations: whether a chunk's relations are mixed.
        max_candidates: the most candidates that a side has.
        num_readers: None: all processes draw alike.
    """

    def __init__(self, triples: TripleSet, config: KgeConfig, *, evenly: bool = False, tells_places: bool = True) -> None:
        self.config = config
        self.num_readers = None
        self._evenly = evenly
        self.chunk_size = min(config.chunk_size, config.batch_size)
        self.num_chunks = max(1, config.batch_size // self.chunk_size)
        self.mixes_relations = build_model(config).projection.kind == ProjectionKind.NONE
        self._weights = np.array([config.relation_weights.get(name, 1.0) for name in triples.relation_names], np.float32)
        offsets = place_types(triples.num_nodes, narrow=tells_places)
        self._scratch = Scratch.of(triples.num_nodes, len(triples.relation_names), tells_places=tells_places)
        pairs: dict[tuple[str, str], list[int]] = {}
        for number, name in enumerate(triples.relation_names):
            pairs.setdefault(triples.ends[name], []).append(number)
        self._pools = []
        for ends, numbers in pairs.items():
            order = np.flatnonzero(np.isin(triples.relations, numbers))
            if len(order):
                order = order[np.argsort(triples.relations[order], kind="stable")]
                self._pools.append(self._pool(triples, order, ends, offsets))
        self.max_candidates = max(sampler.num_candidates for pool in self._pools for sampler in pool.draws.samplers.values())

    def begin_epoch(self, position: Position) -> Epoch:
        """Draw the order of an epoch, and give the batches that are left of it; see `EpochSource`."""
        plan = position.begin_epoch(self.epoch)
        return Epoch(num_steps=len(plan), batches=self.batches(plan[position.step :], position.generator))

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
        chosen = self._pools[pool]
        return chosen.draws.draw(chosen.columns, chosen.relations, positions, bounds, generator, chosen.known)

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
        for side in SIDES:
            num_rows = triples.num_nodes[types[side]]
            groups = None if self.mixes_relations else bounds
            samplers[side] = ChunkSampler(
                count_positives(columns[side], weights, groups),
                num_rows,
                chunk_size=self.chunk_size,
                num_uniform=config.num_uniform,
                num_degree=config.num_degree,
                degree_power=config.degree_power,
                logq=config.corrects_logq,
                slot_of_row=self._scratch.slot_of_row[:num_rows],
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
            relations=relations,
            bounds=bounds,
            repetitions=None
            if weights is None
            else Repetitions.of(weights, bounded=config.max_edges_per_relation is not None, where=" and ".join(ends)),
            known=known,
            draws=BatchDraws(
                chunk_size=self.chunk_size,
                mixes_relations=self.mixes_relations,
                num_shares=self.num_chunks * self.chunk_size if self._evenly else None,
                weights=self._weights,
                first_inverse=len(triples.relation_names) if config.reciprocal else 0,
                offsets={side: offsets[types[side]] for side in SIDES},
                samplers=samplers,
                group_of_relation=group_of_relation,
                scratch=self._scratch,
            ),
        )
