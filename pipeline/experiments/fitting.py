"""The stages of an experiment: snapshots, examples, fits. Each writes into its folder and returns JSON-able fields."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from multifacet import contrastive, kge, ranking
from multifacet.contrastive.graph_facet import LightGcnConfig, train_lightgcn
from multifacet.graphdb import GraphStore
from multifacet.pipeline import stages
from multifacet.pipeline.experiments.experiment import REFIT, mixed_name
from multifacet.pipeline.workspace import Say
from multifacet.ranking import Examples
from multifacet.tables import IdMap, Lifecycle, MixedTable, Snapshot, SnapshotTable, WarmStart, plan_precision, row_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from multifacet.pipeline.experiments.arm import Facet, Hashing
    from multifacet.pipeline.experiments.source import Source

#: Folder of a pretraining's own snapshot, before it gets the facet's name.
TRAINED = "trained"


def pretrain(
    directory: Path, say: Say, *, store_path: Path, facet: Facet, seed: int, older_path: Path | None = None
) -> dict[str, Any]:
    """Pretrains a facet's tables on its window and writes their snapshot under the facet's name.

    Args:
        directory: Where to write.
        say: Told of the progress.
        store_path: The store.
        facet: What is pretrained, and on what.
        seed: The run's seed.
        older_path: Snapshot to go on with, as it left the pretrainer.
    """

    def progress(row: Mapping[str, float]) -> None:
        say(f"epoch {row['epoch']:.0f}, loss {row['loss']:.4f}")

    started = time.process_time()
    with GraphStore.open(store_path, read_only=True) as store:
        view = store.view(
            since=None if facet.since_period is None else stages.period_start(store, facet.since_period),
            as_of=stages.period_start(store, facet.until_period),
            relations=facet.relations,
        )
        config = facet.pretrainer.model_copy(update={"seed": seed + facet.seed_offset})
        lifecycle = None if older_path is None else Lifecycle(warm_start=WarmStart.load(older_path))
        result: kge.KgeResult | contrastive.ContrastiveResult
        if isinstance(config, LightGcnConfig):
            if lifecycle is not None:
                raise ValueError(f"facet {facet.name!r} cannot go on with an older one: LightGCN has no warm start")
            result = train_lightgcn(view, config, progress=progress)
        elif isinstance(config, kge.KgeConfig):
            result = kge.train(view, config, progress=progress, lifecycle=lifecycle)
        else:
            result = contrastive.train(view, config, progress=progress, lifecycle=lifecycle)
        snapshot = result.write_snapshot(directory / TRAINED, view)
    Snapshot.write(
        directory / stages.SNAPSHOT,
        facet=facet.name,
        tables={name: SnapshotTable(ids=snapshot.ids(name), vectors=snapshot.vectors(name)) for name in snapshot.node_types},
        parents=[snapshot.fingerprint],
        window=snapshot.manifest["window"],
        metrics=result.metrics,
    )
    return {
        "metrics": result.metrics,
        "window": snapshot.manifest["window"],
        "cpu_seconds": time.process_time() - started,
    }


def shuffle(directory: Path, say: Say, *, facet: Facet, snapshot_path: Path | None, seed: int) -> dict[str, Any]:
    """Writes a snapshot in which each id has the vector of another of its type.

    Args:
        directory: Where to write.
        say: Told of the progress.
        facet: Its name is the snapshot's.
        snapshot_path: The snapshot whose vectors are shuffled.
        seed: The run's seed.
    """
    if snapshot_path is None:
        raise ValueError(f"facet {facet.name!r} has no snapshot to shuffle")
    snapshot = Snapshot.load(snapshot_path)
    tables = {}
    for name in snapshot.node_types:
        vectors = snapshot.vectors(name)
        order = np.random.default_rng(seed).permutation(len(vectors))
        tables[name] = SnapshotTable(ids=snapshot.ids(name), vectors=vectors[order])
    say(f"{len(tables)} tables")
    window = snapshot.manifest["window"]
    Snapshot.write(directory / stages.SNAPSHOT, facet=facet.name, tables=tables, parents=[snapshot.fingerprint], window=window)
    return {"metrics": {}, "window": window, "cpu_seconds": 0.0}


def sample_examples(
    directory: Path, say: Say, *, store_path: Path, source: Source, seed: int, history: bool = False, recent_pins: int = 0
) -> dict[str, Any]:
    """Draws the labelled exposures of the three splits, with other negatives for every seed.

    Args:
        directory: Where to write.
        say: Told of the progress.
        store_path: The store.
        source: Periods and features.
        seed: Seed of the negatives.
        history: Whether the training split takes in the pretraining periods.
        recent_pins: Most recent pins of a user that an example carries.
    """
    splits = source.splits
    first = splits.pretraining[0] + 1 if history else splits.training[0]  # nothing is known before the first period
    spans = {"train": (first, splits.training[1]), "validation": splits.validation, "test": splits.test}
    features = source.features.model_copy(update={"recent_pins": recent_pins}) if recent_pins else source.features
    result = {}
    with GraphStore.open(store_path, read_only=True) as store:
        test_start = stages.period_start(store, splits.test[0])
        for number, (name, span) in enumerate(spans.items()):
            examples = ranking.build_examples(
                store,
                range(span[0], span[1] + 1),
                weighting="demand",
                seed=seed * 3 + number,
                labels_known_before=test_start if name == "train" else None,
                features=features,
            )
            examples.save(directory / f"{name}.parquet")
            result[name] = {"rows": len(examples), "positives": int(examples.ctr_label.sum())}
            say(f"{name}: {len(examples):,} exposures")
    return result


def fit(
    directory: Path,
    say: Say,
    *,
    examples_path: Path,
    config: ranking.RankingConfig,
    snapshot_paths: Sequence[Path],
    without: Sequence[str] = (),
    hashing: Hashing | None = None,
    export: bool = False,
) -> dict[str, Any]:
    """Fits one arm and scores the test split; what is chosen among trials is chosen on the validation split."""
    splits = {name: load_examples(examples_path, name, without) for name in ("train", "validation", "test")}
    snapshots = [Snapshot.load(path) for path in snapshot_paths]
    started = time.process_time()
    id_maps = None if hashing is None else _hashed(hashing, splits["train"], snapshots, config)
    result = ranking.train(
        splits["train"],
        splits["validation"],
        config,
        snapshots=snapshots,
        id_maps=id_maps,
        progress=lambda row: say(f"epoch {row['epoch']:.1f}, loss {row['loss']:.4f}"),
    )
    cpu_seconds = time.process_time() - started
    np.save(directory / stages.SCORES, result.score(splits["test"]))
    if export:
        ranking.export_model(directory / stages.MODEL, result)
    return {
        "validation": result.metrics,
        "epochs": result.history[-1]["epoch"],
        "cpu_seconds": cpu_seconds,
        "table_rows": {spec.name: spec.num_rows for spec in result.model.specs},
    }


def quantize(
    directory: Path,
    say: Say,
    *,
    model_path: Path,
    examples_path: Path,
    without: Sequence[str],
    budgets: Sequence[float] = (),
) -> dict[str, Any]:
    """Scores the test split with the tables at each precision and within each budget, through the codec that serving uses.

    Args:
        directory: Where to write the scores.
        say: Told of the progress.
        model_path: The exported model.
        examples_path: Examples of its seed.
        without: Prefixes of dense features that it does without.
        budgets: Bytes of tables of mixed precision, as multiples of INT4's.
    """
    test = load_examples(examples_path, "test", without)
    result: dict[str, Any] = {}
    for precision in stages.PRECISIONS:
        started = time.process_time()
        scores, num_bytes = ranking.quantized_scores(model_path, precision, test)
        np.save(directory / f"{precision}.npy", scores)
        result[precision] = {"bytes": num_bytes, "cpu_seconds": time.process_time() - started}
        say(precision)
    if budgets:
        model, train = ranking.load_model(model_path), load_examples(examples_path, "train", without)
        reads = _reads(model, train)
    for name, share in ((REFIT, None), *((mixed_name(share), share) for share in budgets)) if budgets else ():
        mixed = {table: _mix(directory / f"{name}.{table}", model.tables[table], reads[table], share) for table in model.tables}
        tables = {table: rows.lookup(np.arange(rows.num_rows)) for table, rows in mixed.items()}
        np.save(directory / f"{name}.npy", model.score_with(test, tables))
        tiers = Counter[str]()
        for rows in mixed.values():
            tiers.update(rows.tiers)
        result[name] = {"bytes": sum(rows.num_bytes for rows in mixed.values()), "tiers": dict(tiers)}
        say(name)
    return result


def _mix(path: Path, vectors: Tensor, reads: NDArray[np.int64], share: float | None) -> MixedTable:
    """Writes a table whose rows have the precisions that suit how often they are read, within a share of INT4's bytes.

    With no share, all rows are INT4.
    """
    if share is None:
        return MixedTable.write(path, vectors, "int4")
    budget = round(share * len(vectors) * row_bytes(vectors.shape[1], "int4"))
    return MixedTable.write(path, vectors, plan_precision(vectors, reads, budget))


def _reads(model: ranking.ExportedModel, train: Examples) -> dict[str, NDArray[np.int64]]:
    """How often fine-tuning read each row of each table."""
    return {
        name: np.bincount(id_map.rows(train.ids(feature)), minlength=len(table))
        for (name, table), feature, id_map in zip(model.tables.items(), model.features, model.id_maps, strict=True)
    }


def load_examples(folder: Path, split: str, without: Sequence[str] = ()) -> Examples:
    """Reads a split's examples, leaving out the dense features whose names begin with one of `without`."""
    examples = Examples.load(folder / f"{split}.parquet")
    kept = [number for number, name in enumerate(examples.dense_names) if not name.startswith(tuple(without))]
    if len(kept) == len(examples.dense_names):
        return examples
    return dataclasses.replace(
        examples,
        dense=np.ascontiguousarray(examples.dense[:, kept]),
        dense_names=tuple(examples.dense_names[number] for number in kept),
    )


def _hashed(
    hashing: Hashing, train: Examples, snapshots: Sequence[Snapshot], config: ranking.RankingConfig
) -> dict[str, IdMap]:
    """Hashed id maps of a share of the ids that exact ones would have."""
    maps = {}
    for feature in config.features:
        parts = [snapshot.ids(feature) for snapshot in snapshots if feature in snapshot.node_types]
        ids = pa.chunked_array(parts or [pa.array(np.unique(train.ids(feature)))]).unique()
        num_rows = max(1, round(hashing.share * len(ids)))
        maps[feature] = IdMap.hashed(num_rows, id_type="int64", num_hashes=hashing.num_hashes)
    return maps
