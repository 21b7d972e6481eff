"""Filtered test MRR of each model, trained against all entities; and the validation MRR against CPU time that it took.

Each run is kept below $KGE_RUNS (default: build/kge_quality) by the hash of its configuration: a finished one is read, an
interrupted one goes on with its next epoch. One that is not there is "not run", beside the command that runs it, unless
$KGE_RUN names its case ("fb15k-237/complex") or is "all". The test set is ranked once, when a run ends. --quick reads what is
there and trains nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from benchmarks.harness.knowledge_graphs import data_folder, load_split
from kge import FullSoftmaxConfig, KgeConfig, KgeValidation, TripleSplit, evaluate, known_pairs
from kge.full_trainer import FullTrainer
from tables.checkpoint import SavedState

logger = logging.getLogger(__name__)

FILTERED_MRR = Metric(name="filtered_mrr", unit="", better=HIGHER)
HITS = tuple(Metric(name=f"filtered_hits@{k}", unit="", better=HIGHER) for k in (1, 3, 10))
NUM_RUNS = Metric(name="num_runs", unit="", better=HIGHER)
CPU_MINUTES = Metric(name="cpu_minutes", unit="min", better=LOWER)
RUNS = Path(os.environ.get("KGE_RUNS", "build/kge_quality"))
RECORDS = Path(__file__).resolve().parents[1] / "docs" / "results" / "kge_quality"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table.

    Attributes:
        dataset: Its folder's name.
        config: The configuration.
        published: The best tuned MRR that is published, by LibKGE (ICLR 2020); None where there is none.
        suffix: Tells cases of one model apart.
    """

    dataset: str
    config: KgeConfig
    published: float | None
    suffix: str = ""

    @property
    def name(self) -> str:
        """Dataset, model, and what tells it apart."""
        return f"{self.dataset}/{self.config.model}{self.suffix}"

    @property
    def key(self) -> str:
        """The hash of all that a result depends on."""
        document = json.dumps([self.dataset, self.config.model_dump(mode="json")], sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()[:16]


def cases() -> list[Case]:
    """All rows, by value: first those that are compared with a published figure."""

    def config(model: str, dim: int, objective: FullSoftmaxConfig, **options: Any) -> KgeConfig:
        settings = {"epochs": 24, "batch_size": 400, "lr": 0.1, "relation_lr": 0.1, "init_scale": 0.01, "l2": 0.0} | options
        return KgeConfig.model_validate(
            {"model": model, "dim": dim, "reciprocal": True, "full_softmax": objective, "validation": KgeValidation(every=3)}
            | settings
        )

    plain = FullSoftmaxConfig()
    result = [Case(dataset="fb15k-237", config=config("complex", 200, plain, n3=0.1), published=0.348)]
    result.append(Case(dataset="fb15k-237", config=config("distmult", 200, plain, n3=0.1), published=0.343))
    result += [
        Case(dataset="fb15k-237", config=config(model, 128, plain, init_scale=0.3), published=None)
        for model in ("transra", "transr")
    ]
    result.append(Case(dataset="wn18rr", config=config("complex", 200, plain, n3=0.1), published=0.475))
    for model, published in (("rotate", 0.333), ("transe", 0.313)):
        result.append(Case(dataset="fb15k-237", config=config(model, 128, plain, init_scale=0.3), published=published))
    for model, published in (("rotate", 0.478), ("distmult", 0.452), ("transe", 0.228)):
        n3 = 0.1 if model == "distmult" else 0.0
        result.append(Case(dataset="wn18rr", config=config(model, 128, plain, init_scale=0.3, n3=n3), published=published))
    with_relations = config("complex", 1000, FullSoftmaxConfig(relation_prediction=2.0), n3=0.1)
    result.append(Case(dataset="fb15k-237", config=with_relations, published=0.37, suffix="+relation prediction"))
    return result


def run(quick: bool) -> Iterator[Row]:
    """One row a figure of each case that has been run, and one that says so of each that has not."""
    wanted = "" if quick else os.environ.get("KGE_RUN", "")
    for case in cases():
        record = read_record(case)
        if record is None and wanted in {"all", case.name}:
            record = train_case(case)
        shared = {"dataset": case.dataset, "key": case.key, **case.config.model_dump(mode="json", exclude_defaults=True)}
        if record is None:
            command = f"KGE_RUN='{case.name}' python -m benchmarks kge_quality"
            yield Row(case=f"{case.name}: not run; {command}", metric=NUM_RUNS, value=0.0, config=shared)
            continue
        peer = Peer(name="published", value=case.published) if case.published else None
        config = shared | {"validation": record["valid"], "curve": record["curve"]}
        yield Row(case=case.name, metric=FILTERED_MRR, value=record["test"]["filtered_mrr"], peer=peer, config=config)
        for metric in HITS:
            yield Row(case=case.name, metric=metric, value=record["test"][metric.name], config=shared)
        yield Row(case=case.name, metric=CPU_MINUTES, value=record["cpu_seconds"] / 60, config=shared)


def read_record(case: Case) -> dict[str, Any] | None:
    """Read what a finished run has left."""
    for folder in (RUNS, RECORDS):
        path = folder / f"{case.key}.json"
        if path.exists():
            record: dict[str, Any] = json.loads(path.read_text())
            return record
    return None


def train_case(case: Case) -> dict[str, Any] | None:
    """Train a case, or go on with it; None, with a warning, where its dataset is not found."""
    split = load_split(case.dataset)
    if split is None:
        logger.warning("%s is skipped: there is no %s; set KGE_DATA", case.name, data_folder() / case.dataset)
        return None
    RUNS.mkdir(parents=True, exist_ok=True)
    trainer = FullTrainer(split, case.config, np.random.default_rng(case.config.seed))
    progress, position = _resume(trainer, case), trainer.state.position
    known, valid, every = known_pairs(*split), split.valid.edges(), case.config.validation.every
    while position.epoch < case.config.epochs:
        begin = time.process_time()
        row = trainer.run_epoch()
        progress["cpu_seconds"] += time.process_time() - begin
        if position.epoch % every == 0:
            row |= _totals(evaluate(trainer.predictor(), valid, known))
            progress["curve"].append([progress["cpu_seconds"], row["filtered_mrr"]])
            logger.info(
                "%s, epoch %d, %.0f CPU s: %.4f", case.name, position.epoch, progress["cpu_seconds"], row["filtered_mrr"]
            )
        position.history.append(row)
        _keep(trainer, case, progress)
    return _finish(trainer, case, split, progress)


def _finish(trainer: FullTrainer, case: Case, split: TripleSplit, progress: dict[str, Any]) -> dict[str, Any]:
    known, predictor = known_pairs(*split), trainer.predictor()
    record = progress | {
        "case": case.name,
        "config": case.config.model_dump(mode="json"),
        "threads": torch.get_num_threads(),
        "valid": _totals(evaluate(predictor, split.valid.edges(), known)),
        "test": _totals(evaluate(predictor, split.test.edges(), known)),
    }
    (RUNS / f"{case.key}.json").write_text(json.dumps(record, indent=1))
    return record


def _resume(trainer: FullTrainer, case: Case) -> dict[str, Any]:
    path = RUNS / f"{case.key}.safetensors"
    if not path.exists():
        return {"cpu_seconds": 0.0, "curve": []}
    with safe_open(path, framework="pt") as file:
        kept = json.loads(file.metadata()["state"])
    trainer.state.position.restore(kept["position"])
    trainer.state.restore(SavedState(tensors=load_file(path), fields=kept["fields"]))
    progress: dict[str, Any] = kept["progress"]
    return progress


def _keep(trainer: FullTrainer, case: Case, progress: dict[str, Any]) -> None:
    """Write the state beside the last one, then put it in its place."""
    saved = trainer.state.save()
    kept = {"fields": saved.fields, "position": trainer.state.position.to_fields(), "progress": progress}
    path = RUNS / f"{case.key}.safetensors"
    new = path.with_suffix(".new")
    save_file(dict(saved.tensors), new, metadata={"state": json.dumps(kept)})
    new.replace(path)


def _totals(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "/" not in name}
