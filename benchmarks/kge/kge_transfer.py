"""Filtered test MRR on five graphs of different kinds: the automatic preset, and a search.

UMLS, Kinship and Nations come with PyKEEN; WN18RR and FB15k-237 are looked for as `kge_quality` looks for them. "auto" is
`KgeConfig(preset="auto")`, "search" is `kge.search` with $KGE_TRANSFER_MINUTES CPU minutes (6) for small graphs, and ten times
as many for the two large ones. What a search chose is trained in seeds that it has not seen. Both are ranked on the test part
once a seed, three seeds a small graph and one a large one. Peers are the best published figures that we know of. The preset of
small, dense graphs was chosen on the validation parts of the three small ones, so that for them "auto" is no surprise.

Each run is kept below $KGE_RUNS (build/kge_transfer); a search that was killed goes on. Runs that are published with the
project lie in docs/results/kge_transfer, and are read where there is no other. $KGE_RUN names a case to run ("umls/auto"; "all"
for all of them).
--quick searches Nations for 6 CPU seconds.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from benchmarks.harness.knowledge_graphs import data_folder, load_split
from multifacet import kge
from multifacet.kernels.memory import keep_freed_memory
from multifacet.training import Lifecycle

logger = logging.getLogger(__name__)

FILTERED_MRR = Metric(name="filtered_mrr", unit="", better=HIGHER)
VALIDATION_MRR = Metric(name="validation_mrr", unit="", better=HIGHER)
CPU_MINUTES = Metric(name="cpu_minutes", unit="min", better=LOWER)
NUM_RUNS = Metric(name="num_runs", unit="", better=HIGHER)
RUNS: Final = Path(os.environ.get("KGE_RUNS", "build/kge_transfer"))
RECORDS: Final = Path(__file__).resolve().parents[2] / "docs" / "results" / "kge_transfer"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A public graph.

    Attributes:
        published: The best published filtered MRR that we know of.
        source: Where it is published.
        packaged: The folder of PyKEEN's package that has it; None for files.
        is_large: Whether a training takes minutes.
    """

    published: float
    source: str
    packaged: str | None = None
    is_large: bool = False


_RECALLED: Final = "ComplEx-N3-RP (arXiv 2110.02834), as recalled: not looked up"
GRAPHS: Final = {
    "umls": Graph(published=0.971, source="ComplEx-N3-RP (arXiv 2110.02834), as recalled, not looked up", packaged="umls"),
    "kinship": Graph(
        published=0.911, source="ComplEx-N3-RP (arXiv 2110.02834), as recalled, not looked up", packaged="kinships"
    ),
    "nations": Graph(published=0.841, source="ContE (doi 10.2478/jdis-2022-0009)", packaged="nations"),
    "wn18rr": Graph(published=0.488, source="ComplEx-N3-RP (arXiv 2110.02834)", is_large=True),
    "fb15k-237": Graph(published=0.388, source="ComplEx-N3-RP (arXiv 2110.02834)", is_large=True),
}
_KINDS: Final = ("auto", "search")


def run(quick: bool) -> Iterator[Row]:
    """Rows of each case that has been run, and one that says so of each that has not."""
    if quick:
        yield from _quick()
        return
    wanted = os.environ.get("KGE_RUN", "")
    for name, graph in GRAPHS.items():
        for kind in _KINDS:
            case = f"{name}/{kind}"
            record = _read(RUNS, case)
            if record is None and wanted in {"all", case}:
                record = run_case(name, kind)
            record = record or _read(RECORDS, case)
            if record is None:
                command = f"KGE_RUN='{case}' python -m benchmarks kge_transfer"
                yield Row(case=f"{case}: not run; {command}", metric=NUM_RUNS, value=0.0)
                continue
            yield from _rows(case, graph, record)


def load(name: str) -> kge.TripleSplit | None:
    """Read a graph; None if it is not there."""
    packaged = GRAPHS[name].packaged
    if packaged is None:
        return load_split(name)
    folder = resources.files("pykeen.datasets") / packaged
    return kge.TripleSplit.from_files(**{part: Path(str(folder / f"{part}.txt")) for part in ("train", "valid", "test")})


