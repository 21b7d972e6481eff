"""Filtered test MRR of each model, its configuration chosen on validation; and validation MRR against the CPU time it took.

Each run is kept below $KGE_RUNS (default: build/kge_quality) by the hash of its configuration: a finished one is read, an
interrupted one goes on from its checkpoint. Runs that are published with the project lie in docs/results/kge_quality, and are
read where there is no other. $KGE_RUN names a case to run ("fb15k-237/complex"; "all" for all of them), published or not. A
case without any run is "not run", beside the command that runs it. The test set is ranked once, when a run ends. --quick
trains nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from benchmarks.harness.knowledge_graphs import data_folder, load_split
from multifacet.kernels.memory import keep_freed_memory
from multifacet.kge import FullSoftmaxConfig, KgeConfig, evaluate, known_pairs, train_triples
from multifacet.kge.config import ModelName
from multifacet.training import Lifecycle

logger = logging.getLogger(__name__)

FILTERED_MRR = Metric(name="filtered_mrr", unit="", better=HIGHER)
HITS = tuple(Metric(name=f"filtered_hits@{k}", unit="", better=HIGHER) for k in (1, 3, 10))
NUM_RUNS = Metric(name="num_runs", unit="", better=HIGHER)
CPU_MINUTES = Metric(name="cpu_minutes", unit="min", better=LOWER)
_COLOURS = {model: f"C{number}" for number, model in enumerate(get_args(ModelName))}
RUNS = Path(os.environ.get("KGE_RUNS", "build/kge_quality"))
RECORDS = Path(__file__).resolve().parents[2] / "docs" / "results" / "kge_quality"


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
        seed = f", seed {self.config.seed}" if self.config.seed else ""
        return f"{self.dataset}/{self.config.model}{self.suffix}{seed}"

    @property
    def key(self) -> str:
        """The hash of all that a result depends on; an option that is added later, and not used, does not change it."""
        document = json.dumps([self.dataset, self.config.model_dump(mode="json", exclude_defaults=True)], sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()[:16]


def cases() -> list[Case]:
    """All rows, by value; those of one model and dataset are the configurations that were tried to the end."""
    relations = FullSoftmaxConfig(relation_prediction=2.0)
    relations_in_half = FullSoftmaxConfig(relation_prediction=2.0, products="bf16")
    relation_in_half = FullSoftmaxConfig(relation_prediction=1.0, products="bf16")
    more_relations_in_half = FullSoftmaxConfig(relation_prediction=4.0, products="bf16")
    in_half = FullSoftmaxConfig(products="bf16")
    against_all = {"batch_size": 800, "lr": 0.1, "n3": 0.1, "epochs": 36, "validation": {"every": 3}}
    quickly_against_all = against_all | {"lr": 0.3, "epochs": 12, "full_softmax": relation_in_half}
    # More than a third of WordNet's edges are of symmetric relations.
    signs = {"relation_init": "signs", "batch_size": 250, "lr": 0.2, "n3": 0.2, "epochs": 12, "validation": {"every": 4}}

    sampled = {"batch_size": 1000, "chunk_size": 250, "num_uniform": 500, "num_degree": 0, "validation": {"every": 5}}
    product = sampled | {"batch_size": 500, "num_uniform": 1000, "lr": 0.5, "relation_lr": 0.2, "n3": 0.05, "epochs": 60}
    slow = sampled | {"distance": "l2", "init_scale": 0.3, "lr": 0.2, "epochs": 40}
    fast = slow | {"lr": 1.0, "relation_lr": 1.0, "validation": {"every": 4}}
    masked = fast | {"num_uniform": 250, "mask_known": True, "epochs": 24}
    # A chunk has one relation: with small ones a step has many relations, but each is in few steps, and moves further in one.
    slowly_projected = slow | {"chunk_size": 50, "relation_lr": 0.5}
    projected = masked | {"chunk_size": 50, "num_uniform": 500, "l2": 0.02, "epochs": 16}
    margin = {"loss": "self_adversarial", "margin": 6.0, "adversarial_temperature": 0.5, "validation": {"every": 10}}

    freebase = partial(_Rows, "fb15k-237")
    wordnet = partial(_Rows, "wn18rr")
    rows = [
        freebase("complex", 512, 0.348, "", quickly_against_all, num_seeds=3),
        freebase("complex", 1000, 0.348, ", wide", quickly_against_all),
        freebase(
            "complex",
            1000,
            0.348,
            ", wide, long",
            against_all | {"epochs": 24, "batch_size": 400, "full_softmax": more_relations_in_half},
        ),
        freebase("complex", 512, 0.348, ", long", against_all | {"full_softmax": relations_in_half}),
        freebase("complex", 512, 0.348, ", slow", against_all | {"epochs": 12, "full_softmax": relations_in_half}, num_seeds=3),
        freebase(
            "complex",
            512,
            0.348,
            ", slow, half batches",
            against_all | {"epochs": 12, "batch_size": 400, "full_softmax": more_relations_in_half},
        ),
        freebase("complex", 200, 0.348, ", narrow", against_all | {"full_softmax": relations}),
        freebase("distmult", 512, 0.343, "", against_all | {"epochs": 24, "full_softmax": relations_in_half}),
        freebase("transe", 256, 0.313, "", masked | {"l2": 0.01}),
        freebase("transe", 128, 0.313, ", slow", slow),
        freebase("transra", 128, None, "", projected | {"rank": 32, "projection_lr": 0.003}, num_seeds=3),
        freebase("transra", 128, None, ", slow", slowly_projected | {"rank": 32, "projection_lr": 0.01}),
        freebase("transr", 128, None, "", projected | {"projection_lr": 0.01}),
        freebase("transr", 128, None, ", slow", slowly_projected | {"projection_lr": 0.003}),
        freebase("rotate", 400, 0.333, "", masked | {"l2": 0.005}),
        freebase("rotate", 200, 0.333, ", slow", slow),
        wordnet("complex", 400, 0.475, "", signs | {"lr": 0.5, "full_softmax": in_half}),
        wordnet("complex", 400, 0.475, ", slow", signs | {"full_softmax": in_half}),
        wordnet("complex", 200, 0.475, ", sampled", product),
        wordnet("distmult", 400, 0.452, "", signs | {"lr": 0.5, "n3": 0.15, "full_softmax": in_half}),
        wordnet("distmult", 128, 0.452, ", narrow", signs | {"epochs": 8, "full_softmax": in_half}),
        wordnet("distmult", 200, 0.452, ", sampled", product),
        wordnet("transe", 512, 0.228, "", fast | {"relation_lr": 0.2, "l2": 0.015, "epochs": 100, "validation": {"every": 20}}),
        wordnet("transe", 128, 0.228, ", slow", slow),
        wordnet("rotate", 500, 0.478, "", fast | margin | {"l2": 0.015, "epochs": 20}),
        wordnet("rotate", 800, 0.478, ", wide", fast | margin | {"l2": 0.02}),
        wordnet("rotate", 400, 0.478, ", slow, margin", slow | margin | {"epochs": 60}),
        wordnet("rotate", 200, 0.478, ", slow", slow),
    ]
    return [case for row in rows for case in row.cases()]


@dataclass(frozen=True)
class _Rows:
    """The rows of one configuration, a seed each; see `Case`."""

    dataset: str
    model: str
    dim: int
    published: float | None
    suffix: str
    options: Mapping[str, Any]
    num_seeds: int = 1

    def cases(self) -> list[Case]:
        shared = {"relation_lr": 0.1, "init_scale": 0.01, "l2": 0.0, "lr_schedule": "linear", "reciprocal": True}
        settings = {"model": self.model, "dim": self.dim} | shared | dict(self.options)
        return [
            Case(
                dataset=self.dataset,
                config=KgeConfig.model_validate(settings | {"seed": seed}),
                published=self.published,
                suffix=self.suffix,
            )
            for seed in range(self.num_seeds)
        ]


def run(quick: bool) -> Iterator[Row]:
    """One row a figure of each case that has been run, and one that says so of each that has not."""
    wanted = "" if quick else os.environ.get("KGE_RUN", "")
    for case in cases():
        record = read_record(case, RUNS)
        if record is None and wanted in {"all", case.name}:
            record = train_case(case)
        record = record or read_record(case, RECORDS)
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


def read_record(case: Case, folder: Path) -> dict[str, Any] | None:
    """Read what a finished run has left in a folder."""
    path = folder / f"{case.key}.json"
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def train_case(case: Case) -> dict[str, Any] | None:
    """Train a case, or go on with it; None, with a warning, where its dataset is not found."""
    split = load_split(case.dataset)
    if split is None:
        logger.warning("%s is skipped: there is no %s; set KGE_DATA", case.name, data_folder() / case.dataset)
        return None
    RUNS.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    clock = _Clock(RUNS / f"{case.key}.curve.json")
    lifecycle = Lifecycle(checkpoint=RUNS / f"{case.key}.checkpoint", every_seconds=120, resume=True)
    result = train_triples(split, case.config, progress=partial(clock.tick, case.name), lifecycle=lifecycle)
    known, predictor = known_pairs(*split), result.predictor()
    record = {
        "case": case.name,
        "config": case.config.model_dump(mode="json"),
        "threads": torch.get_num_threads(),
        "cpu_seconds": clock.cpu_seconds,
        "curve": clock.curve,
        "valid": _totals(evaluate(predictor, split.valid.edges(), known)),
        "test": _totals(evaluate(predictor, split.test.edges(), known)),
    }
    (RUNS / f"{case.key}.json").write_text(json.dumps(record, indent=1))
    return record


class _Clock:
    """CPU seconds of a run over all the processes that it took, validations included.

    What a killed process did after its last epoch is not counted; what is done again after it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cpu_seconds = 0.0
        self.curve: list[list[float]] = []
        if path.exists():
            kept = json.loads(path.read_text())
            self.cpu_seconds, self.curve = kept["cpu_seconds"], kept["curve"]
        self._begin = time.process_time()

    def tick(self, name: str, row: Mapping[str, float]) -> None:
        """Count an epoch."""
        now = time.process_time()
        self.cpu_seconds += now - self._begin
        self._begin = now
        if "filtered_mrr" in row:
            self.curve.append([self.cpu_seconds, row["filtered_mrr"]])
            logger.info("%s, epoch %d, %.0f CPU s: %.4f", name, row["epoch"], self.cpu_seconds, row["filtered_mrr"])
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({"cpu_seconds": self.cpu_seconds, "curve": self.curve}))
        new.replace(self.path)


