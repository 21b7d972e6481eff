"""What is written down of rollouts: the state of the last one, and a log of all that was ever done."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from multifacet.serving.deployed import write_whole
from multifacet.serving.limits import Limits

logger = logging.getLogger(__name__)

Step = Literal["planned", "ranker_loaded", "lookup_loaded", "shadowed", "switched", "retired", "rolled_back"]
FORWARD: tuple[Step, ...] = ("planned", "ranker_loaded", "lookup_loaded", "shadowed", "switched", "retired")


class RolloutError(RuntimeError):
    """A rollout cannot go on; the message says why, and what to do."""


class RolledBackError(RolloutError):
    """The new version did not keep the limits, and the old one serves again."""


class State(BaseModel):
    """What is written down of a rollout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: PositiveInt = Field(description="Counts the rollouts of this folder.")
    old_version: str = Field(description="Version that served before.")
    old_path: Path = Field(description="Its release.")
    new_version: str = Field(description="Version to serve.")
    new_path: Path = Field(description="Its release.")
    rankers: tuple[str, ...] = Field(min_length=1, description="Addresses of the rankers.")
    lookups: tuple[str, ...] = Field(min_length=1, description="Addresses of the lookup servers.")
    limits: Limits = Field(description="What the new version must keep to.")
    done: Step = Field(default="planned", description="The last step that is done.")
    doing: Step | None = Field(default=None, description="The step that was begun and is not known to be done.")
    reason: str = Field(default="", description="Why it is or was taken back.")

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.doing is None and self.done in {"retired", "rolled_back"}


class Journal:
    """One folder's rollouts.

    Args:
        folder: Holds ``rollout.json`` and ``audit.jsonl``; made if missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self) -> State | None:
        """What is written down; None before the first rollout.

        Raises:
            RolloutError: The file is damaged.
        """
        path = self.folder / "rollout.json"
        try:
            return State.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise RolloutError(f"{path} is not a rollout's state: {error}") from error

    def needed(self) -> State:
        """What is written down.

        Raises:
            RolloutError: Nothing is.
        """
        state = self.read()
        if state is None:
            raise RolloutError(f"{self.folder} has no rollout: start one")
        return state

    def write(self, state: State, event: str) -> None:
        """Write a state down, and what it is about."""
        # The log first: a state without its line would be a change that nobody can trace.
        self.audit(state, event)
        write_whole(self.folder / "rollout.json", state.model_dump_json(indent=2) + "\n")

    def audit(self, state: State, event: str) -> None:
        """Add a line to the log; it is on disk when this returns."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "pid": os.getpid(),
            "rollout": state.number,
            "old": state.old_version,
            "new": state.new_version,
            "step": state.doing or state.done,
            "event": event,
            **({"reason": state.reason} if state.reason else {}),
        }
        logger.info("rollout %d: %s %s", state.number, line["step"], event)
        with (self.folder / "audit.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """One controller at a time; the system takes the lock back from one that dies."""
        with (self.folder / "lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield
