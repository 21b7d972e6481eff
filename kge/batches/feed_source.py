"""Batches of a feed's edges, drawn by the process that has read them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from multifacet.kge.batches.chunks import ChunkSampler
from multifacet.kge.batches.draws import SIDES, BatchDraws, Scratch
from multifacet.kge.batches.epochs import Epoch
from multifacet.kge.batches.frequencies import Counts
from multifacet.kge.batches.shuffling import Edges, deal_shards, read_shuffled
from multifacet.kge.batches.source import place_types
from multifacet.kge.models.projections import ProjectionKind
from multifacet.kge.models.registry import build_model
from multifacet.training import PreparingThread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from multifacet.graphdb import Feed
    from multifacet.kge.batches.batch import Batch
    from multifacet.kge.config import KgeConfig
    from multifacet.kge.models.model import Side
    from multifacet.training import Position

__all__ = ["FeedSource", "Planned"]

_BUFFER_EDGES = 1 << 18
_NUM_OPEN = 8
_MAX_ROWS = np.iinfo(np.int32).max


class Planned(NamedTuple):
    """A batch before its negatives are drawn.

    Attributes:
        pool: number of the pair of node types.
        edges: a buffer's.
        positions: of the batch's edges among them, int64 [E].
        bounds: of its chunks in `positions`, int64 [C + 1].
    """

    pool: int
    edges: Edges
    positions: NDArray[np.int64]
    bounds: NDArray[np.int64]


class FeedSource:
    """Draws the batches of an epoch over a feed, or of one process's part of it.

    Each epoch shares the shards out anew. A batch's edges join one pair of node types, a chunk's are of one relation where the
    model asks for that. A process's batches depend on the feed, the epoch's key, its rank and the number of processes alone:
    each batch draws its negatives from a generator of its own.

    Args:
        feed: the feed.
        config: sizes of batches, chunks and negatives. A batch of all processes together has `batch_size` edges.
        rank: number of this process.
        world_size: processes that read the feed together, W.
        tells_places: see `Scratch`.
        buffer_edges: edges that are shuffled together.
        num_open: shards that are open at once.

    Attributes:
        chunk_size: edges a chunk, B.
        num_chunks: chunks of one process's full batch, C.
        mixes_relations: whether a chunk's relations are mixed.
        max_candidates: the most candidates that a side has.
        num_readers: W.

    Raises:
        ValueError: if the configuration asks for what only edges in memory can give, or a batch cannot be shared out evenly.
    """

    def __init__(
        self,
        feed: Feed,
        config: KgeConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        tells_places: bool = True,
        buffer_edges: int = _BUFFER_EDGES,
        num_open: int = _NUM_OPEN,
    ) -> None:
        _refuse(feed, config)
        self._feed = feed
        self._rank, self._world_size = rank, world_size
        self.num_readers = world_size
        self._buffer_edges, self._num_open = buffer_edges, num_open
        self.chunk_size = min(config.chunk_size, config.batch_size)
        num_chunks = max(1, config.batch_size // self.chunk_size)
        if num_chunks % world_size:
            raise ValueError(
                f"a batch of batch_size={config.batch_size} edges has {num_chunks} chunks of chunk_size={self.chunk_size}, "
                f"which {world_size} processes cannot share evenly: set batch_size to a multiple of "
                f"{world_size * self.chunk_size}"
            )
        self.num_chunks = num_chunks // world_size
        self.mixes_relations = build_model(config).projection.kind == ProjectionKind.NONE
        pairs = list(dict.fromkeys((part.src, part.dst) for part in feed.relations))
        self._pool_of = np.array([pairs.index((part.src, part.dst)) for part in feed.relations])
        self._key_of = self._pool_of if self.mixes_relations else np.arange(len(feed.relations))
        self._pool_of_key = self._pool_of if not self.mixes_relations else np.arange(len(pairs))
        offsets = place_types(feed.num_nodes, narrow=tells_places)
        scratch = Scratch.of(feed.num_nodes, len(feed.relations), tells_places=tells_places)
        self._draws: dict[int, BatchDraws] = {}
        for pool, ends in enumerate(pairs):
            members = np.flatnonzero((self._pool_of == pool) & (feed.counts.sum(0) > 0))
            if not len(members):
                continue
            types: dict[Side, str] = {"head": ends[0], "tail": ends[1]}
            groups = np.zeros(len(feed.relations), dtype=np.int32)
            if not self.mixes_relations:
                groups[members] = np.arange(len(members))
            self._draws[pool] = BatchDraws(
                chunk_size=self.chunk_size,
                mixes_relations=self.mixes_relations,
                # What the other processes' batches have is not known here: an edge weighs alike in all of them.
                num_shares=None if world_size == 1 else num_chunks * self.chunk_size,
                weights=np.array([config.relation_weights.get(part.name, 1.0) for part in feed.relations], np.float32),
                first_inverse=len(feed.relations) if config.reciprocal else 0,
                offsets={side: offsets[types[side]] for side in SIDES},
                samplers={
                    side: ChunkSampler(
                        self._count(members, side),
                        feed.num_nodes[types[side]],
                        chunk_size=self.chunk_size,
                        num_uniform=config.num_uniform,
                        num_degree=config.num_degree,
                        degree_power=config.degree_power,
                        logq=config.corrects_logq,
                        slot_of_row=scratch.slot_of_row[: feed.num_nodes[types[side]]],
                    )
                    for side in SIDES
                },
                group_of_relation=groups,
                scratch=scratch,
            )
        self.max_candidates = max(
            sampler.num_candidates for draws in self._draws.values() for sampler in draws.samplers.values()
        )

    def begin_epoch(self, position: Position) -> Epoch:
        """Draw an epoch's key, and give the batches that are left of it; see `EpochSource`.

        Where the processes have several numbers of batches, the steps are those of the one that has most: the others have
        none in the last ones. So no edge is left out, and no process waits for one that has stopped.
        """
        key = position.begin_epoch(lambda generator: int(generator.integers(1 << 62)))
        num_steps = max(self.count_steps(key, rank) for rank in range(self._world_size))
        return Epoch(num_steps=num_steps, batches=self._draw(key, position.step, num_steps))

    def count_steps(self, key: int, rank: int) -> int:
        """Count a process's batches of an epoch, from the numbers that the feed has of each shard."""
        edges = self._feed.counts[deal_shards(self._feed.num_shards, key, rank, self._world_size)].sum(0)
        edges_of_key = np.bincount(self._key_of, weights=edges, minlength=len(self._pool_of_key)).astype(np.int64)
        chunks = np.bincount(self._pool_of_key, weights=-(-edges_of_key // self.chunk_size)).astype(np.int64)
        return int((-(-chunks // self.num_chunks)).sum())

    def plan(self, key: int) -> Iterator[Planned]:
        """Give this process's batches of an epoch without negatives; the next buffer is read beside."""
        generator = np.random.default_rng((key, 1, self._rank))
        shards = deal_shards(self._feed.num_shards, key, self._rank, self._world_size).tolist()
        buffers = read_shuffled(self._feed, shards, generator, buffer_edges=self._buffer_edges, num_open=self._num_open)
        order = np.random.default_rng((key, 2, self._rank))
        left: Edges | None = None
        with PreparingThread() as thread:
            following = thread.prepare(lambda: next(buffers, None))
            while (buffer := following.result()) is not None:
                following = thread.prepare(lambda: next(buffers, None))
                edges = buffer if left is None else left.before(buffer)
                planned, kept = self._cut(edges, order, is_last=False)
                left = edges.take(kept)
                yield from planned
        if left is not None:
            yield from self._cut(left, order, is_last=True)[0]

    def draw(self, planned: Planned, generator: np.random.Generator) -> Batch:
        """Draw a batch's negatives."""
        # The batch's own edges alone: padding repeats the first one, which must be between the same types.
        edges, positions = planned.edges.take(planned.positions), np.arange(len(planned.positions))
        columns: dict[Side, NDArray[np.int32]] = {"head": edges.heads, "tail": edges.tails}
        return self._draws[planned.pool].draw(columns, edges.relations, positions, planned.bounds, generator)

    def generator(self, key: int, step: int) -> np.random.Generator:
        """Give what a step's negatives are drawn from."""
        return np.random.default_rng((key, 3, self._rank, step))

    def _draw(self, key: int, num_done: int, num_steps: int) -> Iterator[Batch]:
        for step, planned in enumerate(self.plan(key)):
            if step >= num_done:
                yield self.draw(planned, self.generator(key, step))
        for _ in range(max(num_done, self.count_steps(key, self._rank)), num_steps):
            yield next(iter(self._draws.values())).nothing()

    def _cut(self, edges: Edges, generator: np.random.Generator, *, is_last: bool) -> tuple[list[Planned], NDArray[np.int64]]:
        """Cut edges into full chunks, and those into full batches; give also the positions of what is left for later."""
        keys = self._key_of[edges.relations]
        order = np.argsort(keys, kind="stable")
        bounds = np.searchsorted(keys[order], np.arange(len(self._pool_of_key) + 1))
        chunks: dict[int, list[tuple[int, int]]] = {}
        left: list[NDArray[np.int64]] = []
        for key in np.flatnonzero(np.diff(bounds)).tolist():
            begin, end = int(bounds[key]), int(bounds[key + 1])
            whole_end = end if is_last else begin + (end - begin) // self.chunk_size * self.chunk_size
            starts = range(begin, whole_end, self.chunk_size)
            of_pool = chunks.setdefault(int(self._pool_of_key[key]), [])
            of_pool.extend((start, min(start + self.chunk_size, whole_end)) for start in starts)
            left.append(order[whole_end:end])
        planned = []
        for pool, ranges in chunks.items():
            if not self.mixes_relations:
                ranges = [ranges[place] for place in generator.permutation(len(ranges))]  # noqa: PLW2901 - the same, shuffled
            num_whole = len(ranges) if is_last else len(ranges) // self.num_chunks * self.num_chunks
            for first in range(0, num_whole, self.num_chunks):
                chosen = ranges[first : first + self.num_chunks]
                chunk_bounds = np.array([0, *itertools.accumulate(end - begin for begin, end in chosen)])
                positions = np.concatenate([order[begin:end] for begin, end in chosen])
                planned.append(Planned(pool, edges, positions, chunk_bounds))
            left.extend(order[begin:end] for begin, end in ranges[num_whole:])
        kept = np.sort(np.concatenate([np.empty(0, dtype=np.int64), *left]))
        return [planned[place] for place in generator.permutation(len(planned))], kept

    def _count(self, members: NDArray[np.int64], side: Side) -> Iterator[Counts]:
        """Give how often rows are positives: of each relation, or of all relations between two node types together."""
        groups = [self._feed.degree_groups[member] for member in members.tolist()]
        counted = [self._feed.degrees(group, side) for group in dict.fromkeys(groups)]
        if not self.mixes_relations:
            yield from (Counts(*part) for part in counted)
            return
        if len(counted) == 1:
            yield Counts(*counted[0])
            return
        rows, places = np.unique(np.concatenate([part[0] for part in counted]), return_inverse=True)
        counts = np.bincount(places, weights=np.concatenate([part[1] for part in counted]), minlength=len(rows))
        yield Counts(rows, counts.astype(np.int64))


def _refuse(feed: Feed, config: KgeConfig) -> None:
    """Refuse what needs all edges in memory, by name."""
    fields = type(config).model_fields
    names = ("full_softmax", "partitions", "memory_limit_gb", "mask_known", "max_edges_per_relation")
    given = [f"{name}={getattr(config, name)!r}" for name in names if getattr(config, name) != fields[name].default]
    if config.preset == "auto":
        given.append("preset='auto'")
    if given:
        raise ValueError(
            f"{', '.join(given)}: needs all edges in memory, which a feed has not; leave it out, or train on the view"
        )
    if not config.distinct_edges and "weight" in (feed.record.names or ()):
        raise ValueError(
            "distinct_edges=False learns from an edge as often as its weight says, and a feed gives each pair once an epoch: "
            "leave it out, or train on the view"
        )
    if wide := {name: count for name, count in feed.num_nodes.items() if count > _MAX_ROWS}:
        raise ValueError(f"node types with more than {_MAX_ROWS} rows, {wide}: rows of one type are int32 in a training")
    known = [part.name for part in feed.relations]
    if unknown := [name for name in config.relation_weights if name not in known]:
        raise ValueError(f"relation_weights names {unknown}, but the feed has the relations {known}")
    if unused := [name for name, weight in config.relation_weights.items() if weight == 0]:
        raise ValueError(f"relation_weights leaves {unused} out, which a feed has in all of its shards: write it without them")
    if build_model(config).projection.kind != ProjectionKind.NONE and max(feed.degree_groups) < len(known) - 1:
        raise ValueError(
            f"{config.model} draws negatives by relation, and this feed counts the degrees of {len(known)} relations by node "
            "type, as they are too many: train another model, or on the view"
        )
