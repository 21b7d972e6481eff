"""Training a ranker: row-wise Adagrad on the touched table rows, AdamW on the upper model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from logging import getLogger
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from ranking.evaluation import log_loss, roc_auc
from ranking.initialise import init_random, init_tables
from ranking.model import RankingModel, TableSpec, UpperModel
from ranking.sources import TableSource
from tables import IdMap, RowwiseAdagrad, accumulate_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from ranking.config import RankingConfig
    from ranking.coverage import InitReport
    from ranking.examples import Examples
    from tables import Snapshot

logger = getLogger(__name__)

_SCORING_BATCH = 8192


@dataclass(frozen=True, kw_only=True, eq=False)
class RankingResult:
    """A trained ranker.

    Attributes:
        model: The model with its best weights.
        id_maps: Id map of each feature that has tables.
        config: The effective configuration.
        dense_names: Names of the dense features, in column order.
        history: One row a validation: epoch, loss, validation metrics, seconds, examples_per_s.
        metrics: The best validation's metrics.
        coverage: How much of each table came from a snapshot.
        parents: Fingerprints of the snapshots.
    """

    model: RankingModel
    id_maps: Mapping[str, IdMap]
    config: RankingConfig
    dense_names: tuple[str, ...]
    history: list[dict[str, float]]
    metrics: dict[str, float]
    coverage: InitReport
    parents: tuple[str, ...]

    def score(self, examples: Examples) -> NDArray[np.float32]:
        """Score examples.

        Args:
            examples: Examples with the dense features that the model was trained on.

        Returns:
            Probabilities of (ctr, cvr), float32 [n, 2].

        Raises:
            ValueError: If the dense features are others.
        """
        if examples.dense_names != self.dense_names:
            raise ValueError(
                f"the examples' dense features are {examples.dense_names}; the model was trained on {self.dense_names}"
            )
        return _score(self.model, Columns.of(examples, self.model, self.id_maps))


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Examples as contiguous tensors, ids already looked up.

    Attributes:
        dense: float32 [n, F].
        rows: int32 [n, features].
        ctr: float32 [n].
        cvr: float32 [n], 0 where unknown.
        cvr_known: float32 [n], 1 where the CVR label is known, else 0.
    """

    dense: Tensor
    rows: Tensor
    ctr: Tensor
    cvr: Tensor
    cvr_known: Tensor

    @staticmethod
    def of(examples: Examples, model: RankingModel, id_maps: Mapping[str, IdMap]) -> Columns:
        """Look the ids of examples up."""
        rows = [torch.from_numpy(id_maps[feature].rows(examples.ids(feature))) for feature in model.features]
        known = np.isfinite(examples.cvr_label)
        return Columns(
            dense=torch.from_numpy(examples.dense),
            rows=torch.stack(rows, dim=1) if rows else torch.zeros((len(examples), 0), dtype=torch.int32),
            ctr=torch.from_numpy(examples.ctr_label),
            cvr=torch.from_numpy(np.where(known, examples.cvr_label, np.float32(0))),
            cvr_known=torch.from_numpy(known.astype(np.float32)),
        )

    def take(self, chosen: Tensor) -> Columns:
        """Return chosen rows of every column."""
        return Columns(
            dense=self.dense[chosen],
            rows=self.rows[chosen],
            ctr=self.ctr[chosen],
            cvr=self.cvr[chosen],
            cvr_known=self.cvr_known[chosen],
        )


