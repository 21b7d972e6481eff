"""Training under TorchRec's DistributedModelParallel: one process a rank, tables sharded, the rest replicated."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multifacet.ranking.model.batchnorm import GlobalBatchNorm
from multifacet.ranking.training.objective import counted_labels, training_loss
from multifacet.ranking.training.optimizers import ADAGRAD, adamw_tensors, restore_adamw, rounding_seeds, table_rate
from multifacet.ranking.training.owned_rows import OwnedRows, rounds_steps, step_scale
from multifacet.ranking.training.scoring import SCORING_BATCH, validate
from multifacet.ranking.training.trainer import BEST, MODEL, named
from multifacet.training import PreparingThread, plan_by_rows

with warnings.catch_warnings():
    # fbgemm_gpu's CPU build warns about kernels that only its CUDA build has.
    warnings.simplefilter("ignore", DeprecationWarning)
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.types import ShardingEnv, ShardingPlan
    from torchrec.optim import RowWiseAdagrad
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from multifacet.ranking.config import RankingConfig
    from multifacet.ranking.initialize.coverage import InitReport
    from multifacet.ranking.model.columns import Columns
    from multifacet.ranking.model.model import RankingModel

logger = getLogger(__name__)

_EPS: Final = 1e-10
_TABLES: Final = "tables.embeddings"
_RANDOM: Final = "torch_generator"
_CUDA_RANDOM: Final = "cuda_generator"


@dataclass(frozen=True, kw_only=True, eq=False)
class Share:
    """What one rank reads of a step, and what it has to know of the rest.

    Attributes:
        columns: This rank's examples; there may be none.
        num_examples: Examples of all ranks.
        num_counted: CVR labels of all ranks that count, at least 1.
        touched: Table -> rows of this rank's shard that any rank's examples read, int64, counted from the shard's first;
            only where rates depend on rows, or rows are rounded.
    """

    columns: Columns
    num_examples: float
    num_counted: float
    touched: Mapping[str, Tensor] = field(default_factory=dict)


class ShardedTrainer:
    """The steps of a ranker whose tables are sharded over the ranks of the default process group.

    Every rank makes one with the same arguments, has the same examples at hand, and calls the same methods. Each reads every
    W-th example of a step; together they take the step that one process (`Trainer`) takes with all of them, up to the order of
    sums and the draws of dropout. Each table is divided by rows, so that ranks hold equal parts whatever the tables' sizes;
    rows learn by FBGEMM's fused row-wise Adagrad, all else by AdamW, with gradients averaged over ranks. Half-precision rows
    are rounded by chance: on GPUs by FBGEMM, from CUDA's generator, on CPUs as a `Trainer` does (see `OwnedRows.lift`).

    Args:
        model: A ranker with tables on "meta", the same on each rank; it is wrapped.
        config: Rates and weights.
        first_rows: Fills the tables of the module that it gets with their first rows.
        make_whole: Makes an untrained ranker as `model` was.
        folder: Where tables are brought together, on a file system that all ranks see; None: the system's folder for temporary
            files, where all ranks are on one host.

    Attributes:
        model: The DistributedModelParallel; scores as the ranker does.
        rows: This rank's rows.
    """

    def __init__(
        self,
        model: RankingModel,
        config: RankingConfig,
        first_rows: Callable[[nn.Module], InitReport],
        make_whole: Callable[[], RankingModel],
        *,
        folder: Path | None = None,
    ) -> None:
        self.config = config
        self._first_rows, self._make_whole = first_rows, make_whole
        self._folder = folder or Path(tempfile.gettempdir())
        self.rank, self.num_ranks = dist.get_rank(), dist.get_world_size()
        on_gpu = "nccl" in dist.get_backend()
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        GlobalBatchNorm.convert(model)
        self.model: Any = _shard(model, config, self.device)
        self._dense = nn.ModuleDict({"upper": model.upper} | ({} if model.pooling is None else {"pooling": model.pooling}))
        self.optimizer = torch.optim.AdamW(self._dense.parameters(), lr=config.upper_lr, weight_decay=config.weight_decay)
        self.rows = OwnedRows(self.model, model.layout, config)
        self._best: dict[str, Tensor] = {}
        self._best_rows: dict[str, Tensor] = {}

    def start_tables(self) -> InitReport:
        """Give the tables their first rows, and their optimisers nothing to remember."""
        for squares in self.rows.squares().values():
            squares.zero_()
        return self._first_rows(self.model)

    def count_rows(self, rows: Tensor) -> None:
        """Learn how often each row occurs in the training examples, int32 [n, columns]."""
        self.rows.count(rows, self.config.row_lr_power)

    def lanes(self) -> PreparingThread:
        """Give what prepares batches."""
        return PreparingThread()

    def take(self, columns: Columns, chosen: Tensor) -> Share:
        """Give this rank's part of a step's examples, where it computes."""
        counted = counted_labels(columns.ctr[chosen], columns.cvr_known[chosen], self.config.heads)
        num_examples = float(len(chosen))
        known = max(float(counted.sum()), 1.0)
        if columns.weight is not None:
            weight = columns.weight[chosen]
            num_examples, known = float(weight.sum()), max(float((counted * weight).sum()), torch.finfo(weight.dtype).tiny)
        return Share(
            columns=columns.take(chosen[self.rank :: self.num_ranks]).to(self.device),
            num_examples=num_examples,
            num_counted=known,
            touched=self.rows.touched(columns.rows[chosen]),
        )

    def step(self, batch: Share, lanes: object = None, *, number: int, learns_tables: bool = True) -> float:
        """Take a step together with the other ranks.

        Args:
            batch: What `take` gave.
            lanes: Not used: the tables' update is a part of the backward pass.
            number: The step's, another one at each: half-precision tables are rounded by it.
            learns_tables: Whether the tables learn, or only what is above them.

        Returns:
            The loss of all ranks' examples.
        """
        del lanes
        config, own = self.config, batch.columns
        self.model.train()
        logits = self._logits(own, learns_tables=learns_tables)
        # DistributedDataParallel and TorchRec take the mean of ranks' gradients, and these are parts of one sum.
        loss = training_loss(
            logits,
            own.ctr,
            own.cvr,
            own.cvr_known,
            heads=config.heads,
            cvr_weight=config.cvr_weight,
            weight=own.weight,
            num_examples=batch.num_examples / self.num_ranks,
            num_counted=batch.num_counted / self.num_ranks,
        )
        lifted = self.rows.lift(batch.touched) if learns_tables else {}
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.rows.settle(batch.touched, lifted, rounding_seeds(self.rows.specs, config, number) if lifted else {})
        total = loss.detach().clone()
        dist.all_reduce(total)
        return float(total) / self.num_ranks

    def validate(self, columns: Columns) -> dict[str, float]:
        """Score examples, each rank its part, and give their metrics, the same on each rank."""
        scores = self.score(columns)
        metrics: list[dict[str, float]] = [validate(scores.numpy(), columns) if self.rank == 0 else {}]
        dist.broadcast_object_list(metrics, src=0)
        return metrics[0]

    def score(self, columns: Columns) -> Tensor:
        """Score examples, each rank its part.

        Args:
            columns: All examples, the same on each rank.

        Returns:
            Probabilities of (ctr, cvr), float32 [n, 2]: whole on the first rank.
        """
        self.model.eval()
        scores = torch.zeros((len(columns), 2), device=self.device)
        # gloo's collectives fail under inference_mode.
        with torch.no_grad():
            for start in range(0, len(columns), SCORING_BATCH * self.num_ranks):
                chosen = slice(start + self.rank, start + SCORING_BATCH * self.num_ranks, self.num_ranks)
                scores[chosen] = torch.sigmoid(self._logits(columns.take(chosen).to(self.device)))
        dist.reduce(scores, dst=0)
        return scores.cpu()

    def keep_best(self) -> None:
        """Keep the weights as they are now: this rank's rows in the host's memory."""
        self._best = {name: value.clone() for name, value in self._dense.state_dict().items()}
        self._best_rows = {name: rows.to("cpu", copy=True) for name, rows in self.rows.weights().items()}

    def finish(self) -> RankingModel:
        """Give a whole ranker with the weights that were kept last; its tables are mapped from files."""
        model = self._make_whole()
        tables = self.rows.assemble(self._folder, {BEST: self._best_rows})[BEST]
        model.load_state_dict(self._best, strict=False)
        if model.tables is not None:
            for name, table in tables.items():
                model.tables.embeddings[name].weight = nn.Parameter(table, requires_grad=False)
        return model

    def to_tensors(self) -> dict[str, Tensor]:
        """Give all state by the names of a `Trainer`, with tables brought together; every rank must call it."""
        parts = {MODEL: self.rows.weights(), BEST: self._best_rows, ADAGRAD: self.rows.squares()}
        tables = self.rows.assemble(self._folder, parts)
        tensors = {_table_key(kind, name): table for kind, whole in tables.items() for name, table in whole.items()}
        for kind, dense in ((MODEL, self._dense.state_dict()), (BEST, self._best)):
            tensors |= {f"{kind}.{name}": value.cpu() for name, value in dense.items()}
        return tensors | adamw_tensors(self.optimizer) | self._random_states()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go to where `to_tensors` was called, each rank to its own rows; there may have been another number of ranks."""
        for kind, living in ((MODEL, self.rows.weights()), (ADAGRAD, self.rows.squares())):
            for name, rows in living.items():
                rows.copy_(self.rows.own(name, tensors[_table_key(kind, name)]))
        best = named(tensors, BEST)
        self._best_rows = {
            name: self.rows.own(name, best[f"{_TABLES}.{name}.weight"]).clone() for name in self.rows.shards if best
        }
        self._best = {name: value.clone() for name, value in best.items() if not name.startswith(_TABLES)}
        dense = named(tensors, MODEL)
        self._dense.load_state_dict({name: value for name, value in dense.items() if not name.startswith(_TABLES)})
        restore_adamw(self.optimizer, tensors)
        self._restore_random(tensors)

    def _logits(self, columns: Columns, *, learns_tables: bool = True) -> Tensor:
        num_recent = columns.num_recent if self.config.sequence != "none" else None
        logits: Tensor = self.model(columns.dense, columns.rows, num_recent, learns_tables=learns_tables)
        return logits

    def _random_states(self) -> dict[str, Tensor]:
        """Give all ranks' generators: each draws its own dropout."""
        own = {_RANDOM: torch.get_rng_state()}
        if self.device.type == "cuda":
            own[_CUDA_RANDOM] = torch.cuda.get_rng_state(self.device)
        states: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(states, own)
        return {f"{kind}.{rank}": value for rank, state in enumerate(states) for kind, value in state.items()}

    def _restore_random(self, tensors: Mapping[str, Tensor]) -> None:
        if f"{_RANDOM}.{self.num_ranks - 1}" not in tensors or f"{_RANDOM}.{self.num_ranks}" in tensors:
            logger.warning("resuming with another number of ranks: dropout draws other numbers from here on")
        if f"{_RANDOM}.{self.rank}" in tensors:
            torch.set_rng_state(tensors[f"{_RANDOM}.{self.rank}"].clone())
        if self.device.type == "cuda" and f"{_CUDA_RANDOM}.{self.rank}" in tensors:
            torch.cuda.set_rng_state(tensors[f"{_CUDA_RANDOM}.{self.rank}"].clone(), self.device)


def _shard(model: RankingModel, config: RankingConfig, device: torch.device) -> DistributedModelParallel:
    """Divide each table by rows."""
    plan: dict[str, Any] = {}
    if model.tables is not None:
        for spec in model.specs:
            rate = table_rate(spec, config) * (step_scale(spec, config) if rounds_steps(config, device.type) else 1.0)
            weights = [model.tables.embeddings[spec.name].weight]
            apply_optimizer_in_backward(RowWiseAdagrad, weights, {"lr": rate, "eps": _EPS})
        plan["tables"] = plan_by_rows(model.tables, [spec.name for spec in model.specs], device.type)
    return DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=device,
        plan=ShardingPlan(plan=plan),
        sharders=[EmbeddingCollectionSharder()],
    )


def _table_key(kind: str, table: str) -> str:
    """Name a table, or its accumulated squares, as a `Trainer` does."""
    return f"{kind}.{table}" if kind == ADAGRAD else f"{kind}.{_TABLES}.{table}.weight"
