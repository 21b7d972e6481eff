"""Days of a pipeline: each step once, a kill goes on where it was, gates stop, and the history says so."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multifacet.graphdb import GraphStore
from multifacet.pipeline.daily import stages
from multifacet.pipeline.daily.config import Pipeline
from multifacet.pipeline.daily.history import History
from multifacet.pipeline.daily.pruning import prune
from multifacet.pipeline.daily.reading import read_pipeline
from multifacet.pipeline.daily.run import backfill, plan_day, run_day
from multifacet.pipeline.runs.workspace import WorkspaceError
from multifacet.serving import LookupConfig, LookupServer, Release
from multifacet.tables import Snapshot

DAY = dt.date(2025, 1, 21)
STEPS = ["load", "contrastive", "kge", "examples", "ranker", "evaluation", "gates", "release"]
ROOT = Path(__file__).parents[3]


def bring_up(pipeline: Pipeline, silent: Any, *, until: dt.date = DAY - dt.timedelta(days=1)) -> None:
    for _ in backfill(pipeline, dt.date(2025, 1, 1), until, silent, until="load"):
        pass


def fingerprints(pipeline: Pipeline) -> dict[tuple[str, str], str]:
    found = {}
    for run in History(pipeline.folder).runs():
        for step in run.steps:
            value = step.result.get("fingerprint") or step.result.get("version")
            if value:
                found[str(run.day), step.name] = value
    return found


@pytest.mark.slow
def test_days_follow_each_other(shop: Pipeline, silent: Any) -> None:
    """One test, as its days share their work: a first day, the same day again, and a second one."""
    bring_up(shop, silent)
    planned = plan_day(shop, DAY, silent)
    assert [(step.name, step.action) for step in planned] == [*((name, "run") for name in STEPS), ("rollout", "skip")]
    first = run_day(shop, DAY, silent)
    assert first.status == "released", first.reason
    assert [step.name for step in first.steps if not step.reused] == STEPS
    release = next(step for step in first.steps if step.name == "release")
    opened = Release.open(shop.folder / release.stage / stages.RELEASE)
    assert opened.version == release.result["version"]
    # Eight days of training end four days before the day's end, and so does what the release knows.
    assert opened.manifest.knows_until == "2025-01-18T00:00:00"

    # A second run of the same day finds all of it.
    again = run_day(shop, DAY, silent)
    assert [step.name for step in again.steps if not step.reused] == []
    assert {step.action for step in plan_day(shop, DAY, silent)} == {"reuse", "skip"}
    assert all("same" in step.why for step in again.steps)

    # A load that brings nothing new changes nothing.
    with GraphStore.open(shop.store.path) as store:
        count = store.counts()["edges"]["clicks"]
    events = shop.load[0].files.replace("{day}", str(DAY))
    os.utime(events)
    assert run_day(shop, DAY, silent).steps[0].reused is False
    with GraphStore.open(shop.store.path) as store:
        assert store.counts()["edges"]["clicks"] == count

    # A changed gate judges anew, and trains nothing.
    strict = shop.model_copy(update={"gates": shop.gates.model_copy(update={"coverage_stop": 1.1})})
    planned = {step.name: step for step in plan_day(strict, DAY, silent)}
    assert (planned["gates"].action, planned["gates"].why) == ("run", "its gates changed")
    stopped = run_day(strict, DAY, silent)
    assert stopped.status == "stopped"
    assert "have a row of their own" in stopped.reason
    assert [step.name for step in stopped.steps if not step.reused] == ["gates"]
    assert run_day(shop, DAY, silent).status == "released"

    # The next day goes on: contrastive is warm and aligned, kge is not due, and the new ranker is held against the old.
    second = run_day(shop, DAY + dt.timedelta(days=1), silent)
    assert second.status == "released", second.reason
    steps = {step.name: step for step in second.steps}
    assert (steps["kge"].reused, steps["kge"].why) == (True, f"not due: every 3 days, last on {DAY}")
    before = next(step for step in first.steps if step.name == "contrastive")
    snapshot = Snapshot.load(shop.folder / steps["contrastive"].stage / stages.SNAPSHOT)
    older = Snapshot.load(shop.folder / before.stage / stages.SNAPSHOT)
    assert older.fingerprint in snapshot.parents
    assert snapshot.metrics["alignment"]["to"] == older.fingerprint
    assert snapshot.window["since"] == "2025-01-04T00:00:00"  # a warm window of seven days
    change = steps["evaluation"].result["serving_change"]["ctr"]
    assert change["difference_low"] <= change["difference"] <= change["difference_high"]
    assert steps["evaluation"].result["serving"] == next(s for s in first.steps if s.name == "ranker").result["fingerprint"]

    _assert_the_next_day_ships_what_moved(shop, steps["release"], silent)


def _assert_the_next_day_ships_what_moved(shop: Pipeline, last: Any, silent: Any) -> None:
    section = shop.release.model_copy(update={"deltas": True, "tolerance": 0.9})
    shipping = shop.model_copy(update={"release": section, "keep_days": 0})
    third = run_day(shipping, DAY + dt.timedelta(days=2), silent)
    assert third.status == "released", third.reason
    release = next(step for step in third.steps if step.name == "release")
    assert release.result["base"] == last.result["version"]
    whole = Release.open(shop.folder / last.stage / stages.RELEASE)
    assert release.result["bytes"] < whole.lookup_bytes / 2
    path = shop.folder / release.stage / stages.RELEASE
    LookupServer(LookupConfig(releases=(path,))).stop(0)  # it finds its base in the other stage
    prune(shipping, DAY + dt.timedelta(days=30))
    assert whole.path.is_dir()


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(write_shop: Callable[..., Path], silent: Any) -> None:
    calm = read_pipeline(write_shop("calm"))
    bring_up(calm, silent)
    run_day(calm, DAY, silent)
    path = write_shop("killed")
    killed = read_pipeline(path)
    bring_up(killed, silent)
    script = _KILLED.format(path=str(path), day=str(DAY), victim="ranker")
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=ROOT, check=False, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert History(killed.folder).runs()[-1].status == "unfinished"
    record = run_day(killed, DAY, silent)
    assert record.status == "released"
    assert [step.name for step in record.steps if not step.reused] == ["ranker", "evaluation", "gates", "release"]
    assert fingerprints(killed) == fingerprints(calm)


_KILLED = """
import datetime as dt, os, signal
from multifacet.pipeline.daily.reading import read_pipeline
from multifacet.pipeline.daily.run import run_day

