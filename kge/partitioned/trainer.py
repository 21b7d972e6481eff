"""Epochs over triples whose tables do not fit into memory: bucket by bucket, two partitions of the tables at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from typing_extensions import override

from multifacet.kge.batches.source import BatchSource, place_types
from multifacet.kge.evaluation.predictor import LinkPredictor
from multifacet.kge.models.registry import build_model
from multifacet.kge.models.relations import RelationParameters
from multifacet.kge.partitioned.buckets import EdgeBuckets, visit_pairs
from multifacet.kge.partitioned.files import PartitionFiles
from multifacet.kge.partitioned.residents import Residents
from multifacet.kge.sampled.schedule import rate_factor, step_seed
from multifacet.kge.sampled.state import TrainerState
from multifacet.kge.sampled.step import TrainingStep
from multifacet.tables.optim import RowwiseAdagrad
from multifacet.tables.tensors import empty_table
from multifacet.training import Lanes, Position, TrainingRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from multifacet.kge.batches.batch import Batch
    from multifacet.kge.config import KgeConfig
    from multifacet.kge.triples.triples import TripleSplit
    from multifacet.training import SavedState, WarmStart

__all__ = ["PartitionedState", "PartitionedTrainer"]


@dataclass(kw_only=True, slots=True)
class PartitionedState(TrainerState):
    """All that changes while a trainer runs; `tables` are the rows in memory, two partitions of each type that is cut.

    Attributes:
        files: the partitions on disk.
        residents: those in memory.
        bucket: place of the bucket at work in its epoch; -1 between two epochs.
        bucket_start: steps of the epoch before that bucket.
    """

    files: PartitionFiles
    residents: Residents
    bucket: int = -1
    bucket_start: int = 0

    @override
    def fields(self) -> dict[str, Any]:
        return {"partitions": self.residents.partitions, "bucket": self.bucket, "bucket_start": self.bucket_start}

    @override
    def restore_fields(self, fields: Mapping[str, Any]) -> None:
        self.residents.forget(fields["partitions"])
        self.bucket, self.bucket_start = fields["bucket"], fields["bucket_start"]

    @override
    def save(self) -> SavedState:
        # The files of what is in memory are older than it, and are not looked at again before it is written back.
        self.residents.finish_writing()
        return replace(super(PartitionedState, self).save(), files=self.files.paths())

    @override
    def restore(self, saved: SavedState) -> None:
        super(PartitionedState, self).restore(saved)
        self.files.adopt(saved.files)

    @override
    def row_squares(self) -> dict[str, Tensor]:
        self.residents.write_all()
        squares = {name: optimizer.state for name, optimizer in self.optimizers.items()}
        return squares | {name: self.files.assemble_squares(name) for name in self.files.num_rows}

    def rows(self) -> dict[str, Tensor]:
        """Give all rows by node type, those of types that are cut as pages of files."""
        self.residents.write_all()
        return self.tables | {name: self.files.assemble_rows(name) for name in self.files.num_rows}


class _Plan(NamedTuple):
    """An epoch: the buckets' partitions by slot in the order of their turns, and what their batches are drawn from."""

    turns: list[tuple[int, int]]
    first: tuple[BatchSource, list[Any]]
    seeds: NDArray[np.int64]


