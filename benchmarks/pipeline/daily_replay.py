"""The Complete Journey replayed by week with `multifacet run`, beside "trained once" and "trained anew", and under kills.

Each Sunday from before week 37 to before week 53, `multifacet run` trains, evaluates, judges and publishes; the release is then
served by a lookup server and a ranker and scores the week that follows, which no training has seen. Three pipelines do so:
`daily` goes on from last week's tables over the last four weeks and gives them in last week's basis; `anew` trains tables from
scratch on all weeks, every week; `once` trains on the first Sunday only, tables and ranker. Differences are paired by user over
all weeks together. Then the first pipeline is run on the sample with kill -9 at 20 random moments and started again each time:
every snapshot, model and release must be that of a run that nothing disturbed. With MULTIFACET_DAILY_REPLAY=FOLDER all is kept
there, and a second run of the benchmark goes on where the first was stopped; MULTIFACET_DAILY_REPLAY_SECONDS ends the replay
early, with the weeks that it came to.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import HIGHER, LOWER, Metric, Row
from multifacet import ranking
from multifacet.graphdb import GraphStore, Recipe
from multifacet.pipeline.daily.history import History
from multifacet.pipeline.daily.reading import read_pipeline
from multifacet.pipeline.runs import stages
from multifacet.ranking import Examples

_AUC = Metric(name="ctr_roc_auc", unit="", better=HIGHER)
_DIFFERENCE = Metric(name="ctr_roc_auc_difference", unit="", better=HIGHER)
_LOW = Metric(name="ctr_roc_auc_difference_low", unit="", better=HIGHER)
_HIGH = Metric(name="ctr_roc_auc_difference_high", unit="", better=HIGHER)
_CPU = Metric(name="cpu_seconds", unit="s", better=LOWER)
_ALARMS = Metric(name="alarms", unit="", better=LOWER)
_CHECKS = Metric(name="checks", unit="", better=HIGHER)
_RELEASES = Metric(name="releases", unit="", better=HIGHER)
_MAX_DIFF = Metric(name="served_against_offline_max_abs", unit="", better=LOWER)
_KILLS = Metric(name="kills", unit="", better=HIGHER)
_OTHER = Metric(name="fingerprints_that_differ", unit="", better=LOWER)
_SAME = Metric(name="fingerprints_that_are_equal", unit="", better=HIGHER)

_FIRST_WEEK, _LAST_WEEK = 37, 53
_SERVED_USERS = 30
_SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample"
_PIPELINE = """
[store]
path = "{store}"
recipe = "completejourney"
{source}
timezone = "America/New_York"
folder = "{folder}"

[facets.contrastive]
kind = "contrastive"
every_days = {every}
start = "{start}"
{warm_contrastive}

[facets.contrastive.settings]
epochs = {contrastive_epochs}
composed = [{{ node_type = "advertiser", through = "made_by" }}]
validation = {{ num_queries = 0 }}

[facets.kge]
kind = "kge"
every_days = {every}
start = "{start}"
{warm_kge}
settings = {{ model = "distmult", epochs = {kge_epochs}, validation = {{ num_edges = 0 }} }}

