"""What a pipeline has done: one line of JSON an event, kept in the store's folder."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = ["FILE", "History", "RunRecord", "StepRecord"]

FILE: Final = "history.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One step of a run.

    Attributes:
        name: The step, such as "kge".
        day: The day that it is of.
        stage: Folder of what it made, relative to the history's folder; empty for a step that keeps nothing.
        key: Hash of all that determined it; a fingerprint of what was loaded, for a load.
        reused: Whether it was there already.
        why: Why it ran, or did not.
        seconds: Wall time.
        cpu_seconds: CPU time.
        result: What it found.
    """

    name: str
    day: dt.date
    stage: str
    key: str
    reused: bool
    why: str
    seconds: float
    cpu_seconds: float
    result: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One run of one day.

    Attributes:
        number: Counts the store's runs.
        day: The day.
        began: When, ISO 8601, UTC.
        ended: When; empty for a run that was killed or is at work.
        status: "released", "stopped" (by a gate), "failed", or "unfinished".
        reason: What stopped it.
        steps: What it did.
    """

    number: int
    day: dt.date
    began: str
    ended: str = ""
    status: str = "unfinished"
    reason: str = ""
    steps: list[StepRecord] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return {
            "run": self.number,
            "day": self.day.isoformat(),
            "began": self.began,
            "ended": self.ended,
            "status": self.status,
            "reason": self.reason,
            "seconds": sum(step.seconds for step in self.steps if not step.reused),
            "cpu_seconds": sum(step.cpu_seconds for step in self.steps if not step.reused),
            "steps": [_step_fields(step) for step in self.steps],
        }


class History:
    """The events of a store's runs.

    An event is on disk before the next begins, and a killed writer leaves at most a part of a last line, which is cut off
    by the next writer.

    Args:
        folder: Where `history.jsonl` is, or will be.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     history = History(Path(folder))
        ...     number = history.begin(dt.date(2026, 11, 29), pipeline="abc")
        ...     history.end(number, "released")
        ...     [(run.number, run.status) for run in history.runs()]
        [(1, 'released')]
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def runs(self) -> list[RunRecord]:
        """All runs, the oldest first."""
        found: dict[int, RunRecord] = {}
        for event in self._events():
            number = event["run"]
            if event["event"] == "began":
                found[number] = RunRecord(number=number, day=dt.date.fromisoformat(event["day"]), began=event["time"])
            elif event["event"] == "step":
                found[number].steps.append(_step_of(event))
            else:
                before = found[number]
                found[number] = RunRecord(
                    number=number,
                    day=before.day,
                    began=before.began,
                    ended=event["time"],
                    status=event["status"],
                    reason=event["reason"],
                    steps=before.steps,
                )
        return list(found.values())

    def last_step(self, name: str, *, before: dt.date, released: bool = False) -> StepRecord | None:
        """Gives a step of the latest day before a day, as it was done last.

        Args:
            name: The step.
            before: The day.
            released: Only of days whose last run released.
        """
        last: dict[dt.date, StepRecord] = {}
        for run in self.runs():
            if run.day >= before or (released and run.status != "released"):
                continue
            for step in run.steps:
                if step.name == name and step.stage and (self.path.parent / step.stage).is_dir():
                    last[run.day] = step
        return last[max(last)] if last else None

    def latest_stage(self, name: str, day: dt.date) -> str | None:
        """Gives the folder that a step of a day used last, below the pipeline's; None if it was never done."""
        used = [step.stage for run in self.runs() if run.day == day for step in run.steps if step.name == name and step.stage]
        return used[-1] if used else None

    def begin(self, day: dt.date, *, pipeline: str) -> int:
        """Notes that a run begins.

        Args:
            day: Its day.
            pipeline: Hash of the pipeline's file.

        Returns:
            The run's number.
        """
        number = 1 + max((event["run"] for event in self._events()), default=0)
        self._append({"event": "began", "run": number, "day": day.isoformat(), "pipeline": pipeline, "pid": os.getpid()})
        return number

    def note(self, number: int, step: StepRecord) -> None:
        """Notes that a step of a run is done."""
        self._append({"event": "step", "run": number, **_step_fields(step)})

    def end(self, number: int, status: str, reason: str = "") -> None:
        """Notes how a run ended."""
        self._append({"event": "ended", "run": number, "status": status, "reason": reason})

    def _events(self) -> Iterator[Mapping[str, Any]]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield json.loads(line)

    def _append(self, event: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"), **event}, allow_nan=False)
        with self.path.open("a+b") as file:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _step_fields(step: StepRecord) -> dict[str, Any]:
    return {
        "name": step.name,
        "day": step.day.isoformat(),
        "stage": step.stage,
        "key": step.key,
        "reused": step.reused,
        "why": step.why,
        "seconds": round(step.seconds, 3),
        "cpu_seconds": round(step.cpu_seconds, 3),
        "result": _finite(step.result),
    }


def _step_of(event: Mapping[str, Any]) -> StepRecord:
    return StepRecord(
        name=event["name"],
        day=dt.date.fromisoformat(event["day"]),
        stage=event["stage"],
        key=event["key"],
        reused=event["reused"],
        why=event["why"],
        seconds=event["seconds"],
        cpu_seconds=event["cpu_seconds"],
        result=event["result"],
    )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
