"""What a server's holdings are at one moment: the state of `serving.core.holdings`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from multifacet.serving.core.faults import Fault
from multifacet.serving.core.holdings_events import Action, Document, Entry, Started

Stage = Literal["new", "starting", "falling back", "running", "failed"]
Phase = Literal["", "check", "drain", "write"]

_NO_ENTRY, _NO_DOCUMENT, _NOT_STARTED = Entry("", ""), Document(), Started(None, ())

# --- state ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opening:
    """A release that is being opened, and who waits for it."""

    entry: Entry
    tickets: tuple[int, ...]
    current: bool = False


@dataclass(frozen=True)
class Change:
    """One change that takes its turn.

    Attributes:
        kind: ``start`` writes down what a start found.
        tickets: Who waits for it.
        entry: What it is about.
        value: Of a shadow its share, of a retirement how long to wait for readers in seconds.
        current: Of a load, whether its version becomes the current one.
    """

    kind: Literal["start", "load", "choose", "retire", "shadow"]
    tickets: tuple[int, ...] = ()
    entry: Entry = _NO_ENTRY
    value: float = 0.0
    current: bool = False


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """Everything that a server's decisions depend on.

    Attributes:
        held: What is served, the oldest first.
        current: What a request without a version gets; empty if none.
        told: Whether it may be served: somebody said that it is the current one, or nobody has to.
        known: Whether somebody, or the state file, said so.
        remembered: What is on disk.
        unwritten: Whether it could not be written at the start, so that the next change must write it.
        damaged: Held versions whose files were changed.
        faults: Why releases that are remembered are not held.
        shadow: Version and share of shadow traffic.
    """

    stage: Stage = "new"
    held: tuple[Entry, ...] = ()
    current: str = ""
    told: bool = False
    known: bool = False
    remembered: Document = _NO_DOCUMENT
    unwritten: bool = False
    damaged: frozenset[str] = frozenset()
    faults: tuple[str, ...] = ()
    shadow: tuple[str, float] = ("", 0.0)
    started: Started = _NOT_STARTED
    to_open: tuple[Entry, ...] = ()
    openings: tuple[Opening, ...] = ()
    changes: tuple[Change, ...] = ()
    phase: Phase = ""

    def entry(self, version: str) -> Entry | None:
        """What is held under a version."""
        return next((entry for entry in self.held if entry.version == version), None)

    @property
    def fault(self) -> str:
        """Why requests should not come; empty if they should."""
        if self.stage != "running":
            return "it is starting"
        if not self.current:
            known = f"it remembers {self.remembered.current[:12] or 'none'}, which it could not open" if self.faults else "none"
            return f"no version is current ({known}): load and choose one"
        if self.damaged:
            return f"files of version {', '.join(sorted(self.damaged))} were changed while they were served"
        if not self.told:
            return f"it remembers nothing, and nobody said yet that {self.current[:12]} is the current version"
        return ""


Step: TypeAlias = tuple[Holdings, tuple[Action, ...]]


def memory_of(entries: list[Entry]) -> int:
    """Bytes of some releases together: what several lie over is there once."""
    wholes = {entry.whole: entry.whole_bytes for entry in entries if entry.whole}
    shared = sum(num_bytes for version, num_bytes in wholes.items() if all(entry.version != version for entry in entries))
    return sum(entry.num_bytes for entry in entries) + shared


def opening_at(state: Holdings, path: str) -> Opening:
    """Give the opening of a release at a path, which is under way."""
    return next(opening for opening in state.openings if opening.entry.path == path)


def without(openings: tuple[Opening, ...], gone: Opening) -> tuple[Opening, ...]:
    """Give the openings but for one."""
    return tuple(opening for opening in openings if opening != gone)


def swap(openings: tuple[Opening, ...], before: Opening, after: Opening) -> tuple[Opening, ...]:
    """Give the openings with another one in the place of one."""
    return tuple(after if opening == before else opening for opening in openings)


def known(state: Holdings, version: str) -> Entry:
    """Give what is held under a version.

    Raises:
        KeyError: Nothing is.
    """
    entry = state.entry(version)
    if entry is None:
        raise KeyError(version)
    return entry


def not_loaded(state: Holdings, version: str) -> Fault:
    """Say that a version is not held, and which are."""
    listed = ", ".join(entry.version for entry in state.held) or "none"
    return Fault("not_loaded", f"version {version} is not loaded by this server; loaded: {listed}")


def beyond_budget(state: Holdings, entry: Entry) -> Fault | None:
    """Say that a release does not fit into the memory that there is; None if it does."""
    budget = state.started.budget_bytes
    on_their_way = [opening.entry for opening in state.openings if opening.entry.version]
    on_their_way += [change.entry for change in state.changes if change.kind == "load"]
    others = [held for held in (*state.held, *on_their_way) if held.version != entry.version]
    held_bytes = memory_of(others)
    more = memory_of([*others, entry]) - held_bytes
    if budget is None or held_bytes + more <= budget:
        return None
    return Fault(
        "overloaded",
        f"{entry.path} has {more} bytes of rows and ids, {held_bytes} are held already by {len(others)} versions, "
        f"and memory_budget_bytes is {budget}: retire a version first, or raise it",
    )
