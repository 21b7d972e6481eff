"""What a server's holdings are told, and what they ask for: the words of `serving.core.holdings`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from multifacet.serving.core.faults import Fault


@dataclass(frozen=True)
class Entry:
    """A release: its version (empty while it is not known) and its folder.

    Attributes:
        num_bytes: Memory that it has for itself.
        whole: Of a delta the version of the whole release that it lies over.
        whole_bytes: Memory of that one, which all that lie over it share.
    """

    version: str
    path: str
    num_bytes: int = 0
    whole: str = ""
    whole_bytes: int = 0


@dataclass(frozen=True)
class Document:
    """What is remembered: releases, the oldest first, and which of them is the current one."""

    releases: tuple[Entry, ...] = ()
    current: str = ""


# --- events -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """The process begins.

    Attributes:
        document: What the state file remembers; None if there is none.
        configured: Folders of the configuration, of which the last becomes the current one.
        administered: Whether somebody can mend it while it runs.
        keeps_state: Whether it has a state file.
        waits: Whether a server that remembers nothing waits to be told that its version is the current one.
        budget_bytes: Most bytes that it may hold; None for no limit.
    """

    document: Document | None
    configured: tuple[str, ...]
    administered: bool = False
    keeps_state: bool = True
    waits: bool = False
    budget_bytes: int | None = None


@dataclass(frozen=True)
class LoadAsked:
    """Somebody asks for a release to be loaded."""

    ticket: int
    path: str
    current: bool = False


@dataclass(frozen=True)
class ChooseAsked:
    """Somebody asks for a version to become the current one."""

    ticket: int
    version: str


@dataclass(frozen=True)
class RetireAsked:
    """Somebody asks for a version to be forgotten."""

    ticket: int
    version: str
    timeout_s: float = 0.0


@dataclass(frozen=True)
class ShadowAsked:
    """Somebody asks for a share of the requests to be scored with another version as well; an empty version ends it."""

    ticket: int
    version: str
    share: float


@dataclass(frozen=True)
class Identified:
    """A folder's manifest was read; see `Entry` for its memory."""

    path: str
    version: str
    num_bytes: int = 0
    whole: str = ""
    whole_bytes: int = 0

    @property
    def entry(self) -> Entry:
        """The release that it is."""
        return Entry(self.version, self.path, self.num_bytes, self.whole, self.whole_bytes)


@dataclass(frozen=True)
class Opened:
    """A release was checked and mapped; it is not served yet."""

    path: str
    version: str


@dataclass(frozen=True)
class Refused:
    """A release could not be identified or opened."""

    path: str
    fault: Fault


@dataclass(frozen=True)
class Checked:
    """What had to be checked before a version may be chosen or shadowed: a fault, or None."""

    fault: Fault | None = None


@dataclass(frozen=True)
class Drained:
    """A version that takes no new readers has lost its last one, or still has some when the time is over."""

    num_readers: int = 0


@dataclass(frozen=True)
class Written:
    """The document is on disk; or it is not, and the disk has what it had."""

    fault: Fault | None = None


@dataclass(frozen=True)
class Damaged:
    """Files of a held version were changed: it is no longer served."""

    version: str


Event: TypeAlias = (
    Started
    | LoadAsked
    | ChooseAsked
    | RetireAsked
    | ShadowAsked
    | Identified
    | Opened
    | Refused
    | Checked
    | Drained
    | Written
    | Damaged
)


# --- actions ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identify:
    """Read a folder's manifest: `Identified` or `Refused`."""

    path: str


@dataclass(frozen=True)
class Open:
    """Check and map a release: `Opened` or `Refused`."""

    path: str
    version: str


@dataclass(frozen=True)
class Check:
    """See whether a version may be chosen: `Checked`."""

    version: str


@dataclass(frozen=True)
class Drain:
    """Take no new readers of a version, and wait for those that it has: `Drained`."""

    version: str
    timeout_s: float


@dataclass(frozen=True)
class Write:
    """Put the document on disk, whole or not at all: `Written`."""

    document: Document


@dataclass(frozen=True)
class Hold:
    """Serve what was opened, in place of what was held under that version."""

    version: str
    path: str


@dataclass(frozen=True)
class Drop:
    """Forget what was opened and is not to be served."""

    path: str


@dataclass(frozen=True)
class Choose:
    """Make a held version the current one; an empty one: none is."""

    version: str


@dataclass(frozen=True)
class Reopen:
    """Take new readers of a drained version again."""

    version: str


@dataclass(frozen=True)
class Forget:
    """Let go of a drained version."""

    version: str


@dataclass(frozen=True)
class SetShadow:
    """Score a share of the requests with another version as well."""

    version: str
    share: float


@dataclass(frozen=True)
class Tell:
    """Tell who asked that it is done, or why it is not."""

    ticket: int
    version: str
    fault: Fault | None = None


@dataclass(frozen=True)
class Warn:
    """Say something in the log."""

    text: str


@dataclass(frozen=True)
class Fail:
    """The process cannot start."""

    fault: Fault


Action: TypeAlias = (
    Identify | Open | Check | Drain | Write | Hold | Drop | Choose | Reopen | Forget | SetShadow | Tell | Warn | Fail
)
