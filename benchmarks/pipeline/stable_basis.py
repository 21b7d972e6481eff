"""What a ranker of last week loses on tables of this week: as they are, aligned, warm-started, and warm-started with a pull.

On The Complete Journey. Last week's tables end before week 42 and its ranker learns from weeks 42 to 46; this week's end before
week 43 and its ranker learns from weeks 43 to 47. Both are tested on weeks 49 to 53. The old ranker then reads the new tables:
each row is replaced by the new one ("replaced"), or moved by what its pretrained row moved, so that it keeps what fine-tuning
did ("moved"). Peers are the ranker that was fine-tuned on the new tables, and the old ranker on its own. Several seeds, of
pretraining, fine-tuning and negatives; intervals over users and seeds. With MULTIFACET_STABLE_BASIS=FOLDER seeds that are done
are kept there; MULTIFACET_STABLE_BASIS_SEEDS is how many.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.harness import HIGHER, LOWER, Metric, Row
from multifacet import contrastive, kge, ranking
from multifacet.graphdb import GraphStore, Recipe
from multifacet.pipeline.alignment import align
from multifacet.pipeline.runs.stages import period_start
from multifacet.tables import Snapshot
from multifacet.training import Lifecycle, WarmStart

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from multifacet.ranking import Examples

_AUC = Metric(name="ctr_roc_auc", unit="", better=HIGHER)
_LOSS = Metric(name="ctr_roc_auc_difference", unit="", better=HIGHER)
_LOW = Metric(name="ctr_roc_auc_difference_low", unit="", better=HIGHER)
_HIGH = Metric(name="ctr_roc_auc_difference_high", unit="", better=HIGHER)
_COSINE = Metric(name="median_cosine_with_last_week", unit="", better=HIGHER)
_CPU = Metric(name="cpu_seconds_of_tables", unit="s", better=LOWER)

_SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"
_OLD, _NEW = 42, 43  # first week of fine-tuning: tables end before it
_TEST = range(49, 54)
_WARM_WEEKS = 4
_PULL = 0.01
_FACETS = ("contrastive", "kge")


def run(quick: bool) -> Iterator[Row]:
    """One seed of the sample when quick, else three of the whole."""
    kept = os.environ.get("MULTIFACET_STABLE_BASIS", "")
    with tempfile.TemporaryDirectory(prefix="multifacet-basis-") as name:
        root = Path(kept or name).resolve()
        root.mkdir(parents=True, exist_ok=True)
        store = root / ("sample.duckdb" if quick else "graph.duckdb")
        if not store.exists():
            Recipe.load("completejourney").build(store, _SAMPLE if quick else None)
        seeds = range(int(os.environ.get("MULTIFACET_STABLE_BASIS_SEEDS", "1" if quick else "3")))
        found = [_Seed(root / f"{'quick' if quick else 'seed'}-{seed}", store, seed, is_quick=quick).run() for seed in seeds]
        yield from _rows(found, is_quick=quick)


class _Seed:
    """All tables and rankers of one seed."""

    def __init__(self, folder: Path, store: Path, seed: int, *, is_quick: bool) -> None:
        self.folder, self.store, self.seed, self.is_quick = folder, store, seed, is_quick
        self.cpu: dict[str, float] = {}

    def run(self) -> Path:
        """Trains and scores what is not there yet; gives the folder of the scores."""
        if (self.folder / "done.json").exists():
            return self.folder
        self.folder.mkdir(exist_ok=True)
        old = {facet: self.pretrain(facet, "old", _OLD) for facet in _FACETS}
        new = {facet: {"anew": self.pretrain(facet, "anew", _NEW, offset=100)} for facet in _FACETS}
        for facet in _FACETS:
            new[facet]["aligned"] = self.aligned(facet, new[facet]["anew"], old[facet])
            new[facet]["warm"] = self.pretrain(facet, "warm", _NEW, warm=old[facet])
            new[facet]["pulled"] = self.pretrain(facet, "pulled", _NEW, warm=old[facet], pull=_PULL)
        test = self.examples(_TEST, 9)
        np.savez(self.folder / "test.npz", users=test.user_id, labels=test.ctr_label)
        result, model = self.fit("last week", _OLD, old)
        scores = {"last week on its own": model.score(test)[:, 0]}
        for arm in ("anew", "aligned", "warm", "pulled"):
            tables = {facet: new[facet][arm] for facet in _FACETS}
            for how in ("replaced", "moved"):
                scores[f"last week on {arm}, {how}"] = model.score_with(test, _renewed(model, result, old, tables, how))[:, 0]
        for arm in ("aligned", "warm"):
            _, fresh = self.fit(arm, _NEW, {facet: new[facet][arm] for facet in _FACETS})
            scores[f"fine-tuned on {arm}"] = fresh.score(test)[:, 0]
        np.savez(self.folder / "scores.npz", allow_pickle=False, **scores)
        cosines = {
            f"{arm} {facet}": _median_cosine(old[facet], new[facet][arm], "pin")
            for facet in _FACETS
            for arm in ("anew", "aligned", "warm", "pulled")
        }
        (self.folder / "done.json").write_text(json.dumps({"cpu": self.cpu, "cosine": cosines}))
        return self.folder

    def pretrain(
        self, facet: str, name: str, week: int, *, offset: int = 0, warm: Snapshot | None = None, pull: float = 0.0
    ) -> Snapshot:
        """Pretrains a facet on all that came before a week, or goes on over the last weeks before it."""
        path = self.folder / f"{facet}-{name}"
        if path.exists():
            return Snapshot.load(path, verify=False)
        started = time.process_time()
        lifecycle = Lifecycle(warm_start=None if warm is None else WarmStart.load(warm.path, pull=pull))
        with GraphStore.open(self.store, read_only=True) as store:
            since = None if warm is None else period_start(store, week - _WARM_WEEKS)
            view = store.view(since=since, as_of=period_start(store, week))
            epochs = 1 if warm is not None or self.is_quick else {"contrastive": 4, "kge": 3}[facet]
            seed = self.seed + offset
            if facet == "kge":
                validation = kge.KgeValidation(num_edges=0)
                config = kge.KgeConfig(model="distmult", epochs=epochs, seed=seed, validation=validation)
                snapshot = kge.train(view, config, lifecycle=lifecycle).write_snapshot(path, view)
            else:
                towers = (contrastive.ComposedTower(node_type="advertiser", through="made_by"),)
                held = contrastive.ContrastiveValidation(num_queries=0)
                settings = contrastive.ContrastiveConfig(epochs=epochs, seed=seed, composed=towers, validation=held)
                snapshot = contrastive.train(view, settings, lifecycle=lifecycle).write_snapshot(path, view)
        self.cpu[f"{name} {facet}"] = time.process_time() - started
        return snapshot

    def aligned(self, facet: str, new: Snapshot, old: Snapshot) -> Snapshot:
        """The new tables in the old ones' basis."""
        path = self.folder / f"{facet}-aligned"
        return Snapshot.load(path, verify=False) if path.exists() else align(path, new, old)

    def examples(self, weeks: range, number: int) -> Examples:
        """Labelled exposures of some weeks."""
        with GraphStore.open(self.store, read_only=True) as store:
            return ranking.build_examples(store, weeks, seed=self.seed * 10 + number)

    def fit(
        self, name: str, week: int, snapshots: Mapping[str, Snapshot]
    ) -> tuple[ranking.RankingResult, ranking.ExportedModel]:
        """Fine-tunes a ranker from tables that end before a week."""
        config = ranking.arm_config("pretrained", seed=self.seed, max_epochs=2 if self.is_quick else 8)
        train, valid = self.examples(range(week, week + 5), 1), self.examples(range(week + 5, week + 6), 2)
        result = ranking.train(train, valid, config, snapshots=list(snapshots.values()))
        path = self.folder / f"model {name}"
        ranking.export_model(path, result, replace=True)
        return result, ranking.load_model(path)


