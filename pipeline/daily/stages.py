"""What each stage of a day does: it writes into its folder and returns its result as JSON-able fields."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from multifacet import contrastive, kge, ranking
from multifacet.graphdb import GraphStore
from multifacet.pipeline.alignment import write_aligned
from multifacet.pipeline.daily.examples import read_part
from multifacet.pipeline.diagnosis import finding, model_checks, table_checks
from multifacet.ranking import Examples
from multifacet.serving import Release, publish, publish_delta
from multifacet.tables import Snapshot, compare_snapshots
from multifacet.training import Lifecycle, WarmStart

if TYPE_CHECKING:
    from multifacet.pipeline.daily.config import EvaluateSection, GatesSection, RankerSection
    from multifacet.pipeline.runs.workspace import Say
    from multifacet.tables import Precision
    from multifacet.training import WarmStartConfig

__all__ = ["draw_examples", "evaluate", "judge", "pretrain", "release", "train_ranker"]

SNAPSHOT: Final = "snapshot"
MODEL: Final = "model"
RELEASE: Final = "release"
PARTS: Final = ("train", "validation", "evaluation")

_EVERY_SECONDS: Final = 60.0
_TIMINGS: Final = ("seconds", "per_s")


def pretrain(
    directory: Path,
    say: Say,
    *,
    store_path: Path,
    config: kge.KgeConfig | contrastive.ContrastiveConfig,
    window: tuple[dt.datetime | None, dt.datetime],
    relations: Sequence[str] | None,
    warm: tuple[Path, WarmStartConfig] | None,
    align_to: Path | None,
    checkpoint: Path,
) -> dict[str, Any]:
    """Pretrains a facet, from scratch or from older tables, and writes its snapshot, aligned if asked for.

    Args:
        directory: Where to write.
        say: Told of the progress.
        store_path: The store.
        config: The pretrainer's.
        window: Its start and end.
        relations: Its relations; None for all.
        warm: The older snapshot to go on from, and how.
        align_to: The snapshot whose basis the tables are given in.
        checkpoint: Folder of the training's last state, from which a killed training goes on.
    """

    def progress(row: Mapping[str, float]) -> None:
        say(", ".join(f"{name} {value:,.4g}" for name, value in row.items() if name in {"epoch", "loss"}))

    lifecycle = Lifecycle(
        checkpoint=checkpoint,
        every_seconds=_EVERY_SECONDS,
        resume=True,
        warm_start=None if warm is None else WarmStart(snapshot=Snapshot.load(warm[0]), config=warm[1]),
    )
    since, as_of = window
    with GraphStore.open(store_path, read_only=True) as store:
        view = store.view(since=since, as_of=as_of, relations=relations)
        result: kge.KgeResult | contrastive.ContrastiveResult
        if isinstance(config, kge.KgeConfig):
            result = kge.train(view, config, progress=progress, lifecycle=lifecycle)
        else:
            result = contrastive.train(view, config, progress=progress, lifecycle=lifecycle)
        snapshot = write_aligned(directory / SNAPSHOT, align_to, lambda path: result.write_snapshot(path, view))
    shutil.rmtree(checkpoint, ignore_errors=True)
    return {
        "fingerprint": snapshot.fingerprint,
        "facet": snapshot.facet,
        "rows": {name: snapshot.num_rows(name) for name in snapshot.node_types},
        "window": dict(snapshot.window),
        "parents": list(snapshot.parents),
        "metrics": {name: value for name, value in snapshot.metrics.items() if name not in {"drift", "search"}},
    }


def draw_examples(
    directory: Path,
    say: Say,
    *,
    store_path: Path,
    section: RankerSection,
    spans: Mapping[str, tuple[dt.datetime, dt.datetime]],
) -> dict[str, Any]:
    """Reads or draws the labelled examples of the three parts.

    Args:
        directory: Where to write.
        say: Told of the progress.
        store_path: The store.
        section: What they are.
        spans: Part -> its start and end.
    """
    result: dict[str, Any] = {}
    with GraphStore.open(store_path, read_only=True) as store:
        for number, name in enumerate(PARTS):
            known_before = spans["evaluation"][0] if name == "train" else spans["evaluation"][1]
            part = read_part(store, section, spans[name], number, known_before=known_before)
            part.save(directory / f"{name}.parquet")
            result[name] = {
                "rows": len(part),
                "positives": int(part.ctr_label.sum()),
                "since": spans[name][0].isoformat(),
                "until": spans[name][1].isoformat(),
            }
            say(f"{name}: {len(part):,} examples")
    return result


def train_ranker(
    directory: Path,
    say: Say,
    *,
    examples_path: Path,
    config: ranking.RankingConfig,
    snapshot_paths: Sequence[Path],
    learned: tuple[dt.datetime, dt.datetime],
    checkpoint: Path,
) -> dict[str, Any]:
    """Fine-tunes a ranker whose tables start from snapshots, and writes the model.

    Args:
        directory: Where to write.
        say: Told of the progress.
        examples_path: Folder of the examples.
        config: The ranker's.
        snapshot_paths: The facets' snapshots.
        learned: Start and end of the training examples' time.
        checkpoint: Folder of the training's last state.
    """
    parts = {name: Examples.load(examples_path / f"{name}.parquet") for name in ("train", "validation")}
    result = ranking.train(
        parts["train"],
        parts["validation"],
        config,
        snapshots=[Snapshot.load(path) for path in snapshot_paths],
        progress=lambda row: say(f"epoch {row['epoch']:.2f}, loss {row['loss']:.4f}"),
        lifecycle=Lifecycle(checkpoint=checkpoint, every_seconds=_EVERY_SECONDS, resume=True),
    )
    artifact = ranking.export_model(directory / MODEL, result, learned=learned)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return {
        "fingerprint": artifact.fingerprint,
        "validation": result.metrics,
        "epochs": result.history[-1]["epoch"],
        "lineage": artifact.manifest["lineage"],
        "coverage": [coverage.to_dict() for coverage in result.coverage],
    }


def evaluate(
    directory: Path,
    say: Say,
    *,
    model_path: Path,
    examples_path: Path,
    serving_path: Path | None,
    precision: Precision,
    section: EvaluateSection,
) -> dict[str, Any]:
    """Scores the days that no training saw, as the release will, beside FP32 and beside the model that serves now.

    Args:
        directory: Where to write the scores.
        say: Told of the progress.
        model_path: The model.
        examples_path: Folder of the examples.
        serving_path: The model that serves now, if one does.
        precision: Precision of the release.
        section: How to measure.
    """
    examples = Examples.load(examples_path / "evaluation.parquet")
    options: dict[str, Any] = {"num_resamples": section.num_resamples, "confidence": section.confidence}
    model = ranking.load_model(model_path)
    exact = model.score(examples)
    served, num_bytes = ranking.quantized_scores(model, precision, examples)
    np.save(directory / "scores.npy", served)
    metrics = ranking.evaluate(served, examples, **options)
    say(f"CTR ROC-AUC {metrics['ctr']['roc_auc']:.4f}")
    result: dict[str, Any] = {
        "precision": precision,
        "bytes": num_bytes,
        "metrics": metrics,
        "precision_change": ranking.compare(served, exact, examples, **options),
        "serving_change": None,
        "coverage": model_checks.id_coverage(model, examples),
    }
    if serving_path is not None:
        serving = ranking.load_model(serving_path)
        if serving.dense_names == model.dense_names and set(serving.features) <= set(examples.id_features):
            before, _ = ranking.quantized_scores(serving, precision, examples)
            result["serving_change"] = ranking.compare(served, before, examples, **options)
            result["serving_metrics"] = ranking.evaluate(before, examples, **options)
            result["serving"] = serving.artifact.fingerprint
    return result


def judge(
    directory: Path,
    say: Say,
    *,
    model_path: Path,
    evaluation: Mapping[str, Any],
    snapshots: Mapping[str, tuple[Path, Path | None]],
    gates: GatesSection,
) -> dict[str, Any]:
    """Holds a model and its tables against the gates.

    Args:
        directory: Nothing is written there.
        say: Told of the progress.
        model_path: The model.
        evaluation: What `evaluate` returned.
        snapshots: Facet -> its snapshot, and the one before it.
        gates: The limits.
    """
    del directory  # the result is all
    model = ranking.load_model(model_path)
    findings = model_checks.check_model(model.artifact.manifest, gates)
    findings += model_checks.check_evaluation(evaluation, gates)
    for facet, (path, older) in snapshots.items():
        snapshot = Snapshot.load(path)
        for name in snapshot.node_types:
            findings += table_checks.check_table(f"{facet} {name}", snapshot.vectors(name), snapshot.trained(name), gates)
        if older is not None:
            drift = compare_snapshots(Snapshot.load(older), snapshot, align=False, neighbors=False)
            findings += table_checks.check_drift(facet, drift, gates)
    say(f"{len(findings)} checks")
    return {
        "findings": [found.to_dict() for found in findings],
        "warnings": [found.told for found in findings if found.level == "warn"],
        "stops": [found.told for found in findings if found.level == "stop"],
        "level": finding.worst(findings),
    }


def release(
    directory: Path,
    say: Say,
    *,
    model_path: Path,
    precision: Precision,
    shards: int,
    base: Path | None = None,
    tolerance: float = 0.0,
) -> dict[str, Any]:
    """Publishes a model, whole or as what differs from a base that is as precise and as split."""
    say(f"{precision} rows")
    over = None if base is None else Release.open(base, verify=False)
    if base is None or over is None or (over.precision, over.num_shards) != (precision, shards):
        published = publish(model_path, directory / RELEASE, precision=precision, shards=shards)
    else:
        published = publish_delta(model_path, directory / RELEASE, base, tolerance=tolerance, other="whole")
    say(f"{published.lookup_bytes:,} bytes{f', over {published.base[:12]}' if published.base else ''}")
    return {
        "version": published.version,
        "precision": precision,
        "base": published.base or None,
        "bytes": published.lookup_bytes,
    }
