"""One day of a pipeline: its steps, each found done or made, and what each waits for."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from multifacet.graphdb import GraphStore
from multifacet.pipeline.daily import loads, rollouts, stages
from multifacet.pipeline.daily.examples import fingerprint_rows
from multifacet.pipeline.daily.history import History, StepRecord
from multifacet.pipeline.runs.workspace import Stage, Task, Workspace, content_key

if TYPE_CHECKING:
    from multifacet.pipeline.daily.config import Pipeline
    from multifacet.pipeline.runs.workspace import Watcher

__all__ = ["Day", "StepError"]

RANKER: Final = "ranker"
_CHECKPOINTS: Final = "checkpoints"


class StepError(RuntimeError):
    """A step cannot be done; the message says why and what to do."""


class Day:
    """The steps of one day.

    A step is asked for by its method, which first asks for those that it reads. What is there is used again: a step's folder
    is named after the hash of all that determines it, which is its configuration, the data of its window, the stages that it
    reads, and the source of the rooms that it runs.

    Args:
        pipeline: The pipeline.
        day: The day; what happened by its end is known.
        watcher: Told of what starts, progresses and ends.
        number: The run's number in the history; None to note nothing there.
    """

    def __init__(self, pipeline: Pipeline, day: dt.date, watcher: Watcher, *, number: int | None = None) -> None:
        self.pipeline = pipeline
        self.day = day
        self.history = History(pipeline.folder)
        self.workspace = Workspace(pipeline.folder, watcher, keep_outdated=True)
        self.number = number
        self._watcher = watcher
        self._done: dict[str, Stage] = {}
        self._fingerprints: dict[Any, str] = {}
        self._is_loaded = False

    @property
    def spans(self) -> dict[str, tuple[dt.datetime, dt.datetime]]:
        """Start and end of the time of each part of the ranker's examples."""
        ranker = self.pipeline.ranker
        lengths = {"evaluation": ranker.evaluate_days, "validation": ranker.validate_days, "train": ranker.train_days}
        spans, before = {}, 0
        for name, length in lengths.items():
            stop = self.pipeline.end_of(self.day, days_before=before)
            before += length
            spans[name] = (self.pipeline.end_of(self.day, days_before=before), stop)
        return spans

    def window(self, facet: str, *, warm: bool) -> tuple[dt.datetime | None, dt.datetime]:
        """Gives a facet's window: it ends where fine-tuning's examples begin, since their labels are edges.

        Args:
            facet: The facet.
            warm: Whether the training goes on from older tables.
        """
        section = self.pipeline.facets[facet]
        ranker = self.pipeline.ranker
        before = ranker.train_days + ranker.validate_days + ranker.evaluate_days
        length = section.warm_window_days if warm and section.warm_window_days is not None else section.window_days
        since = None if length is None else self.pipeline.end_of(self.day, days_before=before + length)
        return since, self.pipeline.end_of(self.day, days_before=before)

    def load(self) -> None:
        """Makes the store on the first day, and loads the day's files; files that were loaded before are passed over."""
        if self._is_loaded:
            return
        pipeline = self.pipeline
        key = loads.fingerprint(pipeline, self.day)
        if loads.is_done(pipeline, self.history, self.day, key):
            self._note("load", "", key, reused=True, why=loads.DONE if pipeline.load else loads.NOTHING)
        else:
            self._watcher.started("load")
            started = time.perf_counter(), time.process_time()
            result = loads.load(pipeline, self.day, partial(self._watcher.progressed, "load"))
            spent = time.perf_counter() - started[0], time.process_time() - started[1]
            why = "the store did not exist" if result["made"] else "files that were not loaded before"
            key = loads.fingerprint(pipeline, self.day)
            self._note("load", "", key, reused=False, why=why, spent=spent, result=result)
        self._is_loaded = True

    def pretrain(self, facet: str) -> Stage:
        """Gives a facet's tables of the day: trained today, or the last ones where it is not due.

        Args:
            facet: The facet's name.
        """
        self.load()
        if facet in self._done:
            return self._done[facet]
        task, _ = self.facet_task(facet)
        if task is None:
            last = self.history.last_step(facet, before=self.day)
            if last is None:
                raise StepError(f"{facet} is not due and has no tables: run an earlier day")
            why = f"not due: every {self.pipeline.facets[facet].every_days} days, last on {last.day}"
            return self._keep(facet, self.open(last), why=why)
        return self._make(facet, task)

    def facet_task(self, facet: str) -> tuple[Task | None, str]:
        """Gives what trains a facet today and why; None if it is not due."""
        section = self.pipeline.facets[facet]
        last = self.history.last_step(facet, before=self.day)
        trained_on = None if last is None else dt.date.fromisoformat(last.result.get("trained_on", last.day.isoformat()))
        if trained_on is not None and (self.day - trained_on).days < section.every_days:
            return None, f"every {section.every_days} days, last on {trained_on}"
        older = None if last is None else self.open(last)
        is_warm = section.start == "warm" and older is not None
        window, config = self.window(facet, warm=is_warm), section.config(warm=is_warm)
        aligns = self.pipeline.align and older is not None
        old_path = None if older is None else older.path / stages.SNAPSHOT
        identity: dict[str, Any] = {
            "pretrainer": config.model_dump(mode="json"),
            "day": self.day.isoformat(),
            "window": self.fingerprint(window, section.relations),
            "warm_start": section.warm_start.model_dump(mode="json") if is_warm else None,
            "align": aligns,
        }
        task = Task(
            name=f"{facet}-{self.day}",
            run=partial(
                stages.pretrain,
                store_path=self.pipeline.store.path,
                config=config,
                window=window,
                relations=section.relations,
                warm=(old_path, section.warm_start) if is_warm and old_path is not None else None,
                align_to=old_path if aligns else None,
                checkpoint=self._checkpoint(facet, identity),
            ),
            config=identity,
            rooms=(section.kind, "training", "tables", "graphdb"),
            parents=[older] if older is not None and (is_warm or aligns) else (),
        )
        return task, "due" if last is not None else "the first tables"

    def draw_examples(self) -> Stage:
        """Gives the ranker's examples of the day."""
        self.load()
        return self._done.get("examples") or self._make("examples", self.examples_task())

    def examples_task(self) -> Task:
        """Gives what draws the examples."""
        section, spans = self.pipeline.ranker, self.spans
        described = section.model_dump(mode="json", exclude={"settings", "every_days"})
        with GraphStore.open(self.pipeline.store.path, read_only=True) as store:
            rows = fingerprint_rows(store, section, spans)
        before = None if section.examples is not None else self.fingerprint((None, spans["evaluation"][1]), None)
        return Task(
            name=f"examples-{self.day}",
            run=partial(stages.draw_examples, store_path=self.pipeline.store.path, section=section, spans=spans),
            config={"section": described, "rows": rows, "graph": before},
            rooms=("ranking", "graphdb"),
        )

    def is_ranker_due(self) -> bool:
        """Whether a ranker is trained today."""
        last = self.history.last_step(RANKER, before=self.day)
        return last is None or (self.day - last.day).days >= self.pipeline.ranker.every_days

    def train_ranker(self) -> Stage:
        """Gives the day's ranker."""
        if RANKER in self._done:
            return self._done[RANKER]
        snapshots = {facet: self.pretrain(facet) for facet in self.pipeline.facets}
        return self._make(RANKER, self.ranker_task(self.draw_examples(), snapshots))

    def ranker_task(self, examples: Stage, snapshots: Mapping[str, Stage]) -> Task:
        """Gives what trains the ranker."""
        config = self.pipeline.ranker.config(tuple(self.pipeline.facets))
        identity = {"ranker": config.model_dump(mode="json")}
        used = {facet: snapshots[facet] for facet in config.pretrained_facets}
        parents = [examples, *used.values()]
        return Task(
            name=f"{RANKER}-{self.day}",
            run=partial(
                stages.train_ranker,
                examples_path=examples.path,
                config=config,
                snapshot_paths=[stage.path / stages.SNAPSHOT for stage in used.values()],
                learned=self.spans["train"],
                checkpoint=self._checkpoint(RANKER, {**identity, "parents": [parent.key for parent in parents]}),
            ),
            config=identity,
            rooms=("ranking", "training", "tables"),
            parents=parents,
        )

    def evaluate(self) -> Stage:
        """Gives the ranker's measures on the days that no training saw, beside the release that serves now."""
        if "evaluation" in self._done:
            return self._done["evaluation"]
        return self._make("evaluation", self.evaluation_task(self.train_ranker(), self.draw_examples()))

    def evaluation_task(self, ranker: Stage, examples: Stage) -> Task:
        """Gives what measures the ranker."""
        serving, precision, section = self.serving(), self.pipeline.release.precision, self.pipeline.evaluate
        return Task(
            name=f"evaluation-{self.day}",
            run=partial(
                stages.evaluate,
                model_path=ranker.path / stages.MODEL,
                examples_path=examples.path,
                serving_path=None if serving is None else serving.path / stages.MODEL,
                precision=precision,
                section=section,
            ),
            config={"evaluate": section.model_dump(mode="json"), "precision": precision},
            rooms=("ranking", "training", "tables"),
            parents=[ranker, examples, *([serving] if serving is not None else [])],
        )

    def judge(self) -> Stage:
        """Gives what the gates found."""
        if "gates" in self._done:
            return self._done["gates"]
        ranker, evaluation = self.train_ranker(), self.evaluate()
        snapshots = {facet: self.pretrain(facet) for facet in self.pipeline.facets}
        return self._make("gates", self.gates_task(ranker, evaluation, snapshots))

    def gates_task(self, ranker: Stage, evaluation: Stage, snapshots: Mapping[str, Stage]) -> Task:
        """Gives what holds the ranker against the gates."""
        older: dict[str, Stage | None] = {}
        for facet in snapshots:
            last = self.history.last_step(facet, before=self.day)
            older[facet] = None if last is None else self.open(last)
        paths = {
            facet: (
                stage.path / stages.SNAPSHOT,
                None if (before := older[facet]) is None or before.key == stage.key else before.path / stages.SNAPSHOT,
            )
            for facet, stage in snapshots.items()
        }
        gates = self.pipeline.gates
        return Task(
            name=f"gates-{self.day}",
            run=partial(
                stages.judge,
                model_path=ranker.path / stages.MODEL,
                evaluation=evaluation.result,
                snapshots=paths,
                gates=gates,
            ),
            config={"gates": gates.model_dump(mode="json"), "facets": list(paths)},
            rooms=("pipeline", "ranking", "tables"),
            parents=[ranker, evaluation, *snapshots.values(), *(stage for stage in older.values() if stage is not None)],
        )

    def publish(self) -> Stage:
        """Gives the day's release.

        Raises:
            StepError: A gate stops it.
        """
        if "release" in self._done:
            return self._done["release"]
        stops = self.judge().result["stops"]
        if stops:
            raise StepError(f"gates stop the release of {self.day}: {'; '.join(stops)}")
        return self._make("release", self.release_task(self.train_ranker()))

    def release_task(self, ranker: Stage) -> Task:
        """Gives what publishes the ranker."""
        section = self.pipeline.release
        last = self.history.last_step("release", before=self.day, released=True) if section.deltas else None
        base = None if last is None else self.open(last)
        return Task(
            name=f"release-{self.day}",
            run=partial(
                stages.release,
                model_path=ranker.path / stages.MODEL,
                precision=section.precision,
                shards=section.shards,
                base=None if base is None else base.path / stages.RELEASE,
                tolerance=section.tolerance,
            ),
            config=section.model_dump(mode="json"),
            rooms=("serving", "tables"),
            parents=[ranker, *([] if base is None else [base])],
        )

    def roll_out(self) -> dict[str, Any] | None:
        """Moves the servers to the day's release; None without `[rollout]`. What was begun before is gone on with."""
        if self.pipeline.rollout is None:
            return None
        release = self.publish()
        self._watcher.started("rollout")
        started = time.perf_counter(), time.process_time()
        result = rollouts.roll_out(self.pipeline, release.path / stages.RELEASE, release.result["version"])
        spent = time.perf_counter() - started[0], time.process_time() - started[1]
        self._note("rollout", "", release.result["version"], reused=False, why="a new release", spent=spent, result=result)
        return result

    def serving(self) -> Stage | None:
        """Gives the ranker of the release that serves now: the last of an earlier day that was published."""
        last = self.history.last_step(RANKER, before=self.day, released=True)
        return None if last is None else self.open(last)

    def fingerprint(self, window: tuple[dt.datetime | None, dt.datetime], relations: tuple[str, ...] | None) -> str:
        """Gives the fingerprint of a window of the store."""
        key = (window, relations)
        if key not in self._fingerprints:
            with GraphStore.open(self.pipeline.store.path, read_only=True) as store:
                view = store.view(since=window[0], as_of=window[1], relations=relations)
                self._fingerprints[key] = view.fingerprint
        return self._fingerprints[key]

    def open(self, step: StepRecord) -> Stage:
        """Opens what a step of the history made."""
        return Workspace.open_stage(self.pipeline.folder / step.stage)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs of this store out."""
        with self.workspace.locked():
            yield

    def _make(self, name: str, task: Task) -> Stage:
        stage = self.workspace.make(task)
        return self._keep(name, stage, why="the same inputs as before" if stage.reused else self.why(name, task))

    def why(self, name: str, task: Task) -> str:
        """Says what is new about a step's inputs."""
        latest = self.history.latest_stage(name, self.day)
        if latest is None or not (self.pipeline.folder / latest).is_dir():
            return "it was not made before"
        changed = Workspace.changes_since(self.pipeline.folder / latest, task)
        return f"{', '.join(changed) or 'something'} changed"

    def _keep(self, name: str, stage: Stage, *, why: str) -> Stage:
        self._done[name] = stage
        result = dict(stage.result)
        if name in self.pipeline.facets:
            result["trained_on"] = stage.name.removeprefix(f"{name}-")
        self._note(
            name,
            stage.path.name,
            stage.key,
            reused=stage.reused,
            why=why,
            spent=(stage.seconds, stage.cpu_seconds),
            result=result,
        )
        return stage

    def _note(
        self,
        name: str,
        stage: str,
        key: str,
        *,
        reused: bool,
        why: str,
        spent: tuple[float, float] = (0.0, 0.0),
        result: Mapping[str, Any] | None = None,
    ) -> None:
        if self.number is None:
            return
        record = StepRecord(
            name=name,
            day=self.day,
            stage=stage,
            key=key,
            reused=reused,
            why=why,
            seconds=spent[0],
            cpu_seconds=spent[1],
            result=dict(result or {}),
        )
        self.history.note(self.number, record)

    def _checkpoint(self, name: str, identity: Mapping[str, Any]) -> Path:
        return self.pipeline.folder / _CHECKPOINTS / f"{name}-{self.day}-{content_key(identity)[:12]}"
