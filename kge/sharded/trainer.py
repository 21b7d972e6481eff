"""Epochs over triples whose tables are shared out to the processes of a `torch.distributed` group."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.distributed as dist
from typing_extensions import override

from multifacet.kge.batches.source import place_types, source_in_memory
from multifacet.kge.evaluation.predictor import LinkPredictor
from multifacet.kge.full.dense_optimizer import DenseOptimizer
from multifacet.kge.models.registry import build_model
from multifacet.kge.models.relations import RelationParameters
from multifacet.kge.sampled.schedule import relation_rates, step_factor, step_seed
from multifacet.kge.sampled.state import LearnedState
from multifacet.kge.sharded.batch_loss import BatchLoss
from multifacet.kge.triples.feeds import FeedSplit
from multifacet.training import Position, ShardedTables, TrainingRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from multifacet.kge.batches.batch import Batch
    from multifacet.kge.batches.epochs import EpochSource
    from multifacet.kge.config import KgeConfig
    from multifacet.kge.triples.triples import TripleSplit
    from multifacet.training import SavedState, WarmStart

__all__ = ["ShardedState", "ShardedTrainer"]

logger = logging.getLogger(__name__)

_IDS_AT_ONCE: Final = 1 << 20
_SEED_STRIDE: Final = 0xD1B54A32D192ED03  # odd


@dataclass(kw_only=True, slots=True)
class ShardedState(LearnedState):
    """All that changes while a trainer runs; no process holds a table, so `tables` is empty.

    Attributes:
        sharded: the tables.
        folder: where tables are brought together.
    """

    sharded: ShardedTables
    folder: Path

    @override
    def tensors(self) -> dict[str, Tensor]:
        # By the names of a `TrainerState`: any number of processes, or one without a group, may go on from them.
        return self.sharded.assemble(self.folder) | self.relations.to_tensors()

    @override
    def restore(self, saved: SavedState) -> None:
        self.restore_fields(saved.fields)
        self.sharded.restore(saved.tensors)
        self.relations.copy_from(saved.tensors)

    @override
    def row_squares(self) -> dict[str, Tensor]:
        return self.sharded.assemble_squares(self.folder)


class ShardedTrainer:
    """Runs epochs over triples; every process of the group makes one, with the same arguments, and calls the same methods.

    Each step's batch is that of a `Trainer`, drawn alike by every process, which takes every W-th of its chunks; from a feed,
    each process reads its own shards and draws its own part of the batch. A process gathers the rows of its chunks from those
    that own them, goes backward through the loss in torch, and sends the gradients back. So the result is that of one process
    but for the order of sums, and for the tables' first values; from a feed it depends on the number of processes too. The
    relations' parameters are small and in every process's memory; their gradients are summed over all before each takes the
    same step.

    Args:
        split: what is learned from and what is ranked, the same in every process; or a feed's.
        config: the model and how it is trained.
        generator: source of shuffles and negatives, the same in every process.
        folder: where tables are brought together, on a file system that all processes see; None for the system's folder for
            temporary files, where all are on one host.
        source: what draws the batches; None for one that draws them from the split.
        device: where this process computes and keeps its share; None for its current GPU in a group of NCCL, else the CPU.

    Raises:
        ValueError: if the configuration asks for what only a process of its own can do.
    """

    def __init__(
        self,
        split: TripleSplit | FeedSplit,
        config: KgeConfig,
        generator: np.random.Generator,
        *,
        folder: Path | None = None,
        source: EpochSource | None = None,
        device: torch.device | None = None,
    ) -> None:
        triples = split.train
        if not len(triples):
            raise ValueError("there is no triple to learn from: the split's train part is empty")
        _refuse(config)
        self.config = config
        self._split = split
        self.ends = dict(triples.ends)
        self.model = build_model(config)
        self.source = source or source_in_memory(triples, config, tells_places=False)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        if self.source.num_readers is None and self.source.num_chunks < self.world_size:
            raise ValueError(
                f"a batch of batch_size={config.batch_size} edges has {self.source.num_chunks} chunks of "
                f"chunk_size={config.chunk_size}, too few for {self.world_size} processes: raise batch_size"
            )
        on_gpu = "nccl" in dist.get_backend()
        self._device = device or (torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu"))
        self._num_steps = 1
        self._offsets = place_types(triples.num_nodes, narrow=False)
        self._begins = np.array([*self._offsets.values(), sum(triples.num_nodes.values())])
        seeded = torch.Generator().manual_seed(config.seed)
        relations = RelationParameters(self.model, triples.relation_names, reciprocal=config.reciprocal, generator=seeded)
        self._loss = BatchLoss(self.model, config, relations.shapes)
        self._relation_optimizer = DenseOptimizer(
            relations.table, "adagrad", config.relation_lr, relation_rates(config, self.model, relations.table.shape[1])
        )
        self._relation_optimizer.state["squares"] = relations.state
        self.state = ShardedState(
            tables={},
            relations=relations,
            position=Position(generator=generator),
            sharded=ShardedTables(
                triples.num_nodes,
                dim=config.dim,
                lr=config.lr,
                init_scale=config.init_scale,
                seed=config.seed,
                device=self._device,
            ),
            folder=folder or Path(tempfile.gettempdir()),
            num_readers=self.source.num_readers,
        )

    def run_epoch(self, run: TrainingRun | None = None) -> dict[str, float]:
        """Pass once over the triples, or over those that are left of an epoch that was interrupted.

        Args:
            run: what saves the state between two steps (a `GroupRun`); None for a run that is never saved.

        Returns:
            epoch, loss (mean over edges of both sides' losses), seconds and edges_per_s of all processes together.
        """
        run, position = run or TrainingRun(), self.state.position
        epoch = self.source.begin_epoch(position)
        self._num_steps = epoch.num_steps
        for batch in run.steps(epoch.batches, None, self.state, num_steps=epoch.num_steps):
            loss, num_edges = self.learn(batch)
            position.add(loss=loss, examples=num_edges)
        return self.state.end_epoch(run)

    def learn(self, batch: Batch) -> tuple[float, int]:
        """Learn from a batch together with the other processes.

        Args:
            batch: the same one in every process, or each process's own.

        Returns:
            The sum over the edges of all processes of both sides' losses before the step, unweighted; and how many they are.
        """
        config, state, position = self.config, self.state, self.state.position
        is_own, seed = self.source.num_readers is not None, step_seed(config.seed, position)
        if is_own:
            # Each process numbers its own chunks from 0: what is dropped must differ all the same.
            seed = (seed + self.rank * _SEED_STRIDE) % (1 << 62)
        factor = step_factor(config, position, self._num_steps)
        state.sharded.set_lr(config.lr * factor)
        self._relation_optimizer.lr = config.relation_lr * factor
        chunks = np.arange(batch.num_chunks) if is_own else np.arange(self.rank, batch.num_chunks, self.world_size)
        shapes = [(len(chunks), side.rows.shape[1]) for side in batch.sides]
        named = np.concatenate([side.rows[chunks].ravel() for side in batch.sides])
        rows, places = np.unique(named, return_inverse=True)
        vectors = self._gather(rows)
        relations = state.relations.table.to(self._device, copy=True).requires_grad_()
        split_at = shapes[0][0] * shapes[0][1]
        of_sides = [
            torch.from_numpy(part.reshape(shape)).to(self._device)
            for part, shape in zip((places[:split_at], places[split_at:]), shapes, strict=True)
        ]
        objective, loss = self._loss(batch, chunks, vectors, (of_sides[0], of_sides[1]), relations, seed=seed)
        # TorchRec takes the mean over processes, and these are parts of one sum.
        state.sharded.backward(objective * self.world_size)
        assert relations.grad is not None  # noqa: S101 - the objective has a term of them
        counted = [loss[None], *([loss.new_tensor([batch.num_edges])] if is_own else [])]
        shared = torch.cat([relations.grad.flatten() / self.world_size, *counted])
        dist.all_reduce(shared)
        num_cells = relations.numel()
        self._relation_optimizer.step(shared[:num_cells].view(relations.shape).cpu())
        return float(shared[num_cells]), int(shared[-1]) if is_own else batch.num_edges

    def predictor(self) -> LinkPredictor:
        """Give the scores of the tables as they are now, from files that are mapped into memory; all processes must ask."""
        state = self.state
        vectors = state.sharded.assemble_rows(state.folder)
        return LinkPredictor(model=self.model, vectors=vectors, relations=state.relations, ends=self.ends)

    def warm_start(self, warm_start: WarmStart, node_ids: Callable[[str], Any]) -> None:
        """Begin with the rows and relations of an older snapshot: each process finds its own rows, a range of ids at a time.

        Args:
            warm_start: the snapshot and how to start from it.
            node_ids: gives the external ids of a node type; a feed's are read by range.

        Raises:
            ValueError: if the snapshot's tables or relations do not fit, or rows are to be pulled.
        """
        if warm_start.config.pull:
            raise ValueError(
                f"pull={warm_start.config.pull}: not for tables that are shared out to {self.world_size} processes, whose "
                "steps are TorchRec's; leave it out, or run one process"
            )
        warm_start.check_facet("kge")
        warm_start.check_config(self.config.model_dump(mode="json"), same=("model", "distance"), told=("reciprocal",))
        for name, count in self.state.sharded.num_rows.items():
            self.state.taken[name] = torch.zeros(count, dtype=torch.bool)
            if name in warm_start.snapshot.node_types:
                self._move_old_rows(name, warm_start, node_ids)
        if not any(bool(taken.any()) for taken in self.state.taken.values()):
            raise warm_start.shares_nothing(self.state.sharded.num_rows)
        self.state.relations.warm_start(warm_start.snapshot.parameters())

    def _move_old_rows(self, name: str, warm_start: WarmStart, node_ids: Callable[[str], Any]) -> None:
        """Move what the snapshot has of one type's rows; every process must call it."""
        sharded, taken = self.state.sharded, self.state.taken[name]
        found = warm_start.old_rows(name, self.config.dim)
        totals = torch.zeros(self.config.dim + 1, dtype=torch.float64)
        for (first, table), (_, squares) in zip(sharded.local_rows(name), sharded.local_squares(name), strict=True):
            for begin in range(0, len(table), _IDS_AT_ONCE):
                part = slice(begin, min(begin + _IDS_AT_ONCE, len(table)))
                ids = self._ids(name, first + part.start, first + part.stop, node_ids)
                rows, old = found.move(ids, table[part], squares[part])
                taken[first + begin + rows] = True
                totals += torch.cat([old.double().sum(0), torch.tensor([len(rows)])])
        marks = taken.to(torch.uint8).to(self._device)
        dist.all_reduce(marks, dist.ReduceOp.MAX)
        taken.copy_(marks.bool())
        totals = totals.to(self._device)
        dist.all_reduce(totals)
        if warm_start.config.new_rows == "mean" and totals[-1]:
            mean = (totals[:-1] / totals[-1]).float()
            for first, table in sharded.local_rows(name):
                table[~taken[first : first + len(table)]] += mean
        logger.info("warm start: %s: %d rows matched, %d new", name, int(totals[-1]), len(taken) - int(totals[-1]))

    def _ids(self, name: str, begin: int, end: int, node_ids: Callable[[str], Any]) -> Any:
        if isinstance(self._split, FeedSplit):
            return self._split.train.feed.node_ids(name, begin, end)
        return node_ids(name)[begin:end]

    def _gather(self, rows: Any) -> Tensor:
        """Gather distinct rows of the block of all types, ascending, float32 [U, D]."""
        bounds = np.searchsorted(rows, self._begins)
        wanted = {
            name: torch.from_numpy(rows[begin:end] - self._offsets[name]).long()
            for name, begin, end in zip(self._offsets, bounds[:-1], bounds[1:], strict=True)
            if end > begin
        }
        gathered = self.state.sharded.gather(wanted)
        parts = [gathered[name] for name in wanted]
        return torch.cat(parts) if parts else torch.zeros(0, self.config.dim, device=self._device, requires_grad=True)


def _refuse(config: KgeConfig) -> None:
    """Refuse what sharded tables cannot do, by name."""
    fields = type(config).model_fields
    alone = ("full_softmax", "partitions", "memory_limit_gb", "table_dtype", "average_epochs", "plateau")
    given = [f"{name}={getattr(config, name)!r}" for name in alone if getattr(config, name) != fields[name].default]
    if config.validation.patience is not None:
        given.append(f"validation.patience={config.validation.patience}")
    if given:
        raise ValueError(
            f"{', '.join(given)}: not for tables that are shared out to {dist.get_world_size()} processes; leave it out, or "
            "run one process"
        )
