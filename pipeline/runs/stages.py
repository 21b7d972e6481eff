"""What each stage of a whole run does: it writes into its folder and returns its result as JSON-able fields."""

from __future__ import annotations

import datetime as dt
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from multifacet import contrastive, kge, ranking
from multifacet.graphdb import GraphStore, Recipe
from multifacet.pipeline.runs.workspace import Say
from multifacet.ranking import Examples
from multifacet.ranking.examples import load_periods
from multifacet.serving import LocalDeployment, RankerClient, Release, publish
from multifacet.tables import Precision, Snapshot

STORE = "graph.duckdb"
SNAPSHOT = "snapshot"
MODEL = "model"
SCORES = "test_scores.npy"
RELEASE = "release"
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int4")

_REQUEST_TIMEOUT_S = 10.0


def source_fingerprint(recipe: Recipe, source: Path | None) -> dict[str, str]:
    """SHA-256 (hex) of each raw file, so that other data makes another graph."""
    folder = recipe.locate(source)
    digests = {}
    for name in recipe.source.files:
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def build_graph(directory: Path, say: Say, *, recipe: Recipe, source: Path | None) -> dict[str, Any]:
    """Loads the recipe's data into a store."""
    reports = recipe.build(
        directory / STORE, source, on_load=lambda report: say(f"{report.target}: {report.loaded:,} of {report.read:,} rows")
    )
    with GraphStore.open(directory / STORE, read_only=True) as store:
        return {
            **store.counts(),
            "relations": store.stats()["relations"],
            "loads": [report.to_dict() for report in reports],
            "fingerprint": store.view().fingerprint,
        }


def pretrain(
    directory: Path, say: Say, *, store_path: Path, config: kge.KgeConfig | contrastive.ContrastiveConfig, as_of_period: int
) -> dict[str, Any]:
    """Pretrains one facet on all that came before a period, and writes its snapshot."""

    def progress(row: Mapping[str, float]) -> None:
        say(", ".join(f"{name} {value:,.4g}" for name, value in row.items() if name in {"epoch", "loss"} or "_per_s" in name))

    with GraphStore.open(store_path, read_only=True) as store:
        view = store.view(as_of=period_start(store, as_of_period))
        result: kge.KgeResult | contrastive.ContrastiveResult
        if isinstance(config, kge.KgeConfig):
            result = kge.train(view, config, progress=progress)
        else:
            result = contrastive.train(view, config, progress=progress)
        snapshot = result.write_snapshot(directory / SNAPSHOT, view)
    return {
        "fingerprint": snapshot.fingerprint,
        "facet": snapshot.facet,
        "rows": {name: snapshot.num_rows(name) for name in snapshot.node_types},
        "window": snapshot.manifest["window"],
        "parents": snapshot.manifest["parents"],
        "history": result.history,
        "metrics": result.metrics,
    }


def sample_examples(
    directory: Path, say: Say, *, store_path: Path, recipe: Recipe, weighting: ranking.Weighting, seed: int
) -> dict[str, Any]:
    """Draws the labelled exposures of the three splits."""
    splits = _splits(recipe)
    result = {}
    with GraphStore.open(store_path, read_only=True) as store:
        test_start = period_start(store, splits.test[0])
        for number, (name, span) in enumerate(
            (("train", splits.training), ("validation", splits.validation), ("test", splits.test))
        ):
            examples = ranking.build_examples(
                store,
                range(span[0], span[1] + 1),
                weighting=weighting,
                # Each split draws its own negatives.
                seed=seed * 3 + number,
                # No label that a model learns from may look into the test periods.
                labels_known_before=test_start if name == "train" else None,
            )
            examples.save(directory / f"{name}.parquet")
            known = np.isfinite(examples.cvr_label)
            result[name] = {
                "rows": len(examples),
                "positives": int(examples.ctr_label.sum()),
                "conversion_labels": int(known.sum()),
                "conversion_rate": float(examples.cvr_label[known].mean()) if known.any() else None,
            }
            say(f"{name}: {len(examples):,} exposures")
    return result


def train_arm(
    directory: Path,
    say: Say,
    *,
    examples_path: Path,
    config: ranking.RankingConfig,
    snapshot_paths: list[Path],
    num_resamples: int,
    export: bool = True,
) -> dict[str, Any]:
    """Fits one arm and scores the test split with it; `export`: writes the model too."""
    train = Examples.load(examples_path / "train.parquet")
    validation = Examples.load(examples_path / "validation.parquet")
    test = Examples.load(examples_path / "test.parquet")
    snapshots = [Snapshot.load(path) for path in snapshot_paths]

    def progress(row: Mapping[str, float]) -> None:
        say(f"epoch {row['epoch']:.2f}, loss {row['loss']:.4f}")

    result = ranking.train(train, validation, config, snapshots=snapshots, progress=progress)
    scores = result.score(test)
    np.save(directory / SCORES, scores)
    if export:
        ranking.export_model(directory / MODEL, result)
    return {
        "config": config.model_dump(mode="json"),
        "history": result.history,
        "validation": result.metrics,
        "coverage": [coverage.to_dict() for coverage in result.coverage],
        "test": ranking.evaluate(scores, test, num_resamples=num_resamples),
    }