def train(
    examples_train: Examples,
    examples_valid: Examples,
    config: RankingConfig,
    *,
    snapshots: Sequence[Snapshot] = (),
    id_maps: Mapping[str, IdMap] | None = None,
    progress: Callable[[Mapping[str, float]], None] | None = None,
) -> RankingResult:
    """Train a ranker; keep the weights of the validation with the lowest CTR log loss.

    Args:
        examples_train: Training examples.
        examples_valid: Validation examples with the same dense features.
        config: How to build and train the model.
        snapshots: Snapshots of the pretrained facets. Those of other facets only lend their ids, so that a randomly
            initialised arm has tables of the same shape.
        id_maps: Id map of each feature. None: exact, of the snapshots' ids, or of the training examples' ids where no
            snapshot has the feature's node type.
        progress: Called with each history row.

    Returns:
        The trained model and how it got there.

    Raises:
        ValueError: If there is no snapshot of a pretrained facet, the dense features differ, or the loss is not finite.
    """
    if examples_train.dense_names != examples_valid.dense_names:
        raise ValueError(
            f"dense features differ: {examples_train.dense_names} in training, {examples_valid.dense_names} in validation"
        )
    chosen = _pretrained(snapshots, config)
    maps = dict(id_maps) if id_maps is not None else make_id_maps(snapshots, examples_train, config)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = _build(config, maps, len(examples_train.dense_names))
        generator = torch.Generator().manual_seed(config.seed)
        init_random(model, config.scratch_norm, generator)
        coverage = init_tables(model, _sources(model, chosen, maps, config.pretrained_norm))
        train_columns = Columns.of(examples_train, model, maps)
        valid_columns = Columns.of(examples_valid, model, maps)
        model.upper.fit_normalisation(train_columns.dense)
        history = _Fit(model, config, generator).run(train_columns, valid_columns, progress)
    best = min(history, key=lambda row: row["valid_ctr_log_loss"])
    return RankingResult(
        model=model,
        id_maps=maps,
        config=config,
        dense_names=examples_train.dense_names,
        history=history,
        metrics={name: value for name, value in best.items() if name.startswith("valid_")},
        coverage=coverage,
        parents=tuple(snapshot.fingerprint for snapshot in chosen),
    )


def make_id_maps(snapshots: Sequence[Snapshot], examples: Examples, config: RankingConfig) -> dict[str, IdMap]:
    """Make an exact id map for each feature: the snapshots' ids in the order of their tables, else the examples'.

    Args:
        snapshots: Snapshots whose ids are used.
        examples: Examples whose ids are used where no snapshot has the feature's node type.
        config: Which features there are.

    Returns:
        Feature -> id map; empty for a ranker without ids.
    """
    maps: dict[str, IdMap] = {}
    for feature in config.features if config.facets else ():
        parts = [snapshot.ids(feature) for snapshot in snapshots if feature in snapshot.node_types]
        if not parts:
            parts = [pa.array(np.unique(examples.ids(feature)))]
        maps[feature] = IdMap.exact(pa.chunked_array(parts).unique())
    return maps


def _pretrained(snapshots: Sequence[Snapshot], config: RankingConfig) -> list[Snapshot]:
    by_facet = {snapshot.facet: snapshot for snapshot in snapshots}
    missing = [facet for facet in config.pretrained_facets if facet not in by_facet]
    if missing:
        raise ValueError(
            f"no snapshot of the pretrained facets {missing}; given are {sorted(by_facet)}. Pretrain them, or "
            "take them out of pretrained_facets"
        )
    return [by_facet[facet] for facet in config.pretrained_facets]


def _sources(
    model: RankingModel, snapshots: Sequence[Snapshot], id_maps: Mapping[str, IdMap], norm: float
) -> dict[str, TableSource]:
    by_facet = {snapshot.facet: snapshot for snapshot in snapshots}
    return {
        spec.name: TableSource(snapshot=by_facet[spec.facet], node_type=spec.node_type, id_map=id_maps[spec.feature], norm=norm)
        for spec in model.specs
        if spec.facet in by_facet
    }


def _build(config: RankingConfig, id_maps: Mapping[str, IdMap], num_dense: int) -> RankingModel:
    specs = [
        TableSpec(
            feature=feature,
            facet=facet,
            node_type=feature,
            num_rows=id_maps[feature].num_rows,
            dim=config.dim,
        )
        for facet in config.facets
        for feature in config.features
    ]
    upper = UpperModel(
        num_dense=num_dense,
        slots=[(spec.feature, spec.facet) for spec in specs],
        dim=config.dim,
        projected=config.projected,
        cross_rank=config.cross_rank,
        num_cross_layers=config.num_cross_layers,
        hidden=config.hidden,
        dropout=config.dropout,
    )
    return RankingModel(specs, upper)