class Killer:
    def started(self, name): pass
    def progressed(self, name, message):
        if name.startswith({victim!r} + "-"): os.kill(os.getpid(), signal.SIGKILL)
    def finished(self, stage): pass

run_day(read_pipeline({path!r}), dt.date.fromisoformat({day!r}), Killer())
"""


def test_one_run_a_store(shop: Pipeline, silent: Any) -> None:
    class Impatient:
        def __init__(self) -> None:
            self.refused = ""

        def started(self, name: str) -> None:
            with pytest.raises(WorkspaceError, match="another run is using") as caught:
                run_day(shop, DAY, silent, until="load")
            self.refused = f"{name}: {caught.value}"

        def progressed(self, name: str, message: str) -> None: ...

        def finished(self, stage: Any) -> None: ...

    first = Impatient()
    run_day(shop, dt.date(2025, 1, 1), first, until="load")
    assert "shop.duckdb.daily" in first.refused


def test_a_failing_step_is_noted(shop: Pipeline, silent: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"2030-01-01.parquet: there is no such file for relation clicks"):
        run_day(shop, dt.date(2030, 1, 1), silent)
    run = History(shop.folder).runs()[-1]
    assert run.status == "failed"
    assert "2030-01-01.parquet" in run.reason


def test_a_day_without_files_may_be_skipped(write_shop: Callable[..., Path], silent: Any) -> None:
    shop = read_pipeline(write_shop(**{"where =": 'missing = "skip"\nwhere ='}))
    run = run_day(shop, dt.date(2030, 1, 1), silent, until="load")
    assert run.steps[0].result["skipped"] == ["relation clicks"]


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    history = History(tmp_path)
    number = history.begin(DAY, pipeline="abc")
    with history.path.open("a") as file:
        file.write('{"event": "step", "ru')
    assert [run.status for run in history.runs()] == ["unfinished"]
    history.end(number, "released")
    assert [run.status for run in history.runs()] == ["released"]
    assert all(json.loads(line) for line in history.path.read_text().splitlines())


def test_backfill_refuses_days_that_do_not_rise(shop: Pipeline, silent: Any) -> None:
    with pytest.raises(ValueError, match="is before the first"):
        list(backfill(shop, DAY, DAY - dt.timedelta(days=1), silent))
    with pytest.raises(ValueError, match="every_days is 0"):
        list(backfill(shop, DAY, DAY, silent, every_days=0))
