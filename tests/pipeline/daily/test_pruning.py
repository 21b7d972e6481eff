"""Old stages go; what something still reads stays."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

from multifacet.pipeline.daily.config import Pipeline
from multifacet.pipeline.daily.history import History, StepRecord
from multifacet.pipeline.daily.pruning import prune
from multifacet.serving.core.document import State
from multifacet.serving.core.limits import Limits

DAY = dt.date(2025, 3, 1)


def make(pipeline: Pipeline, name: str, day: dt.date) -> str:
    folder = pipeline.folder / f"{name}-{day}-0123456789ab"
    folder.mkdir(parents=True)
    return folder.name


def note(pipeline: Pipeline, name: str, day: dt.date, stage: str) -> None:
    history = History(pipeline.folder)
    number = history.begin(day, pipeline="")
    fields: dict[str, Any] = {"key": "", "reused": False, "why": "", "seconds": 0.0, "cpu_seconds": 0.0, "result": {}}
    history.note(number, StepRecord(name=name, day=day, stage=stage, **fields))
    history.end(number, "released")


def test_old_stages_go_and_the_last_ones_stay(shop: Pipeline) -> None:
    old, older = DAY - dt.timedelta(days=31), DAY - dt.timedelta(days=60)
    made = {
        (name, day): make(shop, name, day) for name in ("kge", "ranker", "release", "examples") for day in (older, old, DAY)
    }
    for (name, day), stage in made.items():
        if name != "kge" or day == older:  # kge was trained once, long ago
            note(shop, name, day, stage)
    served = make(shop, "release", older - dt.timedelta(days=1))
    (shop.folder / "rollout").mkdir()
    state = State(
        number=1,
        old_version="a",
        old_path=Path("/elsewhere/release"),
        new_version="b",
        new_path=shop.folder / served / "release",
        rankers=("a:1",),
        lookups=("b:1",),
        limits=Limits(),
    )
    (shop.folder / "rollout" / "rollout.json").write_text(state.model_dump_json())
    removed = prune(shop, DAY)
    assert made["kge", older] not in removed
    assert served not in removed
    assert set(removed) == {made[name, day] for name in ("ranker", "release", "examples") for day in (older, old)} | {
        made["kge", old]
    }
    assert (shop.folder / made["ranker", DAY]).is_dir()
