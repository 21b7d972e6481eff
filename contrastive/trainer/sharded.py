"""Epochs over positives whose tables are shared out to the processes of a `torch.distributed` group."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from typing_extensions import override

from multifacet.contrastive.evaluation import evaluate
from multifacet.contrastive.objective.differentiable import sum_losses
from multifacet.contrastive.objective.losses import ScoreLoss
from multifacet.contrastive.trainer.epochs import TowerEpochs
from multifacet.contrastive.trainer.finishing import Finisher
from multifacet.contrastive.trainer.step import Temperature
from multifacet.contrastive.trainer.vectors import History
from multifacet.tables import OptimizerRows
from multifacet.training import Position, SavedState, ShardedTables

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from multifacet.contrastive.candidates.candidates import CandidateSampler, Slots
    from multifacet.contrastive.config import ContrastiveConfig
    from multifacet.contrastive.trainer.towers import Batch, Tower
    from multifacet.training import Lanes, PairIndex, WarmStart

__all__ = ["ShardedState", "ShardedTrainer"]


@dataclass(kw_only=True, slots=True)
class ShardedState:
    """All that changes while a trainer runs, by the names of a `TrainerState`: any number of processes may go on from it.

    Attributes:
        sharded: the tables.
        samplers: node type -> the tower's sampler, whose queue holds positives of past batches.
        temperature: what similarities are divided by.
        position: where the training stands, with the source of positives and negatives.
        folder: where tables are brought together.
    """

    sharded: ShardedTables
    samplers: dict[str, CandidateSampler]
    temperature: Temperature
    position: Position
    folder: Path

    def save(self) -> SavedState:
        """Give all of it but the position; every process must ask."""
        tensors = self.sharded.assemble(self.folder)
        tensors |= {f"queue/{name}": torch.from_numpy(sampler.queue) for name, sampler in self.samplers.items()}
        tensors |= {"temperature": self.temperature.state, "hard": torch.empty((0, 0), dtype=torch.int32)}
        return SavedState(tensors=tensors, fields={})

    def restore(self, saved: SavedState) -> None:
        """Go to where `save` was called, each process with its own rows."""
        tensors = saved.tensors
        self.sharded.restore(tensors)
        for name, sampler in self.samplers.items():
            sampler.queue = tensors[f"queue/{name}"].numpy()
        self.temperature.state.copy_(tensors["temperature"])


class ShardedTrainer(TowerEpochs):
    """Runs epochs; every process of the group makes one, with the same arguments, and calls the same methods.

    Each step's batch is that of a `Trainer`, drawn alike by every process, which takes every W-th of its queries: gathers their
    rows, those of their items where they count, and the candidates', from the processes that own them, goes backward through
    the loss in torch, and sends the gradients back. So the result is that of one process but for the order of sums, and for the
    tables' first values.

    Args:
        towers: the items' tower first, then the composed ones, the same in every process.
        config: the loss and how it is trained.
        generator: source of positives and negatives, the same in every process.
        history: the items of each query that its vector may be blended with.
        folder: where tables are brought together, on a file system that all processes see; None for the system's folder for
            temporary files, where all are on one host.
        device: where this process computes and keeps its share; None for its current GPU in a group of NCCL, else the CPU.

    Raises:
        ValueError: if the configuration asks for what only a process of its own can do.
    """

    def __init__(
        self,
        towers: list[Tower],
        config: ContrastiveConfig,
        generator: np.random.Generator,
        *,
        history: PairIndex,
        folder: Path | None = None,
        device: torch.device | None = None,
    ) -> None:
        _refuse(config)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        on_gpu = "nccl" in dist.get_backend()
        self._device = device or (torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu"))
        num_rows = {config.query_type: towers[0].positives.num_queries}
        num_rows |= {tower.node_type: tower.positives.num_items for tower in towers}
        state = ShardedState(
            sharded=ShardedTables(
                num_rows, dim=config.dim, lr=config.lr, init_scale=config.init_scale, seed=config.seed, device=self._device
            ),
            samplers={tower.node_type: tower.sampler for tower in towers},
            temperature=Temperature(config.temperature or 1.0, lr=config.temperature_lr),
            position=Position(generator=generator),
            folder=folder or Path(tempfile.gettempdir()),
        )
        super().__init__(towers, config, state, has_lanes=False)
        self.state: ShardedState = state
        self._history = History(share=config.history, items=history)
        self._finisher = Finisher(towers, config, self._history)
        self._loss = ScoreLoss(name=config.loss, margin=config.margin or 0.0, negative_weight=config.negative_weight or 1.0)

    @override
    def step(self, tower: Tower, batch: Batch, lanes: Lanes | None = None) -> float:
        """Learn from one batch together with the other processes; see `TowerEpochs.step`."""
        config, state, candidates = self.config, self.state, batch.candidates
        taken = np.arange(self.rank, len(batch.queries), self.world_size)
        queries = batch.queries[taken]
        rows = {config.query_type: [queries], tower.node_type: [candidates.rows]}
        mean_of, mean_items = self._history_of(queries)
        if self._history.share:
            rows.setdefault(config.item_type, []).append(mean_items)
        vectors, places = self._gather(rows)
        own = vectors[config.query_type][places[config.query_type][0]]
        if self._history.share:
            items = vectors[config.item_type][places[config.item_type][-1]]
            own = self._blend(own, items, mean_of)
        keys = vectors[tower.node_type][places[tower.node_type][0]]
        if config.similarity == "cosine":
            own, keys = F.normalize(own), F.normalize(keys)
        log_inverse = torch.tensor(-np.log(state.temperature.value), device=self._device, requires_grad=True)
        scores = own @ keys.t() * log_inverse.exp()
        if config.corrects_logq:
            scores = scores - torch.from_numpy(candidates.log_inclusion).to(self._device)
        of_positive, targets = _places_of(candidates.targets, taken)
        masked = torch.zeros(scores.shape, dtype=torch.bool, device=self._device)
        if candidates.masked is not None:
            known_of, known = _places_of(candidates.masked, taken)
            masked[known_of.to(self._device), known.to(self._device)] = True
        total = sum_losses(
            self._loss, scores, queries=of_positive.to(self._device), targets=targets.to(self._device), masked=masked
        )
        # TorchRec takes the mean over processes, and these are parts of one sum.
        state.sharded.backward(total * (self.world_size / len(batch)))
        assert log_inverse.grad is not None  # noqa: S101 - the scores are of it
        shared = torch.stack([total.detach() / len(batch), log_inverse.grad / self.world_size]).double()
        dist.all_reduce(shared)
        state.temperature.step(float(shared[1]))
        return float(shared[0])

    @override
    def warm_start(self, warm_start: WarmStart, node_ids: Callable[[str], Any]) -> None:
        """Refuse: matching ids would need whole tables in one process.

        Raises:
            ValueError: always.
        """
        del node_ids
        raise ValueError(
            f"a warm start from {warm_start.snapshot.path} needs whole tables in one process: leave it out, or run one process"
        )

    @override
    def validate(self, relevant: PairIndex, seen: PairIndex) -> dict[str, float]:
        vectors = self._vectors()
        found: list[dict[str, float]] = [{}]
        if self.rank == 0:
            config = self.config
            tables = vectors[config.query_type], vectors[config.item_type]
            found = [evaluate(*tables, relevant=relevant, seen=seen, k=config.validation.k)]
        dist.broadcast_object_list(found, src=0)
        return found[0]

    @override
    def finish(self) -> tuple[dict[str, Tensor], dict[str, OptimizerRows]]:
        state, trained = self.state, self.state.sharded.assemble_rows(self.state.folder)
        squares = state.sharded.assemble_squares(state.folder)
        optimizer_rows = {
            name: OptimizerRows(adagrad=squares[name], lengths=self._finisher.trained_lengths(name, table))
            for name, table in trained.items()
        }
        return self._vectors(), optimizer_rows

    def _vectors(self) -> dict[str, Tensor]:
        """Give all tables as they are compared, from files that are mapped into memory; every process finishes its rows."""
        config, sharded = self.config, self.state.sharded
        trained = sharded.assemble_rows(self.state.folder)
        finished = sharded.assemble_rows(self.state.folder)
        # Queries first: smoothed items need them.
        for name in [config.query_type, *(name for name in finished if name != config.query_type)]:
            for first, squares in sharded.local_squares(name):
                self._finisher.finish_(
                    name,
                    finished[name][first : first + len(squares)],
                    first=first,
                    touched=squares.cpu().flatten() > 0,
                    items=trained[config.item_type],
                    queries=finished[config.query_type],
                )
            dist.barrier()
        return finished

    def _history_of(self, queries: NDArray[np.int32]) -> tuple[Tensor, NDArray[np.int32]]:
        """Give the items of some queries, int32 [n], and the number of the query that each is of, int64 [n]."""
        items = self._history.items
        if not self._history.share:
            return torch.empty(0, dtype=torch.int64), np.empty(0, dtype=np.int32)
        counts = np.diff(items.indptr)[queries]
        of_query = np.repeat(np.arange(len(queries)), counts)
        places = np.arange(len(of_query)) - np.repeat(np.cumsum(counts) - counts, counts) + items.indptr[queries][of_query]
        return torch.from_numpy(of_query), items.indices[places]

    def _blend(self, own: Tensor, items: Tensor, of_query: Tensor) -> Tensor:
        of_query = of_query.to(self._device)
        sums = torch.zeros_like(own).index_add(0, of_query, items)
        counts = torch.bincount(of_query, minlength=len(own)).clamp(min=1)
        share = self._history.share
        return (1.0 - share) * own + share * sums / counts[:, None]

    def _gather(self, rows: dict[str, list[NDArray[np.int32]]]) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
        """Gather each type's distinct rows, and say where in them each of the given rows is."""
        distinct, places = {}, {}
        for name, parts in rows.items():
            found, where = np.unique(np.concatenate(parts), return_inverse=True)
            distinct[name] = torch.from_numpy(found).long()
            ends = np.cumsum([len(part) for part in parts])[:-1]
            places[name] = [torch.from_numpy(part).to(self._device) for part in np.split(where, ends)]
        return self.state.sharded.gather(distinct), places

    @override
    def _change_lr(self, lr: float) -> None:
        self.state.sharded.set_lr(lr)


def _places_of(slots: Slots, taken: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Give some queries' places, and the number among those queries that each is of, int64 [n] both."""
    counts = np.diff(slots.indptr)[taken]
    of_query = np.repeat(np.arange(len(taken)), counts)
    within = np.arange(len(of_query)) - np.repeat(np.cumsum(counts) - counts, counts)
    return torch.from_numpy(of_query), torch.from_numpy(slots.slots[slots.indptr[taken][of_query] + within]).long()


def _refuse(config: ContrastiveConfig) -> None:
    """Refuse what sharded tables cannot do, by name."""
    given = [f"num_hard={config.num_hard}"] if config.num_hard else []
    given += [f"optimizer={config.optimizer!r}"] if config.optimizer != "adagrad" else []
    given += [f"query_dropout={config.query_dropout:g}"] if config.query_dropout else []
    given += [] if config.in_batch else ["in_batch=False"]
    given += ["loss='bilateral' with logq=True"] if config.loss == "bilateral" and config.corrects_logq else []
    if given:
        raise ValueError(
            f"{', '.join(given)}: not for tables that are shared out to {dist.get_world_size()} processes; leave it out, or "
            "run one process"
        )
