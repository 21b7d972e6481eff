"""A search on a program whose best configuration is known: it finds it, widens, prunes, and goes on after a kill."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multifacet.training import CheckpointError, Choice, Family, Lifecycle, Range, Recipe, Record, run_search
from multifacet.training.search.sampler import measure_importance


@dataclass(frozen=True)
class Bowl:
    """A configuration: how far its rate is from the best one, in factors of ten, costs score; epochs give some back."""

    family: str
    lr: float
    flavor: str
    epochs: int
    every: int
    seed: int

    def score(self, epochs: int) -> float:
        distance = abs(math.log10(self.lr / 0.02))
        loss = 0.2 * distance + (0.1 if self.flavor != "good" else 0.0) + (0.3 if self.family == "worse" else 0.0)
        return max(0.0, 0.9 - loss - 0.3 / (1 + epochs))


class Bowls:
    """Trains by burning about a millisecond of CPU time an epoch."""

    max_epochs = 36
    data = "bowls"

    def __init__(self, low: float = 1e-3, high: float = 0.3, recipes: tuple[Recipe, ...] = ()) -> None:
        space = {"lr": Range(low=low, high=high), "flavor": Choice(("bad", "good", None))}
        self.families: Mapping[str, Family] = {
            "better": Family(settings={}, space=space),
            "worse": Family(settings={}, space=space),
        }
        self.recipes = recipes
        self.trained: list[Bowl] = []

    def configure(self, family: str, values: Mapping[str, Any], *, epochs: int, every: int, seed: int) -> Bowl:
        return Bowl(family, values["lr"], values["flavor"], epochs, every, seed)

    def train(self, config: Bowl, *, lifecycle: Lifecycle, on_score: Callable[[float, float], None] | None) -> float:
        self.trained.append(config)
        for epoch in range(1, config.epochs + 1):
            if lifecycle.stop is not None and lifecycle.stop.is_set():
                raise KeyboardInterrupt
            until = time.process_time() + 1e-3
            while time.process_time() < until:
                pass
            if on_score is not None and (epoch % config.every == 0 or epoch == config.epochs):
                on_score(epoch / config.epochs, config.score(epoch))
        return config.score(config.epochs)


def run(program: Bowls, **options: Any) -> Any:
    return run_search(program, **({"minutes": 0.02, "num_seeds": 2, "seed": 0, "lifecycle": Lifecycle()} | options))


def test_finds_the_family_the_word_and_the_rate() -> None:
    told: list[Record] = []
    report = run(Bowls(), progress=told.append, minutes=0.06)
    assert report.best.family == "better"
    assert report.best.values["flavor"] == "good"
    assert 0.005 < report.best.values["lr"] < 0.08
    assert report.best.score > 0.8
    assert told == list(report.records)
    assert {record.round for record in report.records} == {0, 1, 2}
    # Trials grow from round to round, and the last round's are the best of those before.
    longest = [max(record.epochs for record in report.records if record.round == number) for number in range(3)]
    assert longest == sorted(longest)
    assert longest[0] < longest[2]
    last = [record for record in report.records if record.round == 2]
    before = [record for record in report.records if record.round == 1 and not record.pruned]
    assert last[0].source == "best of the round before"
    assert last[0].values == max(before, key=lambda record: record.score).values
    assert [final.seed for final in report.finals] == [1009, 1010]
    document = report.to_dict()
    assert document["figure"] == pytest.approx(report.finals[0].score)
    scores = [score for _, score in document["curve"]]
    assert scores == sorted(scores)
    assert sum(document["importance"].values()) == pytest.approx(1.0, abs=0.01)


def test_begins_with_the_recipes_and_stops_what_is_worse() -> None:
    recipes = tuple(Recipe(family="better", values={"lr": lr, "flavor": "good"}) for lr in (0.02, 0.03, 0.01, 0.015, 0.3))
    program = Bowls(recipes=recipes)
    report = run(program)
    first = report.records[: len(recipes)]
    assert [record.values for record in first] == [recipe.values for recipe in recipes]
    assert {record.source for record in first} == {"recipe"}
    assert first[4].pruned
    assert len(first[4].curve) < 3
    assert not any(record.pruned for record in first[:4])


def test_widens_a_range_whose_end_is_best() -> None:
    report = run(Bowls(low=0.2, high=2.0))
    lows = [family.space["lr"].low for family in report.families.values()]  # type: ignore[union-attr]
    assert min(lows) < 0.2
    assert report.best.values["lr"] < 0.2


def test_says_what_to_try_next() -> None:
    program = Bowls()
    program.families = {
        "better": Family(settings={}, space={"lr": Range(low=0.2, high=2.0, least=0.2), "flavor": Choice(("good",))})
    }
    said = run(program, minutes=0.01).advice()
    assert any("lr=" in line and "low end" in line for line in said), said


def test_a_stopped_search_goes_on_with_its_trials(tmp_path: Path) -> None:
    stop, told = threading.Event(), []

    def after_five(record: Record) -> None:
        told.append(record)
        if len(told) == 5:
            stop.set()

    life = Lifecycle(checkpoint=tmp_path / "search", stop=stop)
    with pytest.raises(KeyboardInterrupt):
        run(Bowls(), lifecycle=life, progress=after_five)
    with pytest.raises(CheckpointError, match="did not end"):
        run(Bowls(), lifecycle=Lifecycle(checkpoint=tmp_path / "search"))
    again = Lifecycle(checkpoint=tmp_path / "search", resume=True)
    with pytest.raises(CheckpointError, match="minutes"):
        run(Bowls(), lifecycle=again, minutes=1.0)
    report = run(Bowls(), lifecycle=again)
    assert list(report.records[:5]) == told
    assert len(report.records) > 5


def test_a_search_that_is_killed_loses_one_trial_at_most(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_search import Bowls, run
        from multifacet.training import Lifecycle
        life = Lifecycle(checkpoint=Path({str(tmp_path / "search")!r}), resume=True)
        run(Bowls(), lifecycle=life, progress=lambda record: print(record.values["lr"], flush=True))
        """
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        before = [process.stdout.readline() for _ in range(4)]
        os.kill(process.pid, signal.SIGKILL)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[:4] == [line.strip() for line in before]
    assert len(done.stdout.splitlines()) > 4