[ranker]
train_days = 28
validate_days = 7
evaluate_days = 7
every_days = {every}
settings = {{ {ranker} }}
"""


def run(quick: bool) -> Iterator[Row]:
    """Two weeks of the sample and two kills when quick, else all weeks of the whole and twenty kills."""
    kept = os.environ.get("MULTIFACET_DAILY_REPLAY", "")
    with tempfile.TemporaryDirectory(prefix="multifacet-replay-") as name:
        root = Path(kept or name).resolve()
        root.mkdir(parents=True, exist_ok=True)
        weeks = range(_FIRST_WEEK, _FIRST_WEEK + 2) if quick else range(_FIRST_WEEK, _LAST_WEEK + 1)
        if not os.environ.get("MULTIFACET_DAILY_REPLAY_KILLS_ONLY"):
            yield from _replay(root / ("quick" if quick else "whole"), weeks, is_sample=quick)
        yield from _kill(root / "kills", weeks[:1] if quick else weeks[:4], 2 if quick else 20)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws ROC-AUC over the weeks, a line for each arm, and what it cost."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, (aucs, costs) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=(3, 1))
    for arm in ("daily", "once", "anew"):
        weekly = [row for row in rows if row["metric"] == _AUC.name and row["case"].startswith(f"{arm}, week ")]
        weeks = [int(row["case"].rpartition(" ")[2]) for row in weekly]
        aucs.plot(weeks, [row["value"] for row in weekly], "o-", label=arm)
        spent = [row for row in rows if row["metric"] == _CPU.name and row["case"].startswith(f"{arm}, ")]
        for row in spent:
            num_weeks = int(row["case"].split(", ")[1].split()[0])
            costs.bar(f"{arm}\n{num_weeks} weeks", row["value"] / num_weeks)
    aucs.set(title="CTR ROC-AUC of the week that follows", xlabel="week of 2017")
    aucs.grid(alpha=0.3)
    aucs.legend()
    costs.set(title="CPU seconds a week")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _sunday_before(week: int) -> dt.date:
    return dt.date(2017, 1, 1) + dt.timedelta(days=7 * (week - 2))


def _write(root: Path, arm: str, *, is_sample: bool) -> Path:
    """Writes an arm's pipeline."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{arm}.toml"
    warm = arm != "anew"
    text = _PIPELINE.format(
        store=root / "graph.duckdb",
        source=f'source = "{_SAMPLE}"' if is_sample else "",
        folder=root / arm,
        every=7 if arm != "once" else 3650,
        start="warm" if warm else "anew",
        warm_contrastive="warm_window_days = 28\nwarm_settings = { epochs = 1 }" if warm else "",
        warm_kge="warm_window_days = 28\nwarm_settings = { epochs = 1 }" if warm else "",
        contrastive_epochs=1 if is_sample else 3,
        kge_epochs=1 if is_sample else 2,
        ranker="max_epochs = 12, batch_size = 256" if is_sample else "max_epochs = 8",
    )
    path.write_text(text)
    return path


def _command(pipeline: Path, first: dt.date, last: dt.date) -> list[str]:
    return [
        *(sys.executable, "-W", "ignore", "-m", "multifacet.pipeline.cli", "run", str(pipeline)),
        *("--backfill", f"{first}..{last}", "--every", "7", "--json"),
    ]


def _replay(root: Path, weeks: range, *, is_sample: bool) -> Iterator[Row]:
    arms = ("daily", "once", "anew")
    pipelines = {arm: _write(root, arm, is_sample=is_sample) for arm in arms}
    store = root / "graph.duckdb"
    if not store.exists():
        Recipe.load("completejourney").build(store, _SAMPLE if is_sample else None)
    until = time.monotonic() + float(os.environ.get("MULTIFACET_DAILY_REPLAY_SECONDS", "inf"))
    for group in (("daily", "once"), ("anew",)):
        for week in weeks:
            for arm in group if time.monotonic() < until else ():
                _run_week(root, arm, week, pipelines[arm], is_first=week == weeks[0])
    config = {"weeks": f"{weeks[0]}..{weeks[-1]}", "sample": is_sample}
    found = {arm: _scored(root, arm, weeks) for arm in arms}
    for arm in arms:
        for week, document in found[arm].items():
            yield Row(case=f"{arm}, week {week}", metric=_AUC, value=document["auc"], config=config)
        yield from _costs(root, arm, found[arm], config)
    yield from _differences(root, found, config)
    diffs = [document["max_abs_diff"] for document in found["daily"].values()]
    yield Row(case="daily", metric=_MAX_DIFF, value=max(diffs), config=config)


def _run_week(root: Path, arm: str, week: int, pipeline: Path, *, is_first: bool) -> None:
    """Runs an arm on the Sunday before a week, unless that is done, and scores the week."""
    if not (root / arm).exists() and (root / "daily").exists():
        shutil.copytree(root / "daily", root / arm)  # the first week is the same
    if (root / "scores" / f"{week}-{arm}.json").exists():
        return
    if arm != "once" or is_first:  # which is not due in any other week
        day = _sunday_before(week)
        subprocess.run(_command(pipeline, day, day), stdout=subprocess.DEVNULL, check=False)
    _score(root, week, arm, pipeline)