def quantize(directory: Path, say: Say, *, model_path: Path, examples_path: Path, num_resamples: int) -> dict[str, Any]:
    """Scores the test split with the tables at each precision, through the codec that serving uses."""
    test = Examples.load(examples_path / "test.parquet")
    result: dict[str, Any] = {}
    for precision in PRECISIONS:
        scores, num_bytes = ranking.quantized_scores(model_path, precision, test)
        np.save(directory / f"{precision}.npy", scores)
        metrics = ranking.evaluate(scores, test, num_resamples=num_resamples)
        result[precision] = {
            "ctr_roc_auc": metrics["ctr"]["roc_auc"],
            "ctr_roc_auc_low": metrics["ctr"]["roc_auc_low"],
            "ctr_roc_auc_high": metrics["ctr"]["roc_auc_high"],
            "ctr_log_loss": metrics["ctr"]["log_loss"],
            "cvr_roc_auc": metrics["cvr"]["roc_auc"] if "cvr" in metrics else None,
            "bytes": num_bytes,
        }
        say(f"{precision}: CTR ROC-AUC {metrics['ctr']['roc_auc']:.4f}, {num_bytes:,} bytes")
    return result


def release(directory: Path, say: Say, *, model_path: Path, precision: Precision) -> dict[str, Any]:
    """Publishes a model."""
    say(f"{precision} rows")
    published = publish(model_path, directory / RELEASE, precision=precision)
    return {"version": published.version, "precision": precision}


def serve(directory: Path, say: Say, *, release_path: Path, examples_path: Path, offline_path: Path) -> dict[str, Any]:
    """Scores the test split through a lookup server and a ranker, each a process, and compares with the offline scores.

    A request is one user in one context with the exposures drawn there. Latency is the client's, over a Unix socket, one
    request at a time.
    """
    test = Examples.load(examples_path / "test.parquet")
    offline = np.load(offline_path)
    version = Release.open(release_path).version
    order = np.lexsort((test.context, test.user_id))
    changes = (np.diff(test.user_id[order]) != 0) | (np.diff(test.context[order]) != 0)
    requests = np.split(order, np.flatnonzero(changes) + 1)
    latencies_ms = np.empty(len(requests))
    phases: dict[str, list[int]] = {}
    served = np.empty_like(offline)
    wrong_version = num_unknown_ids = 0
    # The servers are separate processes with a thread of their own for each operator; this one only sends and waits.
    with LocalDeployment(release_path) as deployment, RankerClient(deployment.ranker_address) as client:
        for number, rows in enumerate(requests):
            started = time.perf_counter()
            answer = client.rank(
                {"user": int(test.user_id[rows[0]])},
                {"pin": test.pin_id[rows], "advertiser": test.advertiser_id[rows]},
                dense=test.dense[rows],
                version=version,
                request_id=str(number),
                timeout_s=_REQUEST_TIMEOUT_S,
            )
            latencies_ms[number] = (time.perf_counter() - started) * 1e3
            wrong_version += answer.version != version
            num_unknown_ids += answer.num_unknown_ids
            served[rows, 0], served[rows, 1] = answer.ctr, answer.cvr
            for name, microseconds in answer.phases.items():
                phases.setdefault(name, []).append(microseconds)
            if number % 500 == 499:
                say(f"{number + 1:,} of {len(requests):,} requests, p50 {np.median(latencies_ms[: number + 1]):.2f} ms")
    np.save(directory / "served.npy", served)
    return {
        "version": version,
        "requests": len(requests),
        "candidates": len(test),
        "wrong_version": wrong_version,
        "unknown_ids": num_unknown_ids,
        "max_abs_diff": float(np.abs(served - offline).max()),
        "p50_ms": float(np.percentile(latencies_ms, 50)),
        "p90_ms": float(np.percentile(latencies_ms, 90)),
        "p99_ms": float(np.percentile(latencies_ms, 99)),
        "latency_histogram": _histogram(latencies_ms),
        "phases_p50_us": {name: float(np.median(values)) for name, values in phases.items()},
    }


def period_start(store: GraphStore, period: int) -> dt.datetime:
    """When a period begins."""
    rows = [row for row in load_periods(store).to_pylist() if row["period"] == period]
    if not rows:
        msg = f"period {period} is not in the store's table `periods`"
        raise ValueError(msg)
    start: dt.datetime = rows[0]["start_time"]
    return start


def _histogram(values: np.ndarray[Any, Any]) -> dict[str, list[float]]:
    # The last bin holds the slowest thousandth too, so that a few outliers do not flatten the picture.
    end = float(np.percentile(values, 99.9))
    counts, edges = np.histogram(np.minimum(values, end), bins=60)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _splits(recipe: Recipe) -> Any:
    if recipe.splits is None:
        msg = f"recipe {recipe.name!r} declares no [splits], which a ranking task needs"
        raise ValueError(msg)
    return recipe.splits
