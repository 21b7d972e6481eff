"""What is written down of rollouts: the state of the last one, and a log of all that was ever done."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from multifacet.artifacts import write_file
from multifacet.serving.core.document import State

logger = logging.getLogger(__name__)


class RolloutError(RuntimeError):
    """A rollout cannot go on; the message says why, and what to do."""


class RolledBackError(RolloutError):
    """The new version did not keep the limits, and the old one serves again."""


class Journal:
    """One folder's rollouts.

    Args:
        folder: Holds ``rollout.json``, ``audit.jsonl`` and, while a command is to take over from another, ``wanted.json``; made
            if missing. ``lock`` and ``wanting`` are locked by those that have the turn, or want it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._wanted = folder / "wanted.json"

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
            raise RolloutError(
                f"{path} is not a rollout's state: {error}. `multifacet rollout abandon` puts it aside; the servers keep what "
                "they serve"
            ) from error

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
        write_file(self.folder / "rollout.json", state.model_dump_json(indent=2) + "\n", durable=True)

    def audit(self, state: State, event: str) -> None:
        """Add a line to the log; it is on disk when this returns."""
        line = {
            "time": _now(),
            "pid": os.getpid(),
            "rollout": state.number,
            "old": state.old_version,
            "new": state.new_version,
            "step": state.doing or state.done,
            "event": event,
            **({"reason": state.reason} if state.reason else {}),
        }
        logger.info("rollout %d: %s %s", state.number, line["step"], event)
        self._append(json.dumps(line) + "\n")

    def put_aside(self) -> Path | None:
        """Move a state that cannot be read out of the way; where to, or None if it can be read or is not there."""
        try:
            self.read()
        except RolloutError:
            pass
        else:
            return None
        path = self.folder / "rollout.json"
        number = 1
        while (aside := self.folder / f"rollout.damaged-{number}.json").exists():
            number += 1
        path.rename(aside)
        self._append(json.dumps({"time": _now(), "pid": os.getpid(), "event": f"{path.name} put aside as {aside.name}"}) + "\n")
        return aside

    @contextlib.contextmanager
    def taking_over(self, command: str, reason: str) -> Iterator[None]:
        """Ask whoever has the turn to let this command take over, and have the turn within the ``with`` block.

        The wish lasts until the turn comes, and no longer than this process.

        Raises:
            OSError: From the start: the wish cannot be written.
        """
        with (self.folder / "wanting").open("a") as alive:
            fcntl.flock(alive, fcntl.LOCK_SH)  # it goes with the process: the wish of one that was killed is none
            wish = json.dumps({"command": command, "reason": reason, "id": uuid.uuid4().hex})
            write_file(self._wanted, wish, durable=True)
            with self.turn():
                # One that was asked for later, and wants to take over from this one, still waits.
                with contextlib.suppress(FileNotFoundError):
                    if self._wanted.read_text(encoding="utf-8") == wish:
                        self._wanted.unlink()
                fcntl.flock(alive, fcntl.LOCK_UN)
                yield

    def wanted(self) -> str:
        """What another command that wants to take over says; empty if none does, or none that does is there any more."""
        try:
            content = self._wanted.read_bytes()
        except FileNotFoundError:
            return ""
        if not self._is_anybody_waiting():
            return ""
        try:
            found = json.loads(content)
            return f"{found['command']} was asked for ({found['reason']})"
        except (ValueError, KeyError, TypeError):
            return "another command was asked for"

    def _is_anybody_waiting(self) -> bool:
        try:
            with (self.folder / "wanting").open("rb") as alive:
                fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def _append(self, text: str) -> None:
        with (self.folder / "audit.jsonl").open("a", encoding="utf-8") as stream:
            before = os.fstat(stream.fileno()).st_size
            try:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:  # a full disk must not leave half a line
                with contextlib.suppress(OSError):
                    os.ftruncate(stream.fileno(), before)
                raise

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """One controller at a time; the system takes the lock back from one that dies."""
        with (self.folder / "lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