def _scored(root: Path, arm: str, weeks: range) -> dict[int, dict[str, Any]]:
    """What was measured of an arm's weeks, as far as it came."""
    files = {week: root / "scores" / f"{week}-{arm}.json" for week in weeks}
    return {week: json.loads(file.read_text()) for week, file in files.items() if file.exists()}


def _costs(root: Path, arm: str, found: dict[int, dict[str, Any]], config: dict[str, Any]) -> Iterator[Row]:
    """The CPU time of an arm's weeks, its releases, and what its gates said."""
    days = {_sunday_before(week) for week in found}
    latest = {record.day: record for record in History(root / arm).runs() if record.day in days}
    made: dict[str, float] = {}
    for record in History(root / arm).runs():
        for step in record.steps:
            if record.day in days and not step.reused:
                made[step.stage or f"{step.name} {record.number}"] = step.cpu_seconds
    case = f"{arm}, {len(found)} weeks"
    yield Row(case=case, metric=_AUC, value=float(np.mean([document["auc"] for document in found.values()])), config=config)
    yield Row(case=case, metric=_CPU, value=sum(made.values()), config=config)
    yield Row(case=case, metric=_RELEASES, value=sum(record.status == "released" for record in latest.values()), config=config)
    findings = [
        finding
        for record in latest.values()
        for step in record.steps
        if step.name == "gates"
        for finding in step.result["findings"]
    ]
    yield Row(case=case, metric=_CHECKS, value=len(findings), config=config)
    for check in sorted({finding["check"] for finding in findings}):
        alarms = sum(finding["level"] != "ok" for finding in findings if finding["check"] == check)
        if alarms:
            yield Row(case=f"{case}: {check}", metric=_ALARMS, value=alarms, config=config)


def _score(root: Path, week: int, arm: str, path: Path) -> None:
    """Scores a week with the release that was there before it; the daily one is served by two processes."""
    parts = root / "scores" / f"week-{week}"
    parts.mkdir(parents=True, exist_ok=True)
    if not (parts / "test.parquet").exists():
        with GraphStore.open(root / "graph.duckdb", read_only=True) as store:
            ranking.build_examples(store, [week], weighting="demand", seed=week).save(parts / "test.parquet")
    examples = Examples.load(parts / "test.parquet")
    pipeline = read_pipeline(path)
    history, behind = History(pipeline.folder), _sunday_before(week) + dt.timedelta(days=1)
    ranker = history.last_step("ranker", before=behind, released=True)
    release = history.last_step("release", before=behind, released=True)
    if ranker is None or release is None:
        raise RuntimeError(f"{arm} has no release before week {week}: look at `multifacet runs {path}`")
    scores, _ = ranking.quantized_scores(pipeline.folder / ranker.stage / "model", "int4", examples)
    np.save(parts / f"{arm}.npy", scores)
    document: dict[str, Any] = {"week": week, "rows": len(examples), "auc": ranking.roc_auc(examples.ctr_label, scores[:, 0])}
    if arm == "daily":
        served = _serve(parts, pipeline.folder / release.stage / "release", examples, scores)
        document |= {name: served[name] for name in ("requests", "wrong_version", "max_abs_diff", "p50_ms", "p99_ms")}
    (root / "scores" / f"{week}-{arm}.json").write_text(json.dumps(document))


def _serve(parts: Path, release: Path, examples: Examples, scores: np.ndarray) -> dict[str, Any]:
    """Serves the requests of some users by two processes, and compares with the offline scores."""
    users = np.unique(examples.user_id)
    chosen = np.isin(examples.user_id, np.random.default_rng(0).choice(users, min(_SERVED_USERS, len(users)), replace=False))
    folder = parts / "served"
    folder.mkdir(exist_ok=True)
    examples.take(chosen).save(folder / "test.parquet")
    np.save(folder / "offline.npy", scores[chosen])
    return stages.serve(folder, _hush, release_path=release, examples_path=folder, offline_path=folder / "offline.npy")


