"""How old what a deployment serves is, and how long its latest event waited to be known."""

from __future__ import annotations

import datetime as dt
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multifacet.artifacts import ArtifactError
from multifacet.serving.ranker.freshness import unix_seconds
from multifacet.serving.release.release import Release

if TYPE_CHECKING:
    from collections.abc import Callable

    from multifacet.serving.core.document import State

__all__ = ["ReleaseFreshness"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseFreshness:
    """How fresh the version is that a deployment serves.

    Attributes:
        version: The version.
        knows_until: Time until which it knows of events, ISO 8601.
        served_since: When the rankers switched to it, ISO 8601; empty if the log does not say.
        delay_s: From the latest event that it knows of to that switch, in seconds; None if the log does not say. Every event
            before waited longer, at most by the time since the version before.
        age_s: From the latest event that it knows of to now, in seconds.
    """

    version: str
    knows_until: str
    served_since: str
    delay_s: float | None
    age_s: float

    @classmethod
    def of(cls, folder: Path, state: State, *, clock: Callable[[], float] = time.time) -> ReleaseFreshness | None:
        """Reads it from the rollout's log and the release's manifest.

        Args:
            folder: The rollout's folder.
            state: What is written down there.
            clock: Seconds since 1970.

        Returns:
            None if the release is not there, or does not say until when it knows.
        """
        has_switched = state.is_over or state.done in {"switched", "retired"}
        version = state.final_version if state.is_over else (state.new_version if has_switched else state.old_version)
        try:
            release = Release.open(state.path(version, ""), verify=False, half="ranker")
        except (ArtifactError, OSError):
            return None
        until = release.manifest.knows_until
        if until is None:
            return None
        since = _switched_at(folder, state) if version == state.new_version else ""
        return cls(
            version=version,
            knows_until=until,
            served_since=since,
            delay_s=unix_seconds(since) - unix_seconds(until) if since else None,
            age_s=clock() - unix_seconds(until),
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        return asdict(self)

    def __str__(self) -> str:
        waited = (
            "" if self.delay_s is None else f", which waited {dt.timedelta(seconds=round(self.delay_s))} for the first score"
        )
        return f"knows of events until {self.knows_until} UTC, {dt.timedelta(seconds=round(self.age_s))} ago{waited}"


def _switched_at(folder: Path, state: State) -> str:
    """Gives when the rankers of this rollout had switched; of servers that adopted a release, when they had it."""
    try:
        lines = (folder / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ""
    done: dict[str, str] = {}
    for line in lines:
        event = json.loads(line)
        if event.get("rollout") == state.number and event.get("event") == "done":
            done.setdefault(event["step"], event["time"])
    return done.get("switched") or done.get("retired") or ""
