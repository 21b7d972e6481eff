"""Training a ranker: from examples and snapshots to the weights that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from logging import getLogger
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from multifacet.inputs import expect_type, kind, mapping_to, takes
from multifacet.ranking.assembly import choose_snapshots, count_collisions, make_id_maps, make_model, table_sources
from multifacet.ranking.config import RankingConfig
from multifacet.ranking.examples.examples import Examples
from multifacet.ranking.initialize.initialize import init_random, init_tables
from multifacet.ranking.model.columns import Columns
from multifacet.ranking.training.fit import Fit
from multifacet.ranking.training.run_log import RunLog
from multifacet.ranking.training.scoring import score_columns
from multifacet.ranking.training.sharded import ShardedTrainer
from multifacet.ranking.training.trainer import Trainer
from multifacet.training import Lifecycle, are_several, begin_run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from multifacet.ranking.initialize.coverage import InitReport
    from multifacet.ranking.model.model import RankingModel
    from multifacet.ranking.training.fit import StepTaker
    from multifacet.tables import CollisionReport, IdMap, Snapshot
    from multifacet.training import TrainingRun

logger = getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class RankingResult:
    """A trained ranker.

    Attributes:
        model: The model with its best weights, or its last (`RankingConfig.keep`).
        id_maps: Id map of each feature that has tables.
        config: The effective configuration.
        dense_names: Names of the dense features, in column order.
        history: One row a validation: epoch, loss, validation metrics, seconds, examples_per_s.
        metrics: Metrics of the validation whose weights these are.
        coverage: How much of each table came from a snapshot.
        parents: Fingerprints of the snapshots.
        collisions: Which ids share rows, for each feature of the configuration's `hash_rows`.
        metadata: How the training examples were made.
        windows: Facet -> the graph window of the snapshot that its tables started from.
    """

    model: RankingModel
    id_maps: Mapping[str, IdMap]
    config: RankingConfig
    dense_names: tuple[str, ...]
    history: list[dict[str, float]]
    metrics: dict[str, float]
    coverage: InitReport
    parents: tuple[str, ...]
    collisions: Mapping[str, CollisionReport] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    windows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def score(self, examples: Examples) -> NDArray[np.float32]:
        """Score examples.

        Args:
            examples: Examples with the dense features that the model was trained on.

        Returns:
            Probabilities of (ctr, cvr), float32 [n, 2].

        Raises:
            ValueError: If the dense features are others, or a model with a sequence gets no recent pins.
        """
        if examples.dense_names != self.dense_names:
            raise ValueError(
                f"the examples' dense features are {examples.dense_names}; the model was trained on {self.dense_names}"
            )
        return score_columns(self.model, Columns.of(examples, self.model, self.id_maps))


@takes(snapshots=kind(list, tuple), id_maps=mapping_to("IdMap", "num_rows", "rows_of", "id_type"))
def train(
    examples_train: Examples,
    examples_valid: Examples,
    config: RankingConfig,
    *,
    snapshots: Sequence[Snapshot] = (),
    id_maps: Mapping[str, IdMap] | None = None,
    progress: Callable[[Mapping[str, float]], None] | None = None,
    lifecycle: Lifecycle | None = None,
    log_folder: Path | None = None,
) -> RankingResult:
    """Train a ranker; keep the weights of the validation with the lowest CTR log loss, or the last ones.

    Where `torch.distributed` has a group of several processes, all of them must call this with the same arguments: the tables
    are then sharded over them (see `ShardedTrainer`), each reads its part of every batch, and each gets the whole result, with
    tables that are mapped from files beside the checkpoint. The first one writes the log.

    With a checkpoint, a run that was killed and resumed ends with the bits of one that was not (with the same number of
    threads and the same versions).

    Args:
        examples_train: Training examples.
        examples_valid: Validation examples with the same dense features.
        config: How to build and train the model.
        snapshots: Snapshots of the pretrained facets. Those of other facets only lend their ids, so that a randomly
            initialised arm has tables of the same shape.
        id_maps: Id map of each feature. None: hashed where the configuration's `hash_rows` says so, else exact, of the
            snapshots' ids, or of the training examples' ids where no snapshot has the feature's node type.
        progress: Called with each history row.
        lifecycle: Checkpoints, resuming, stopping, and progress by step.
        log_folder: Where to write metrics.jsonl, and TensorBoard's files if that is installed; None: nowhere.

    Returns:
        The trained model and how it got there.

    Raises:
        ValueError: If there is no snapshot of a pretrained facet, the dense features differ, there are id maps and `hash_rows`
            too, or the loss is not finite.
        CheckpointError: If there is a checkpoint of another run, or one that was not to be resumed.
        KeyboardInterrupt: If a stop was asked for; the state is saved.
    """
    for name, given in (("examples_train", examples_train), ("examples_valid", examples_valid)):
        expect_type(name, given, Examples, hint="read_examples makes them of labelled rows")
    expect_type("config", config, RankingConfig)
    if examples_train.dense_names != examples_valid.dense_names:
        raise ValueError(
            f"dense features differ: {examples_train.dense_names} in training, {examples_valid.dense_names} in validation"
        )
    _check_features(examples_train, examples_valid, config)
    lifecycle = lifecycle or Lifecycle()
    if lifecycle.warm_start is not None:
        raise ValueError("a ranker's tables start from `snapshots`; lifecycle.warm_start is for the pretrainers")
    if id_maps is not None and config.hash_rows:
        raise ValueError(f"id_maps say which rows ids get; leave out hash_rows={dict(config.hash_rows)}, or id_maps")
    chosen = choose_snapshots(snapshots, config)
    maps = dict(id_maps) if id_maps is not None else make_id_maps(snapshots, examples_train, config)
    collisions = count_collisions(maps, snapshots, examples_train, config)
    for feature, report in collisions.items():
        logger.info("hashed ids of %s: %s", feature, report)
    window = ""
    if lifecycle.checkpoint or are_several():
        window = f"{examples_train.fingerprint()} {examples_valid.fingerprint()}"
    if are_several():
        _compare_ranks(window)
    run = begin_run(
        lifecycle,
        config=config.model_dump(mode="json") | {"snapshots": [snapshot.fingerprint for snapshot in chosen]},
        window=window,
        num_epochs=config.max_epochs,
    )
    recent = examples_train.recent
    build = partial(
        make_model,
        config,
        maps,
        num_dense=len(examples_train.dense_names),
        num_recent=recent.length if recent else 0,
        list_lengths={name: values.length for name, values in examples_train.lists.items()},
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = build(table_device="meta" if are_several() else "cpu")
        train_columns = Columns.of(examples_train, model, maps)
        valid_columns = Columns.of(examples_valid, model, maps)
        model.upper.fit_normalisation(train_columns.dense)
        sources = table_sources(model, chosen, maps, config.pretrained_norm)

        def first_rows(module: nn.Module) -> InitReport:
            init_random(module, model.specs, config.scratch_norm, config.seed)
            return init_tables(module, sources)

        trainer: StepTaker
        if are_several():
            # A model is the same on each rank, what dropout draws for its examples is not.
            torch.manual_seed(int(np.random.SeedSequence((config.seed, dist.get_rank())).generate_state(1)[0]))
            folder = lifecycle.checkpoint.absolute().parent if lifecycle.checkpoint else None
            trainer = ShardedTrainer(model, config, first_rows, partial(build, table_device="meta"), folder=folder)
        else:
            trainer = Trainer(model, config, first_rows)
        coverage = trainer.start_tables()
        fit = Fit(trainer, config, torch.Generator().manual_seed(config.seed))
        run.resume(fit)
        history = _fit_logged(fit, train_columns, valid_columns, run, progress, log_folder)
        model = trainer.finish()
    kept = history[-1] if config.keep == "last" else min(history, key=lambda row: row["valid_ctr_log_loss"])
    return RankingResult(
        model=model,
        id_maps=maps,
        config=config,
        dense_names=examples_train.dense_names,
        history=history,
        metrics={name: value for name, value in kept.items() if name.startswith("valid_")},
        coverage=coverage,
        parents=tuple(snapshot.fingerprint for snapshot in chosen),
        collisions=collisions,
        metadata=dict(examples_train.metadata),
        windows={snapshot.facet: snapshot.window for snapshot in chosen},
    )


def _check_features(train: Examples, valid: Examples, config: RankingConfig) -> None:
    """Refuse examples without a feature that the configuration names, and parts that do not fit."""
    for part, examples in (("training", train), ("validation", valid)):
        if not len(examples):
            raise ValueError(f"there are no {part} examples")
        missing = [name for name in config.features if config.facets and name not in examples.id_features]
        if missing:
            raise ValueError(
                f"features names {missing}, which the {part} examples lack; they have "
                f"{', '.join(examples.id_features)}. Read them by "
                "LabelledColumns.features, or leave them out of the configuration"
            )
    differing = [name for name in config.features if (name in train.vocabularies) != (name in valid.vocabularies)]
    if differing:
        raise ValueError(f"ids of {differing} are strings in one of training and validation, and integers in the other")
    labels = np.unique(valid.ctr_label).tolist()
    if labels != [0.0, 1.0]:
        raise ValueError(f"the validation examples' labels are all {labels}: choose some with clicks and without")


def _fit_logged(
    fit: Fit,
    train_columns: Columns,
    valid_columns: Columns,
    run: TrainingRun,
    progress: Callable[[Mapping[str, float]], None] | None,
    folder: Path | None,
) -> list[dict[str, float]]:
    if folder is None or (are_several() and dist.get_rank() > 0):
        return fit.run(train_columns, valid_columns, run, progress)
    log = RunLog(folder, num_rows=len(fit.position.history))

    def report(row: Mapping[str, float]) -> None:
        log.write(row)
        if progress is not None:
            progress(row)

    try:
        return fit.run(train_columns, valid_columns, run, report)
    finally:
        log.close()


def _compare_ranks(fingerprint: str) -> None:
    """Refuse ranks with examples of their own: each takes its part of what all of them have."""
    fingerprints: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(fingerprints, fingerprint)
    other = next((rank for rank, found in enumerate(fingerprints) if found != fingerprints[0]), None)
    if other is not None:
        raise ValueError(
            f"ranks 0 and {other} were given different examples; give all ranks the same ones (`share_examples`): each reads "
            "its part of every batch by itself"
        )