def _hush(text: str) -> None:
    del text  # a benchmark says its rows, and nothing else


def _differences(root: Path, found: dict[str, dict[int, Any]], config: dict[str, Any]) -> Iterator[Row]:
    """Pairs arms by user, over all weeks that both came to."""
    for arm, other in (("daily", "once"), ("daily", "anew"), ("anew", "once")):
        weeks = sorted(found[arm].keys() & found[other].keys())
        folders = [root / "scores" / f"week-{week}" for week in weeks]
        parts = [Examples.load(folder / "test.parquet") for folder in folders]
        users = np.concatenate([part.user_id for part in parts])
        labels = np.concatenate([part.ctr_label for part in parts])
        scores = [np.concatenate([np.load(folder / f"{name}.npy")[:, 0] for folder in folders]) for name in (arm, other)]
        areas = [ranking.roc_auc(labels, values) for values in scores]
        resampled = [ranking.bootstrap_roc_auc(labels, values, users, num_resamples=400, seed=0) for values in scores]
        low, high = np.quantile(resampled[0] - resampled[1], [0.025, 0.975])
        case = f"{arm} against {other}, weeks {weeks[0]}..{weeks[-1]}"
        yield Row(case=case, metric=_DIFFERENCE, value=areas[0] - areas[1], config=config)
        yield Row(case=case, metric=_LOW, value=float(low), config=config)
        yield Row(case=case, metric=_HIGH, value=float(high), config=config)


def _kill(root: Path, weeks: range, num_kills: int) -> Iterator[Row]:
    first, last = _sunday_before(weeks[0]), _sunday_before(weeks[-1])
    calm = _write(root / "calm", "daily", is_sample=True)
    subprocess.run(_command(calm, first, last), stdout=subprocess.DEVNULL, check=False)
    killed = _write(root / "killed", "daily", is_sample=True)
    generator = np.random.default_rng(0)
    done_file = root / "kills.json"
    kills = json.loads(done_file.read_text()) if done_file.exists() else 0
    while kills < num_kills:
        process = subprocess.Popen(_command(killed, first, last), stdout=subprocess.DEVNULL)
        time.sleep(float(generator.uniform(4.0, 25.0)))
        if process.poll() is not None:  # it ended before its kill: another day's work is thrown away, to be done again
            _forget(root / "killed" / "daily", generator)
            continue
        process.kill()
        process.wait()
        kills += 1
        done_file.write_text(json.dumps(kills))
    subprocess.run(_command(killed, first, last), stdout=subprocess.DEVNULL, check=False)
    found = {name: _fingerprints(root / name / "daily") for name in ("calm", "killed")}
    equal = {key for key, value in found["calm"].items() if found["killed"].get(key) == value}
    different = (found["calm"].keys() | found["killed"].keys()) - equal
    config = {"weeks": f"{weeks[0]}..{weeks[-1]}", "sample": True, "different": sorted(map(str, different))}
    case = f"{num_kills} kills"
    yield Row(case=case, metric=_KILLS, value=kills, config=config)
    yield Row(case=case, metric=_SAME, value=len(equal), config=config)
    yield Row(case=case, metric=_OTHER, value=len(different), config=config)


def _forget(folder: Path, generator: np.random.Generator) -> None:
    """Removes what some later days made, so that there is work to be killed at."""
    days = sorted({path.name.rpartition("-")[0][-10:] for path in folder.glob("ranker-*")})
    begin = days[int(generator.integers(0, max(1, len(days) // 2)))]
    for path in folder.iterdir():
        day = path.name.rpartition("-")[0][-10:]
        if path.is_dir() and len(day) == 10 and day[:2] == "20" and day >= begin:
            shutil.rmtree(path)


def _fingerprints(folder: Path) -> dict[tuple[str, str], str]:
    """Gives the fingerprint of what each day made: of snapshots and models, and a release's version."""
    found = {}
    for record in History(folder).runs():
        for step in record.steps:
            value = step.result.get("fingerprint") or step.result.get("version")
            if value:
                found[record.day.isoformat(), step.name] = value
    return found
