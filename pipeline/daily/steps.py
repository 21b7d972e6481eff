"""A day's steps as plain functions, for a scheduler of one's own: each finds what it reads done, or does it first.

Each may run in a process of its own, on any machine that sees the store. A step waits while another of the same store is
at work, so that a scheduler need not know that there is one lock.

    from multifacet.pipeline.daily import steps

    steps.load("pipeline.toml", "2026-11-29")
    steps.pretrain("pipeline.toml", "2026-11-29", "kge")
    steps.publish("pipeline.toml", "2026-11-29")
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multifacet.pipeline.daily import stages
from multifacet.pipeline.daily.config import Pipeline
from multifacet.pipeline.daily.day import Day
from multifacet.pipeline.daily.reading import read_pipeline
from multifacet.pipeline.runs.workspace import WorkspaceError, content_key

if TYPE_CHECKING:
    from multifacet.pipeline.runs.workspace import Stage

__all__ = ["evaluate", "judge", "load", "pretrain", "publish", "roll_out", "train_ranker"]

logger = logging.getLogger(__name__)

_LOOK_S = 1.0

#: A pipeline, or its file.
PipelineFile = Pipeline | Path | str
#: A day, or its name, such as "2026-11-29".
DayName = dt.date | str


def load(pipeline: PipelineFile, day: DayName, *, wait_s: float = 86_400.0) -> None:
    """Loads a day's files.

    Args:
        pipeline: The pipeline.
        day: The day.
        wait_s: How long to wait for another step of this store.

    Raises:
        WorkspaceError: Another step is at work for longer.
        FileNotFoundError: A file is not there.
    """
    _do(pipeline, day, "load", lambda run: run.load(), wait_s)


def pretrain(pipeline: PipelineFile, day: DayName, facet: str, *, wait_s: float = 86_400.0) -> Path:
    """Trains a facet's tables if they are due, and gives the snapshot's folder.

    Args:
        pipeline: The pipeline.
        day: The day.
        facet: The facet.
        wait_s: As of `load`.

    Raises:
        WorkspaceError: Another step is at work for longer.
    """
    made: Stage = _do(pipeline, day, facet, lambda run: run.pretrain(facet), wait_s)
    return made.path / stages.SNAPSHOT


def train_ranker(pipeline: PipelineFile, day: DayName, *, wait_s: float = 86_400.0) -> Path:
    """Trains the ranker, and gives the model's folder; otherwise as `pretrain`."""
    made: Stage = _do(pipeline, day, "ranker", lambda run: run.train_ranker(), wait_s)
    return made.path / stages.MODEL


def evaluate(pipeline: PipelineFile, day: DayName, *, wait_s: float = 86_400.0) -> dict[str, Any]:
    """Measures the ranker, and gives what was measured; otherwise as `pretrain`."""
    made: Stage = _do(pipeline, day, "evaluation", lambda run: run.evaluate(), wait_s)
    return made.result


def judge(pipeline: PipelineFile, day: DayName, *, wait_s: float = 86_400.0) -> dict[str, Any]:
    """Holds the ranker against the gates, and gives what was found: its "stops" say why there will be no release."""
    made: Stage = _do(pipeline, day, "gates", lambda run: run.judge(), wait_s)
    return made.result


def publish(pipeline: PipelineFile, day: DayName, *, wait_s: float = 86_400.0) -> Path:
    """Publishes the release, and gives its folder; otherwise as `pretrain`.

    Raises:
        StepError: A gate stops it.
    """
    made: Stage = _do(pipeline, day, "release", lambda run: run.publish(), wait_s, status="released")
    return made.path / stages.RELEASE


def roll_out(pipeline: PipelineFile, day: DayName, *, wait_s: float = 86_400.0) -> dict[str, Any] | None:
    """Moves the servers of `[rollout]` to the release; None without that section. Otherwise as `publish`."""
    done: dict[str, Any] | None = _do(pipeline, day, "rollout", lambda run: run.roll_out(), wait_s, status="released")
    return done


def _do(
    pipeline: PipelineFile, day: DayName, name: str, step: Callable[[Day], Any], wait_s: float, *, status: str = "partial"
) -> Any:
    read = pipeline if isinstance(pipeline, Pipeline) else read_pipeline(pipeline)
    date = day if isinstance(day, dt.date) else dt.date.fromisoformat(day)
    until = time.monotonic() + wait_s
    while True:
        try:
            with Day(read, date, _Log()).locked():
                return _run(read, date, name, step, status)
        except WorkspaceError:
            if time.monotonic() >= until:
                raise
            time.sleep(_LOOK_S)


def _run(pipeline: Pipeline, day: dt.date, name: str, step: Callable[[Day], Any], status: str) -> Any:
    unnumbered = Day(pipeline, day, _Log())
    number = unnumbered.history.begin(day, pipeline=content_key(pipeline.model_dump(mode="json")))
    try:
        made = step(Day(pipeline, day, _Log(), number=number))
    except Exception as error:
        unnumbered.history.end(number, "failed", f"{type(error).__name__}: {error}")
        raise
    unnumbered.history.end(number, status, f"step {name}")
    return made


class _Log:
    """Tells a scheduler's log what runs."""

    def started(self, name: str) -> None:
        logger.info("%s: started", name)

    def progressed(self, name: str, message: str) -> None:
        logger.info("%s: %s", name, message)

    def finished(self, stage: Stage) -> None:
        logger.info("%s: %s", stage.name, "found" if stage.reused else f"{stage.seconds:.1f} s")