class PartitionedTrainer:
    """Runs epochs over triples, bucket by bucket.

    A bucket is what a `Trainer` would see if there were only its two partitions: the same batches, the same step, with
    negatives drawn from the rows in memory. Each step to the next bucket exchanges one partition, which is read ahead; what
    leaves is written beside the next bucket's steps. With one partition the batches are those of a `Trainer`, bit by bit.
    The rows of a type that is cut are rounded up to a multiple of P in memory: up to P - 1 rows that are nobody's may be
    drawn as negatives. `mask_known` knows the positives of the bucket at work.

    Args:
        split: what is learned from and what is ranked; the triples themselves stay in memory, 12 bytes each.
        config: the model and how it is trained.
        generator: source of shuffles and negatives.
        num_partitions: P.
        folder: where the partitions are kept; anything there is removed.
        min_rows: types of fewer rows a partition are not cut.
    """

    def __init__(
        self,
        split: TripleSplit,
        config: KgeConfig,
        generator: np.random.Generator,
        *,
        num_partitions: int,
        folder: Path,
        min_rows: int = 1000,
    ) -> None:
        triples = split.train
        if not len(triples):
            raise ValueError("there is no triple to learn from: the split's train part is empty")
        self.config = config
        self.ends = dict(triples.ends)
        self.model = build_model(config)
        self.buckets = EdgeBuckets.of(triples, num_partitions, seed=config.seed, min_rows=min_rows)
        if not self.buckets.partitioned:
            raise ValueError(
                f"partitions={num_partitions} cuts only node types of {min_rows} rows a partition or more, and there are "
                f"{dict(triples.num_nodes)}: set partitions=1"
            )
        pairs = visit_pairs(num_partitions)
        self._num_steps = sum(-(-self.buckets.num_draws(pair) // config.batch_size) for pair in pairs)
        num_nodes, offsets = self.buckets.local_nodes(), place_types(self.buckets.local_nodes())
        num_rows = sum(num_nodes.values())
        self._table = empty_table(num_rows, config.dim).zero_()
        self._squares = empty_table(num_rows).zero_()
        tables = {name: self._table[offsets[name] : offsets[name] + count] for name, count in num_nodes.items()}
        optimizers = {name: RowwiseAdagrad(0, config.lr) for name in num_nodes}
        for name, optimizer in optimizers.items():
            optimizer.state = self._squares[offsets[name] : offsets[name] + num_nodes[name]]
        seeded = torch.Generator().manual_seed(config.seed)
        cut = {name: count for name, count in triples.num_nodes.items() if name in self.buckets.partitioned}
        files = PartitionFiles(folder, cut, dim=config.dim, num_partitions=num_partitions)
        files.initialise(scale=config.init_scale, generator=seeded)
        for name, table in tables.items():
            if name not in cut:
                table.normal_(std=config.init_scale, generator=seeded)
        slots = []
        for slot in range(min(2, num_partitions)):
            places = {name: slice(slot * count, (slot + 1) * count) for name, count in files.partition_rows.items()}
            rows = {name: tables[name][place].numpy() for name, place in places.items()}
            slots.append((rows, {name: optimizers[name].state[place].numpy() for name, place in places.items()}))
        self.state = PartitionedState(
            tables=tables,
            optimizers=optimizers,
            relations=RelationParameters(self.model, triples.relation_names, reciprocal=config.reciprocal, generator=seeded),
            position=Position(generator=generator),
            files=files,
            residents=Residents(files, slots),
        )

    def run_epoch(self, run: TrainingRun | None = None) -> dict[str, float]:
        """Pass once over the triples, or over those that are left of an epoch that was interrupted.

        Args:
            run: what saves the state between two steps; None for a run that is never saved.

        Returns:
            epoch, loss (mean over edges of both sides' losses), seconds and edges_per_s.
        """
        run, state = run or TrainingRun(), self.state
        position = state.position
        plan = position.begin_epoch(self._draw)
        step: TrainingStep | None = None
        with Lanes() as lanes:
            for turn, source, batch in run.steps(self._batches(plan), lanes, state, num_steps=self._num_steps):
                if step is None or turn != state.bucket:
                    step = self._begin(plan, turn, source)
                position.add(loss=self._learn(step, batch, lanes), examples=batch.num_edges)
        state.bucket, state.bucket_start = -1, 0
        return state.end_epoch(run)

    def predictor(self) -> LinkPredictor:
        """Give the scores of the tables as they are now, from files that are mapped into memory."""
        return LinkPredictor(model=self.model, vectors=self.state.rows(), relations=self.state.relations, ends=self.ends)

    def warm_start(self, warm_start: WarmStart, node_ids: Callable[[str], Any]) -> None:
        """Refuse: matching ids would need whole tables in memory.

        Raises:
            ValueError: always.
        """
        del node_ids
        raise ValueError(
            f"a warm start from {warm_start.snapshot.path} needs whole tables in memory, so they cannot be cut: leave "
            "partitions and memory_limit_gb out"
        )

    def close(self) -> None:
        """End the thread that reads and writes, and remove the partitions' files; what `predictor` gave stays."""
        self.state.residents.close()
        self.state.files.remove()

    def _draw(self, generator: np.random.Generator) -> _Plan:
        """Draw an epoch: which partition is which in the order of pairs, and the batches of the first bucket."""
        num_partitions = self.buckets.num_partitions
        named = generator.permutation(num_partitions).tolist()
        turns: list[tuple[int, int]] = []
        for pair in visit_pairs(num_partitions):
            wanted = named[pair[0]], named[pair[1]]
            if not self.buckets.size(wanted):
                continue
            before = turns[-1] if turns else wanted
            # What stays keeps its slot.
            swaps = wanted[0] == before[1] or wanted[1] == before[0]
            turns.append((wanted[1], wanted[0]) if swaps and wanted[0] != wanted[1] else wanted)
        source = self._source(turns[0])
        first = source, source.epoch(generator)
        return _Plan(turns=turns, first=first, seeds=generator.integers(0, 2**63 - 1, size=len(turns) - 1))

    def _batches(self, plan: _Plan) -> Iterator[tuple[int, BatchSource, Batch]]:
        """Draw what is left of an epoch: the turn, what draws its batches, and a batch."""
        position = self.state.position
        begin, num_done = max(self.state.bucket, 0), position.step - self.state.bucket_start
        for turn in range(begin, len(plan.turns)):
            if turn:
                source = self._source(plan.turns[turn])
                batches = source.epoch(np.random.default_rng(plan.seeds[turn - 1]))
            else:
                source, batches = plan.first
            for batch in source.batches(batches[num_done if turn == begin else 0 :], position.generator):
                yield turn, source, batch

    def _source(self, slots: tuple[int, int]) -> BatchSource:
        """Give what draws a bucket's batches.

        The last batch of a bucket is seldom full. Did its edges weigh more, their rows' accumulated squares would grow so much
        that they would hardly move again; with P^2 / 2 buckets an epoch, that tells.
        """
        return BatchSource(self.buckets.local(slots), self.config, evenly=self.buckets.num_partitions > 1)

    def _begin(self, plan: _Plan, turn: int, source: BatchSource) -> TrainingStep:
        """Bring a bucket's partitions into memory, and begin to read what the next one needs."""
        state = self.state
        if turn != state.bucket:
            state.bucket, state.bucket_start = turn, state.position.step
        state.residents.hold(plan.turns[turn][: len(state.residents.partitions)])
        for partition in plan.turns[turn + 1] if turn + 1 < len(plan.turns) else ():
            if partition not in state.residents.partitions:
                state.residents.prefetch(partition)
                break
        return TrainingStep(self.model, self.config, source, state=state, table=self._table, squares=self._squares)

    def _learn(self, step: TrainingStep, batch: Batch, lanes: Lanes) -> float:
        config, position = self.config, self.state.position
        progress = min(1.0, (position.epoch + position.step / self._num_steps) / config.epochs)
        factor = rate_factor(progress, config.lr_schedule, warmup=config.warmup)
        seed = step_seed(config.seed, position)
        return step(batch, lanes, lr=config.lr * factor, relation_lr=config.relation_lr * factor, seed=seed)