def test_refuses_a_search_in_which_nothing_learns() -> None:
    program = Bowls(low=1e7, high=1e8)
    with pytest.raises(ValueError, match="every trial of the search diverged"):
        run(program, minutes=0.005)


def test_recipes_outside_the_space_widen_it_and_missing_fields_are_refused() -> None:
    report = run(Bowls(recipes=(Recipe(family="worse", values={"lr": 5.0, "flavor": "new"}),)), minutes=0.01)
    assert report.families["worse"].space["lr"].high >= 5.0  # type: ignore[union-attr]
    assert "new" in report.families["worse"].space["flavor"].values  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"no \['flavor'\]"):
        run(Bowls(recipes=(Recipe(family="worse", values={"lr": 5.0}),)))


def test_ranges_refuse_what_no_factor_leads_to() -> None:
    for low, high in ((0.0, 1.0), (1.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="0 < low < high"):
            Range(low=low, high=high)
    with pytest.raises(ValueError, match="widening stops"):
        Range(low=0.1, high=1.0, least=0.5)
    with pytest.raises(ValueError, match="no values"):
        Choice(())
    whole = Range(low=2, high=32, whole=True).widened(2)
    assert (whole.low, whole.high) == (1, 32)
    assert replace(whole, most=40).widened(32).high == 40


def test_importance_is_told_where_trials_lie_outside_of_the_space() -> None:
    generator = np.random.default_rng(0)
    family = Family(settings={}, space={"lr": Range(low=0.01, high=0.1), "kind": Choice(("a", "b"))})
    rates = [*np.geomspace(0.01, 0.1, 12), 1e-4, 3.0]  # the last two are recipes
    records = [
        Record(
            round=0,
            family="base",
            values={"lr": float(rate), "kind": str(generator.choice(["a", "b"]))},
            source="recipe",
            epochs=1,
            score=float(np.log(rate)),
        )
        for rate in rates
    ]
    shares = measure_importance(family, records)
    assert list(shares) == ["lr", "kind"]
    assert shares["lr"] > 0.8
