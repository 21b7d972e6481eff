"""Runs days of a pipeline, and says what a run would do."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from multifacet.pipeline.daily import loads
from multifacet.pipeline.daily.day import RANKER, Day, StepError
from multifacet.pipeline.daily.pruning import prune
from multifacet.pipeline.runs.workspace import Stage, Task, content_key

if TYPE_CHECKING:
    from multifacet.pipeline.daily.config import Pipeline
    from multifacet.pipeline.daily.history import RunRecord
    from multifacet.pipeline.runs.workspace import Watcher

__all__ = ["PlannedStep", "Until", "backfill", "plan_day", "run_day"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStep:
    """What a run would do about one step.

    Attributes:
        name: The step.
        action: "run", "reuse" or "skip".
        why: Why.
    """

    name: str
    action: str
    why: str


Until = Literal["load", "pretrain", "train", "evaluate", "judge", "publish", "roll_out"]


def run_day(pipeline: Pipeline, day: dt.date, watcher: Watcher, *, until: Until = "roll_out") -> RunRecord:
    """Runs one day: loads, pretrains, trains, evaluates, judges, publishes and rolls out.

    The same day run again finds its steps done. A run that was killed goes on where it was.

    Args:
        pipeline: The pipeline.
        day: The day.
        watcher: Told of what starts, progresses and ends.
        until: The last step to do.

    Returns:
        What was done: "released"; "stopped" by a gate; or "partial" where `until` is an earlier step, or no ranker is due.

    Raises:
        WorkspaceError: Another run of this store is at work.
        Exception: What a failing step raised; the history notes it.
    """
    unnumbered = Day(pipeline, day, watcher)
    with unnumbered.locked():
        history = unnumbered.history
        number = history.begin(day, pipeline=content_key(pipeline.model_dump(mode="json")))
        run = Day(pipeline, day, watcher, number=number)
        try:
            status, reason = _run(run, until)
        except Exception as error:
            history.end(number, "failed", f"{type(error).__name__}: {error}")
            raise
        history.end(number, status, reason)
        if status == "released":
            prune(pipeline, day)
        return history.runs()[-1]


def _run(day: Day, until: Until) -> tuple[str, str]:
    day.load()
    if until == "load":
        return "partial", "done until load"
    for facet in day.pipeline.facets:
        day.pretrain(facet)
    if until == "pretrain":
        return "partial", "done until pretrain"
    if not day.is_ranker_due():
        return "partial", f"a ranker is due every {day.pipeline.ranker.every_days} days"
    steps: dict[Until, Callable[[], Any]] = {"train": day.train_ranker, "evaluate": day.evaluate, "judge": day.judge}
    for name, step in steps.items():
        step()
        if until == name:
            return "partial", f"done until {name}"
    stops = day.judge().result["stops"]
    if stops:
        return "stopped", "; ".join(stops)
    day.publish()
    if until == "publish":
        return "released", "done until publish"
    day.roll_out()
    return "released", ""


def backfill(
    pipeline: Pipeline,
    first: dt.date,
    last: dt.date,
    watcher: Watcher,
    *,
    every_days: int = 1,
    until: Until = "roll_out",
) -> Iterator[RunRecord]:
    """Runs many days, one after the other; days that were run are found done.

    A day that a gate stops does not stop the next.

    Args:
        pipeline: The pipeline.
        first: The first day.
        last: The last.
        watcher: As of `run_day`.
        every_days: Days from one to the next.
        until: The last step to do on each day, such as "load" to bring a store up to a day.

    Yields:
        Each day's run.

    Raises:
        ValueError: The last day is before the first, or `every_days` is less than 1.
    """
    if last < first:
        raise ValueError(f"the last day, {last}, is before the first, {first}")
    if every_days < 1:
        raise ValueError(f"every_days is {every_days}: expected 1 or more")
    day = first
    while day <= last:
        yield run_day(pipeline, day, watcher, until=until)
        day += dt.timedelta(days=every_days)


def plan_day(pipeline: Pipeline, day: dt.date, watcher: Watcher) -> list[PlannedStep]:
    """Says what `run_day` would do about each step, and why; nothing is made or changed.

    Args:
        pipeline: The pipeline.
        day: The day.
        watcher: Told of nothing.
    """
    now = Day(pipeline, day, watcher)
    key = loads.fingerprint(pipeline, day)
    if not loads.is_done(pipeline, now.history, day, key):
        return list(_plan_behind_load(now))
    planned = [PlannedStep(name="load", action="reuse", why=loads.DONE if pipeline.load else loads.NOTHING)]
    return planned + list(_plan_steps(now))


def _plan_behind_load(day: Day) -> Iterator[PlannedStep]:
    """A load may change whatever comes after it, so nothing is known of that yet."""
    is_new = not day.pipeline.store.path.exists()
    yield PlannedStep(
        name="load", action="run", why="the store does not exist" if is_new else "files that were not loaded on this day"
    )
    names = [*day.pipeline.facets, "examples", RANKER, "evaluation", "gates", "release"]
    for name in names:
        section = day.pipeline.facets.get(name)
        last = None if section is None else day.history.last_step(name, before=day.day)
        trained_on = None if last is None else dt.date.fromisoformat(str(last.result.get("trained_on", last.day)))
        if section is not None and trained_on is not None and (day.day - trained_on).days < section.every_days:
            yield PlannedStep(name=name, action="skip", why=f"every {section.every_days} days, last on {trained_on}")
        else:
            yield PlannedStep(name=name, action="run", why="unless the load brings nothing new")
    yield from _plan_rollout(day)


def _plan_steps(day: Day) -> Iterator[PlannedStep]:
    snapshots: dict[str, Stage] = {}
    for facet in day.pipeline.facets:
        task, why = day.facet_task(facet)
        if task is None:
            last = day.history.last_step(facet, before=day.day)
            if last is None:
                raise StepError(f"{facet} is not due and has no tables: run an earlier day")
            snapshots[facet] = day.open(last)
            yield PlannedStep(name=facet, action="skip", why=why)
        else:
            snapshots[facet] = yield from _planned(day, facet, task, why)
    if not day.is_ranker_due():
        yield PlannedStep(name=RANKER, action="skip", why=f"every {day.pipeline.ranker.every_days} days")
        return
    examples = yield from _planned(day, "examples", day.examples_task())
    ranker = yield from _planned(day, RANKER, day.ranker_task(examples, snapshots))
    evaluation = yield from _planned(day, "evaluation", day.evaluation_task(ranker, examples))
    yield from _planned(day, "gates", day.gates_task(ranker, evaluation, snapshots))
    yield from _planned(day, "release", day.release_task(ranker))
    yield from _plan_rollout(day)


def _plan_rollout(day: Day) -> Iterator[PlannedStep]:
    if day.pipeline.rollout is None:
        yield PlannedStep(name="rollout", action="skip", why="there is no [rollout]")
    else:
        yield PlannedStep(name="rollout", action="run", why="the servers are asked what they hold")


def _planned(day: Day, name: str, task: Task, why: str = "") -> Generator[PlannedStep, None, Stage]:
    """Yields a step, and returns its stage: as it is, or as it would be named."""
    stage = day.workspace.find(task)
    if stage is not None:
        yield PlannedStep(name=name, action="reuse", why="the same inputs as before")
        return stage
    told = day.why(name, task)
    yield PlannedStep(
        name=name, action="run", why=f"{why}; {told}" if why and told != "it was not made before" else why or told
    )
    key = content_key(task.inputs())
    path = day.pipeline.folder / f"{task.name}-{key[:12]}"
    return Stage(name=task.name, key=key, path=path, result={}, seconds=0.0, peak_rss_bytes=0, reused=False)