def _renewed(
    model: ranking.ExportedModel,
    result: ranking.RankingResult,
    old: Mapping[str, Snapshot],
    new: Mapping[str, Snapshot],
    how: str,
) -> dict[str, Tensor]:
    """The model's tables with this week's rows, at the length that last week's were brought to."""
    tables = {}
    for (name, table), id_map in zip(model.tables.items(), model.id_maps, strict=True):
        coverage = result.coverage[name]
        feature, facet = name.rsplit("_", 1)
        scale = coverage.norm_after / coverage.norm_before
        before, after = (_rows_of(snapshots[facet], feature, id_map, len(table)) for snapshots in (old, new))
        known = before[1] & after[1]
        renewed = table.clone()
        step = scale * (after[0] - before[0])
        renewed[known] = (table + step)[known] if how == "moved" else scale * after[0][known]
        tables[name] = renewed
    return tables


def _rows_of(snapshot: Snapshot, node_type: str, id_map: Any, num_rows: int) -> tuple[Tensor, Tensor]:
    """A snapshot's vectors in a table's order, and which rows have one that was trained."""
    rows = torch.from_numpy(id_map.rows(snapshot.ids(node_type)).astype(np.int64))
    vectors, trained = snapshot.vectors(node_type).float(), snapshot.trained(node_type)
    kept = (rows < num_rows - 1) & vectors.any(1)
    if trained is not None:
        kept &= trained
    placed, known = torch.zeros(num_rows, vectors.shape[1]), torch.zeros(num_rows, dtype=torch.bool)
    placed[rows[kept]], known[rows[kept]] = vectors[kept], True
    return placed, known