class _Fit:
    """One training run's optimisers and best weights."""

    def __init__(self, model: RankingModel, config: RankingConfig, generator: torch.Generator) -> None:
        self.model, self.config, self.generator = model, config, generator
        self.upper_optimizer = torch.optim.AdamW(model.upper.parameters(), lr=config.upper_lr, weight_decay=config.weight_decay)
        self.table_optimizers = {
            spec.name: RowwiseAdagrad(spec.num_rows, config.facet_lrs.get(spec.facet, config.table_lr)) for spec in model.specs
        }
        self.num_steps = 0
        self.best: dict[str, Tensor] = {}

    def run(
        self,
        train_columns: Columns,
        valid_columns: Columns,
        progress: Callable[[Mapping[str, float]], None] | None,
    ) -> list[dict[str, float]]:
        """Train until the validation loss stops falling; leave the best weights in the model."""
        config = self.config
        history: list[dict[str, float]] = []
        lowest, since_lowest = float("inf"), 0
        for epoch in range(config.max_epochs):
            order = torch.randperm(len(train_columns.ctr), generator=self.generator)
            for part, shard in enumerate(order.chunk(config.validations_per_epoch)):
                started = time.perf_counter()
                # A last batch of one example has no variance to normalise by.
                starts = range(0, max(len(shard) - 1, 1), config.batch_size)
                losses = [self._step(train_columns.take(shard[start : start + config.batch_size])) for start in starts]
                seconds = time.perf_counter() - started
                row = {
                    "epoch": epoch + (part + 1) / config.validations_per_epoch,
                    "loss": float(np.mean(losses)),
                    **_validate(self.model, valid_columns),
                    "seconds": seconds,
                    "examples_per_s": len(shard) / seconds,
                }
                if not np.isfinite(row["loss"]):
                    raise ValueError(
                        f"the loss is {row['loss']} in epoch {row['epoch']}; lower table_lr ({config.table_lr}) or "
                        f"upper_lr ({config.upper_lr})"
                    )
                history.append(row)
                logger.info("%s: %s", config.name, row)
                if progress is not None:
                    progress(row)
                since_lowest += 1
                if row["valid_ctr_log_loss"] < lowest:
                    lowest, since_lowest = row["valid_ctr_log_loss"], 0
                    self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
                if since_lowest >= config.patience:
                    self.model.load_state_dict(self.best)
                    return history
        self.model.load_state_dict(self.best)
        return history

    def _step(self, batch: Columns) -> float:
        """Take one step: the tables' gradients stay those of the rows looked up, never a whole table's."""
        model = self.model.train()
        with torch.no_grad():
            embeddings = model.lookup(batch.rows)
        learns = not self.config.freeze_tables and self.num_steps >= self.config.thaw_after_steps
        embeddings.requires_grad_(learns)
        self.num_steps += 1
        logits = model.upper(batch.dense, embeddings)
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], batch.ctr)
        cvr_losses = F.binary_cross_entropy_with_logits(logits[:, 1], batch.cvr, reduction="none")
        cvr_loss = (cvr_losses * batch.cvr_known).sum() / batch.cvr_known.sum().clamp(min=1)
        total = loss + self.config.cvr_weight * cvr_loss
        self.upper_optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        self.upper_optimizer.step()
        if embeddings.grad is not None:
            self._step_tables(batch.rows, embeddings.grad)
        return total.item()

    def _step_tables(self, rows: Tensor, gradients: Tensor) -> None:
        for feature_position, feature in enumerate(self.model.features):
            slots = [slot for slot, spec in enumerate(self.model.specs) if spec.feature == feature]
            touched, sums = accumulate_rows(rows[:, feature_position].contiguous(), gradients[:, slots].flatten(1))
            for slot, gradient in zip(slots, sums.chunk(len(slots), dim=1), strict=True):
                name = self.model.specs[slot].name
                self.table_optimizers[name].step(self.model.table(name), touched, gradient.contiguous())


def _validate(model: RankingModel, columns: Columns) -> dict[str, float]:
    scores = _score(model, columns)
    labels = columns.ctr.numpy()
    metrics = {
        "valid_ctr_log_loss": log_loss(labels, scores[:, 0]),
        "valid_ctr_roc_auc": roc_auc(labels, scores[:, 0]),
    }
    known = columns.cvr_known.numpy() > 0
    if known.any():
        cvr = columns.cvr.numpy()[known]
        metrics["valid_cvr_log_loss"] = log_loss(cvr, scores[known, 1])
        if 0 < cvr.mean() < 1:
            metrics["valid_cvr_roc_auc"] = roc_auc(cvr, scores[known, 1])
    return metrics


def _score(model: RankingModel, columns: Columns) -> NDArray[np.float32]:
    model.eval()
    scores: list[Any] = []
    with torch.inference_mode():
        for start in range(0, len(columns.ctr), _SCORING_BATCH):
            stop = start + _SCORING_BATCH
            logits = model(columns.dense[start:stop], columns.rows[start:stop])
            scores.append(torch.sigmoid(logits).numpy())
    return np.concatenate(scores) if scores else np.zeros((0, 2), dtype=np.float32)
