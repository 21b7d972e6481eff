"""Epochs over triples whose tables are shared out to the processes of a `torch.distributed` group."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from typing_extensions import override

from multifacet.kge.batches.source import BatchSource, place_types
from multifacet.kge.evaluation.predictor import LinkPredictor
from multifacet.kge.full.dense_optimizer import DenseOptimizer
from multifacet.kge.models.registry import build_model
from multifacet.kge.models.relations import RelationParameters
from multifacet.kge.sampled.schedule import relation_rates, step_factor, step_seed
from multifacet.kge.sampled.state import LearnedState
from multifacet.kge.sharded.batch_loss import BatchLoss
from multifacet.training import Position, ShardedTables, TrainingRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from multifacet.kge.batches.batch import Batch
    from multifacet.kge.config import KgeConfig
    from multifacet.kge.triples.triples import TripleSplit
    from multifacet.training import SavedState, WarmStart

__all__ = ["ShardedState", "ShardedTrainer"]


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
        self.sharded.restore(saved.tensors)
        self.relations.copy_from(saved.tensors)

    @override
    def row_squares(self) -> dict[str, Tensor]:
        return self.sharded.assemble_squares(self.folder)


class ShardedTrainer:
    """Runs epochs over triples; every process of the group makes one, with the same arguments, and calls the same methods.

    Each step's batch is that of a `Trainer`, drawn alike by every process, which takes every W-th of its chunks: gathers
    their rows from the processes that own them, goes backward through the loss in torch, and sends the gradients back. So the
    result is that of one process but for the order of sums, and for the tables' first values. The relations' parameters are
    small and in every process's memory; their gradients are summed over all before each takes the same step.

    Args:
        split: what is learned from and what is ranked, the same in every process.
        config: the model and how it is trained.
        generator: source of shuffles and negatives, the same in every process.
        folder: where tables are brought together, on a file system that all processes see; None for the system's folder for
            temporary files, where all are on one host.
        device: where this process computes and keeps its share; None for its current GPU in a group of NCCL, else the CPU.

    Raises:
        ValueError: if the configuration asks for what only a process of its own can do.
    """

    def __init__(
        self,
        split: TripleSplit,
        config: KgeConfig,
        generator: np.random.Generator,
        *,
        folder: Path | None = None,
        device: torch.device | None = None,
    ) -> None:
        triples = split.train
        if not len(triples):
            raise ValueError("there is no triple to learn from: the split's train part is empty")
        _refuse(config)
        self.config = config
        self.ends = dict(triples.ends)
        self.model = build_model(config)
        self.source = BatchSource(triples, config)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        if self.source.num_chunks < self.world_size:
            raise ValueError(
                f"a batch of batch_size={config.batch_size} edges has {self.source.num_chunks} chunks of "
                f"chunk_size={config.chunk_size}, too few for {self.world_size} processes: raise batch_size"
            )
        on_gpu = "nccl" in dist.get_backend()
        self._device = device or (torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu"))
        self._num_steps = 1
        self._offsets = place_types(triples.num_nodes)
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
        )

    def run_epoch(self, run: TrainingRun | None = None) -> dict[str, float]:
        """Pass once over the triples, or over those that are left of an epoch that was interrupted.

        Args:
            run: what saves the state between two steps (a `GroupRun`); None for a run that is never saved.

        Returns:
            epoch, loss (mean over edges of both sides' losses), seconds and edges_per_s of all processes together.
        """
        run, position = run or TrainingRun(), self.state.position
        plan = position.begin_epoch(self.source.epoch)
        self._num_steps = len(plan)
        batches = self.source.batches(plan[position.step :], position.generator)
        for batch in run.steps(batches, None, self.state, num_steps=len(plan)):
            position.add(loss=self.learn(batch), examples=batch.num_edges)
        return self.state.end_epoch(run)

    def learn(self, batch: Batch) -> float:
        """Learn from a batch together with the other processes.

        Returns:
            The sum over its edges, of all processes, of both sides' losses before the step, unweighted.
        """
        config, state, position = self.config, self.state, self.state.position
        factor = step_factor(config, position, self._num_steps)
        state.sharded.set_lr(config.lr * factor)
        self._relation_optimizer.lr = config.relation_lr * factor
        chunks = np.arange(self.rank, batch.num_chunks, self.world_size)
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
        objective, loss = self._loss(
            batch, chunks, vectors, (of_sides[0], of_sides[1]), relations, seed=step_seed(config.seed, position)
        )
        # TorchRec takes the mean over processes, and these are parts of one sum.
        state.sharded.backward(objective * self.world_size)
        assert relations.grad is not None  # noqa: S101 - the objective has a term of them
        shared = torch.cat([relations.grad.flatten() / self.world_size, loss[None]])
        dist.all_reduce(shared)
        self._relation_optimizer.step(shared[:-1].view(relations.shape).cpu())
        return float(shared[-1])

    def predictor(self) -> LinkPredictor:
        """Give the scores of the tables as they are now, from files that are mapped into memory; all processes must ask."""
        state = self.state
        vectors = state.sharded.assemble_rows(state.folder)
        return LinkPredictor(model=self.model, vectors=vectors, relations=state.relations, ends=self.ends)

    def warm_start(self, warm_start: WarmStart, node_ids: Callable[[str], Any]) -> None:
        """Refuse: matching ids would need whole tables in one process.

        Raises:
            ValueError: always.
        """
        del node_ids
        raise ValueError(
            f"a warm start from {warm_start.snapshot.path} needs whole tables in one process: leave it out, or run one process"
        )

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