def _totals(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "/" not in name}


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw validation MRR against CPU minutes, a panel a dataset and a line a case: model by colour, rest by style."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    runs = [row for row in rows if row["metric"] == FILTERED_MRR.name]
    datasets = sorted({row["config"]["dataset"] for row in runs}) or ["none"]
    figure, axes = plt.subplots(1, len(datasets), figsize=(9.0 * len(datasets), 4.8), layout="constrained", squeeze=False)
    styles = (".-", ".--", ".:", "x-.", "x--", "x:")
    for panel, dataset in zip(axes[0], datasets, strict=True):
        num_lines: Counter[str] = Counter()
        style_of: dict[str, str] = {}
        for row in runs:
            if row["config"]["dataset"] != dataset:
                continue
            minutes, values = zip(*[(seconds / 60, mrr) for seconds, mrr in row["config"]["curve"]], strict=True)
            model = row["config"].get("model", KgeConfig().model)  # a default is not written
            configuration = row["case"].split(", seed ")[0]
            if configuration not in style_of:
                style_of[configuration] = styles[num_lines[model] % len(styles)]
                num_lines[model] += 1
            panel.plot(
                minutes,
                values,
                style_of[configuration],
                color=_COLOURS[model],
                label=f"{row['case'].removeprefix(dataset + '/')} (test {row['value']:.3f})",
            )
        panel.set(title=dataset, xlabel="CPU minutes", ylabel="filtered MRR, validation")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)
    plt.close(figure)