def run_case(name: str, kind: str) -> dict[str, Any] | None:
    """Run a case, or go on with it; None, with a warning, where its data is not found."""
    split = load(name)
    if split is None:
        logger.warning("%s is skipped: there is no %s; set KGE_DATA", name, data_folder() / name)
        return None
    keep_freed_memory()
    RUNS.mkdir(parents=True, exist_ok=True)
    graph, case = GRAPHS[name], f"{name}/{kind}"
    seeds = [0] if graph.is_large else [0, 1, 2]
    record: dict[str, Any] = {"case": case}
    if kind == "auto":
        configs = [kge.KgeConfig(preset="auto", seed=seed, validation=_last_only()) for seed in seeds]
    else:
        minutes = float(os.environ.get("KGE_TRANSFER_MINUTES", "6")) * (10 if graph.is_large else 1)
        found = kge.search(
            split, minutes=minutes, num_seeds=0, lifecycle=Lifecycle(checkpoint=_place(RUNS, case, "search"), resume=True)
        )
        report = found.report.to_dict()
        record["search"] = report | {"trials": len(report["trials"])}
        validation = _last_only()
        configs = [found.config.model_copy(update={"seed": 1000 + seed, "validation": validation}) for seed in seeds]
    known = kge.known_pairs(*split)
    record["runs"] = []
    for config in configs:
        checkpoint = _place(RUNS, case, f"seed-{config.seed}")
        result = kge.train_triples(split, config, lifecycle=Lifecycle(checkpoint=checkpoint, every_seconds=120, resume=True))
        test = kge.evaluate(result.predictor(), split.test.edges(), known)
        run = {
            "seed": config.seed,
            "validation": result.metrics["filtered_mrr"],
            "test": test["filtered_mrr"],
            "seconds": sum(row["seconds"] for row in result.history),
        }
        logger.info("%s: %s", case, run)
        record["runs"].append(run)
        record["config"] = result.config.model_dump(mode="json", exclude_defaults=True)
    _place(RUNS, case, "json").write_text(json.dumps(record, indent=1))
    for left in ("search", *(f"seed-{config.seed}" for config in configs)):
        shutil.rmtree(_place(RUNS, case, left), ignore_errors=True)
    return record


def _last_only() -> kge.KgeValidation:
    return kge.KgeValidation(every=100_000)


def _place(folder: Path, case: str, suffix: str) -> Path:
    return folder / f"{case.replace('/', '-')}.{suffix}"


def _read(folder: Path, case: str) -> dict[str, Any] | None:
    path = _place(folder, case, "json")
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def _rows(case: str, graph: Graph, record: dict[str, Any]) -> Iterator[Row]:
    values = [run["test"] for run in record["runs"]]
    mean = sum(values) / len(values)
    config = {"runs": record["runs"], "config": record["config"], "search": record.get("search"), "published_by": graph.source}
    yield Row(
        case=f"{case}, {len(values)} seeds, +-{(max(values) - min(values)) / 2:.4f}",
        metric=FILTERED_MRR,
        value=mean,
        peer=Peer(name="published", value=graph.published),
        config=config,
    )
    validation = sum(run["validation"] for run in record["runs"]) / len(values)
    yield Row(case=case, metric=VALIDATION_MRR, value=validation)
    if "search" in record:
        yield Row(case=case, metric=CPU_MINUTES, value=record["search"]["cpu_minutes"])


def _quick() -> Iterator[Row]:
    split = load("nations")
    assert split is not None  # noqa: S101 - PyKEEN carries it
    found = kge.search(split, kge.KgeConfig(dim=64), minutes=0.1, num_seeds=1)
    auto = kge.train_triples(split, kge.KgeConfig(preset="auto", dim=64, epochs=20, validation=_last_only()))
    report = found.report
    yield Row(
        case=f"nations, validation, {len(report.records)} trials, against the preset at 20 epochs",
        metric=VALIDATION_MRR,
        value=report.figure[0],
        peer=Peer(name="auto", value=auto.metrics["filtered_mrr"]),
        config={"values": dict(report.best.values), "family": report.best.family},
    )
