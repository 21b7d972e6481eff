"""One event, from its file to the first score that knows of it."""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from multifacet.artifacts import Artifact
from multifacet.graphdb import GraphStore
from multifacet.pipeline.daily import rollouts, stages
from multifacet.pipeline.daily.config import Pipeline
from multifacet.pipeline.daily.history import RunRecord
from multifacet.pipeline.daily.reading import read_pipeline
from multifacet.pipeline.daily.run import backfill, run_day
from multifacet.pipeline.diagnosis.server_checks import scrape
from multifacet.serving import LookupConfig, LookupServer, RankAnswer, RankerClient, RankerConfig, RankerServer
from multifacet.serving.ranker.freshness import unix_seconds
from multifacet.tables import Snapshot

DAY = dt.date(2025, 1, 20)
HAPPENED = dt.datetime(2025, 1, 21, 9, 30)
#: Tables' windows end twelve days before the day's end, where the ranker's examples begin.
KNOWN_ON = HAPPENED.date() + dt.timedelta(days=12)
ROLLOUT = """
[rollout]
rankers = ["{ranker}"]
lookups = ["{lookup}"]
token_file = "{token}"

[rollout.limits]
shadow_share = 1.0
min_compared = 1
min_requests = 1
watch_s = 0
max_mean_abs_difference = 1
max_mean_difference = 1
"""


def write_files(folder: Path, events: Path) -> None:
    """Files of all days until the event is known; on its day, a pin is clicked that nobody has ever seen."""
    folder.unlink()
    folder.mkdir()
    last = None
    day = dt.date(2025, 1, 1)
    while day <= KNOWN_ON:
        log = pd.read_parquet(events / f"{day}.parquet") if (events / f"{day}.parquet").exists() else last
        assert log is not None
        rows = log.assign(shown_at=pd.Timestamp(day) + (log["shown_at"] - log["shown_at"].dt.normalize()))
        if day == HAPPENED.date():
            one = {
                "user": ["user 1"],
                "item": ["sku-new"],
                "shown_at": [pd.Timestamp(HAPPENED)],
                "price": [1.0],
                "clicked": [1],
            }
            rows = pd.concat([rows, pd.DataFrame(one)])
        rows.to_parquet(folder / f"{day}.parquet")
        last = log
        day += dt.timedelta(days=1)


@contextmanager
def traffic(address: str) -> Iterator[None]:
    """Requests without end, which a rollout looks at before it switches."""
    stop = threading.Event()

    def ask() -> None:
        with RankerClient(address) as client:
            while not stop.is_set():
                client.rank(
                    {"user": "user 2"}, {"pin": [f"sku-{number}" for number in range(40)]}, dense=np.ones((40, 1), np.float32)
                )

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def score(address: str) -> RankAnswer:
    with RankerClient(address) as client:
        return client.rank({"user": "user 1"}, {"pin": ["sku-new"]}, dense=np.ones((1, 1), np.float32))


def release_of(record: RunRecord) -> str:
    assert record.status == "released", record.reason
    return next(step for step in record.steps if step.name == "release").stage


def check_lineage(shop: Pipeline, knowing: RunRecord, answer: RankAnswer) -> None:
    """The lineage leads from the served version back to the window that holds the event."""
    steps = {step.name: step for step in knowing.steps}
    release = Artifact.open(shop.folder / release_of(knowing) / stages.RELEASE)
    model = Artifact.open(shop.folder / steps["ranker"].stage / stages.MODEL)
    snapshot = Snapshot.load(shop.folder / steps["contrastive"].stage / stages.SNAPSHOT)
    assert answer.version == release.fingerprint
    assert release.manifest["parents"] == [model.fingerprint]
    assert snapshot.fingerprint in model.manifest["parents"]
    window = snapshot.window
    assert dt.datetime.fromisoformat(window["since"]) <= HAPPENED < dt.datetime.fromisoformat(window["as_of"])
    with GraphStore.open(shop.store.path, read_only=True) as store:
        view = store.view(since=window["since"], as_of=window["as_of"])
        assert view.fingerprint in snapshot.parents
        assert "sku-new" in view.node_ids("pin").to_pylist()


@pytest.mark.slow
def test_one_event_all_the_way(write_shop: Callable[..., Path], events: Path, silent: Any, tmp_path: Path, run: Any) -> None:
    path = write_shop()
    write_files(path.parent / "events", events)
    shop = read_pipeline(path)
    list(backfill(shop, dt.date(2025, 1, 1), DAY - dt.timedelta(days=1), silent, until="load"))
    old = shop.folder / release_of(run_day(shop, DAY, silent)) / stages.RELEASE

    token = tmp_path / "token"
    token.write_text("t" * 40)
    token.chmod(0o600)
    common: dict[str, Any] = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0", "drain_timeout_s": 5.0}
    common |= {"admin_token_file": token, "admin_releases": shop.folder, "releases": (old,)}
    lookup = LookupServer(LookupConfig(**common))
    lookup_address = lookup.start()
    ranker = RankerServer(RankerConfig(lookup=lookup_address, **common))
    address = ranker.start()
    rollout = ROLLOUT.format(ranker=address, lookup=lookup_address, token=token)
    path.write_text(path.read_text() + rollout)
    shop = read_pipeline(path)
    try:
        version = Artifact.open(old).fingerprint
        assert rollouts.roll_out(shop, old, version)["served"] == version  # the servers adopt what they serve
        assert score(address).num_unknown_ids > 0
        for _ in backfill(shop, DAY + dt.timedelta(days=1), KNOWN_ON - dt.timedelta(days=1), silent, until="load"):
            pass
        with traffic(address):
            knowing = run_day(shop, KNOWN_ON, silent)
        answer = score(address)
        found = scrape(ranker.metrics_address)
    finally:
        ranker.stop(0)
        lookup.stop(0)
    scored = time.time()
    assert answer.num_unknown_ids == 0
    assert answer.version != version

    check_lineage(shop, knowing, answer)
    until = Artifact.open(shop.folder / release_of(knowing) / stages.RELEASE).manifest["knows_until"]

    # The number: exported by the ranker, and told by the rollout.
    assert until == "2025-01-30T00:00:00"  # four days of validation and evaluation before the day's end
    assert found.sum("knows_until_timestamp_seconds") == unix_seconds(until)
    delay = found.sum("first_score_delay_seconds")
    assert delay == pytest.approx(scored - unix_seconds(until), abs=60.0)
    code, output, _ = run("rollout", "status", "--state", shop.folder / "rollout", "--json")
    freshness = json.loads(output)["freshness"]
    assert code == 0
    assert freshness["knows_until"] == until
    assert freshness["delay_s"] == pytest.approx(delay, abs=60.0)
    assert "knows of events until" in run("rollout", "status", "--state", shop.folder / "rollout")[1]