def _median_cosine(old: Snapshot, new: Snapshot, node_type: str) -> float:
    """Of the rows of an id that both trainings reached."""
    from multifacet.tables import compare_snapshots  # noqa: PLC0415 - only here

    return compare_snapshots(old, new, align=False, neighbors=False)[node_type].cosine["p50"]


def _rows(folders: list[Path], *, is_quick: bool) -> Iterator[Row]:
    config = {"seeds": len(folders), "sample": is_quick}
    documents = [json.loads((folder / "done.json").read_text()) for folder in folders]
    tests = [np.load(folder / "test.npz") for folder in folders]
    scores = [np.load(folder / "scores.npz") for folder in folders]
    names = list(scores[0].files)
    for name in names:
        aucs = [ranking.roc_auc(test["labels"], found[name]) for test, found in zip(tests, scores, strict=True)]
        yield Row(case=name, metric=_AUC, value=float(np.mean(aucs)), config={**config, "each": aucs})
    for name in names:
        if " on " not in name or name.startswith("fine-tuned"):
            continue
        peer = "fine-tuned on warm" if "warm" in name or "pulled" in name else "fine-tuned on aligned"
        for other in dict.fromkeys((peer, "last week on its own")):
            if other == name:
                continue
            difference, low, high = _difference(tests, scores, name, other)
            case = f"{name}, against {other}"
            yield Row(case=case, metric=_LOSS, value=difference, config=config)
            yield Row(case=case, metric=_LOW, value=low, config=config)
            yield Row(case=case, metric=_HIGH, value=high, config=config)
    for name in documents[0]["cosine"]:
        value = float(np.mean([document["cosine"][name] for document in documents]))
        yield Row(case=name, metric=_COSINE, value=value, config=config)
    for name in documents[0]["cpu"]:
        value = float(np.mean([document["cpu"][name] for document in documents]))
        yield Row(case=name, metric=_CPU, value=value, config=config)


def _difference(tests: list[Any], scores: list[Any], name: str, other: str) -> tuple[float, float, float]:
    """The mean over seeds of a difference, and its interval over users and seeds."""
    generator = np.random.default_rng(0)
    differences, resampled = [], []
    for test, found in zip(tests, scores, strict=True):
        labels, users = test["labels"], test["users"]
        areas = [ranking.roc_auc(labels, found[one]) for one in (name, other)]
        differences.append(areas[0] - areas[1])
        pair: list[NDArray[np.float64]] = [
            ranking.bootstrap_roc_auc(labels, found[one], users, num_resamples=300, seed=0) for one in (name, other)
        ]
        resampled.append(pair[0] - pair[1])
    drawn = np.stack(resampled)
    chosen = generator.integers(0, len(drawn), (2000, len(drawn)))
    columns = generator.integers(0, drawn.shape[1], 2000)
    means = drawn[chosen, columns[:, None]].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean(differences)), float(low), float(high)
