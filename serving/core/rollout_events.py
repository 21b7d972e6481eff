"""What a rollout's controller is told, and what it asks for: the words of `serving.core.controller`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from multifacet.serving.core.document import State
from multifacet.serving.core.reports import Report

# --- calls: what a server may be asked --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """Say what you hold."""


@dataclass(frozen=True)
class Load:
    """Load a release beside the others."""

    path: Path


@dataclass(frozen=True)
class Choose:
    """Make a version the current one."""

    version: str


@dataclass(frozen=True)
class Retire:
    """Forget a version."""

    version: str


@dataclass(frozen=True)
class SetShadow:
    """Score a share of the requests with another version as well."""

    version: str
    share: float


Call: TypeAlias = Status | Load | Choose | Retire | SetShadow

# --- goals ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """The server says what it holds."""

    address: str


@dataclass(frozen=True)
class Holds:
    """The server holds a version."""

    address: str
    version: str


@dataclass(frozen=True)
class Serves:
    """A version is the server's current one, and it remembers that."""

    address: str
    version: str


@dataclass(frozen=True)
class Lacks:
    """The server does not hold a version."""

    address: str
    version: str


@dataclass(frozen=True)
class Shadows:
    """The ranker scores a share of its requests with another version as well; none if empty."""

    address: str
    version: str
    share: float = 0.0


Goal: TypeAlias = Answers | Holds | Serves | Lacks | Shadows

# --- phases of a step -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reach:
    """Reach goals, one after the other.

    Attributes:
        goals: What is to be reached.
        strict: Whether a server that fails ends the command; else it is left out, and the others go on.
    """

    goals: tuple[Goal, ...]
    strict: bool = True


@dataclass(frozen=True)
class Compare:
    """Wait until each ranker has compared enough, and judge."""


@dataclass(frozen=True)
class Count:
    """Note how requests ended so far."""


@dataclass(frozen=True)
class Watch:
    """Watch for a while how requests end, and judge."""


@dataclass(frozen=True)
class Judge:
    """Decide from what the servers say: whether a plan may be written down, or on what a fleet that is given up settles."""


Phase: TypeAlias = Reach | Compare | Count | Watch | Judge

# --- events -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Began:
    """The command begins."""

    now: float


@dataclass(frozen=True)
class Answered:
    """A server did what it was asked, and says what it holds."""

    now: float
    report: Report


@dataclass(frozen=True)
class Failed:
    """A server did not do what it was asked.

    Attributes:
        now: The time.
        reason: Why.
        away: Whether it could not be reached, or did not answer in time.
    """

    now: float
    reason: str
    away: bool = False


@dataclass(frozen=True)
class Woke:
    """A sleep is over."""

    now: float


@dataclass(frozen=True)
class Noted:
    """The document is on disk; or it is not, for this reason."""

    fault: str = ""


@dataclass(frozen=True)
class Interrupted:
    """Somebody asked for a rollback, or to abandon the rollout."""

    reason: str


Event: TypeAlias = Began | Answered | Failed | Woke | Noted | Interrupted

# --- actions ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Note:
    """Put the document on disk, with a line in the log of all that was ever done: `Noted`."""

    document: State
    event: str


@dataclass(frozen=True)
class Remark:
    """Add a line to that log."""

    document: State
    event: str


@dataclass(frozen=True)
class Ask:
    """Ask a server: `Answered` or `Failed`."""

    address: str
    call: Call


@dataclass(frozen=True)
class Sleep:
    """Wait: `Woke`."""

    seconds: float


@dataclass(frozen=True)
class End:
    """The command is over.

    Attributes:
        kind: ``done``; ``refused``: it cannot be done; ``rolled back``: the new version broke a limit; ``failed``: a server
            failed, and the command may be given again; ``interrupted``: another command takes over.
        text: The message; empty if done.
    """

    kind: Literal["done", "refused", "rolled back", "failed", "interrupted"]
    text: str = ""


Action: TypeAlias = Note | Remark | Ask | Sleep | End
