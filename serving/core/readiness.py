"""Whether a ranker can answer: pure steps, without sockets, clocks and threads.

A ranker is ready when the lookup servers hold its current version, and take as many ids as its requests may have. Other
versions that it holds may be missing there: a rollout loads rankers first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, TypeAlias

if TYPE_CHECKING:
    from multifacet.serving.protocol import lookup_pb2

MISSES = 3
"""Descriptions in a row that must fail before a ranker that was ready says that it is not."""


@dataclass(frozen=True)
class LookupVersion:
    """A version that the lookup servers hold.

    Attributes:
        version: The version.
        num_shards: Of how many shards they hold one only; 1 if they hold all of it.
        shard_index: Which one.
    """

    version: str
    num_shards: int = 1
    shard_index: int = 0


@dataclass(frozen=True)
class Need:
    """What the ranker's requests for a version may ask of the lookup servers.

    Attributes:
        version: The version.
        most_ids: Most ids of one request.
    """

    version: str
    most_ids: int


# --- events -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holds:
    """What the ranker holds now.

    Attributes:
        current: Its current version; empty if none.
        fault: Why requests should not come, whatever the lookup servers say; empty if they should.
        remembers: Whether its state file, or somebody, said that this is the current version.
        needs: For each version what it needs.
    """

    current: str
    fault: str = ""
    remembers: bool = True
    needs: tuple[Need, ...] = ()


@dataclass(frozen=True)
class Described:
    """What the lookup servers say that they hold.

    Attributes:
        versions: The versions that every server that can be reached holds.
        current: The version that they all call the current one; empty if they do not agree.
        max_ids: Most ids that one request may have.
        partly: Further versions that some servers of each shard hold: enough for requests, not enough to choose one.
    """

    versions: tuple[LookupVersion, ...]
    current: str = ""
    max_ids: int = 0
    partly: tuple[str, ...] = ()

    @classmethod
    def of(cls, description: lookup_pb2.LookupDescription) -> Self:
        """Read what lookup servers answered; a version without a number of shards is whole."""
        return cls(
            tuple(LookupVersion(entry.version, max(1, entry.num_shards), entry.shard_index) for entry in description.versions),
            description.current_version,
            description.max_ids_per_request,
            tuple(description.partly_held),
        )


@dataclass(frozen=True)
class Unreachable:
    """No lookup server could be reached."""

    reason: str


@dataclass(frozen=True)
class Draining:
    """The process was told to end."""


Event: TypeAlias = Holds | Described | Unreachable | Draining


@dataclass(frozen=True)
class Say:
    """What the health service and the log say from now on."""

    ready: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """Everything that a ranker's readiness depends on.

    Attributes:
        lookup: The server's name for messages.
        answers_without: Whether requests are answered without rows when no lookup server can be reached.
        said: What was said last.
    """

    lookup: str = "lookup server"
    answers_without: bool = False
    holds: Holds = Holds("", "it is starting")
    described: Described | None = None
    unreachable: str = ""
    misses: int = 0
    draining: bool = False
    said: Say = Say(ready=False, reason="it is starting")


Step: TypeAlias = tuple[Readiness, tuple[Say, ...]]


def step(state: Readiness, event: Event) -> Step:
    """What an event leads to."""
    match event:
        case Holds():
            state = replace(state, holds=event)
        case Described():
            state = replace(state, described=event, misses=0, unreachable="")
        case Unreachable():
            state = replace(state, misses=state.misses + 1, unreachable=event.reason)
        case Draining():
            state = replace(state, draining=True)
    reason = fault(state)
    said = Say(ready=not reason, reason=reason)
    if said == state.said:
        return state, ()
    return replace(state, said=said), (said,)


def fault(state: Readiness) -> str:
    """Why the ranker cannot answer; empty if it can."""
    if state.draining:
        return "it is told to end"
    if state.holds.fault:
        return state.holds.fault
    if state.described is None and not state.misses:
        return "it is starting"
    if state.described is None or (state.misses and not _forgives(state)):
        return f"{state.lookup} cannot be reached: {state.unreachable}"
    need = next((need for need in state.holds.needs if need.version == state.holds.current), None)
    lacking = check(state.described, state.holds.current, state.lookup, need)
    if lacking and state.holds.current not in state.described.partly:
        return lacking
    fleet = state.described.current
    if fleet and fleet != state.holds.current and not state.holds.remembers:
        return (
            f"it remembers nothing and would serve version {state.holds.current[:12]}, but the current version of "
            f"{state.lookup} is {fleet[:12]}: advance the rollout, or choose a version"
        )
    return ""


def check(described: Described, version: str, lookup: str, need: Need | None = None) -> str:
    """Why a version cannot be scored with the rows of these lookup servers; empty if it can."""
    found = next((entry for entry in described.versions if entry.version == version), None)
    if found is None:
        listed = ", ".join(entry.version for entry in described.versions) or "none"
        return f"version {version} is not loaded by {lookup}: it has not loaded {version}; loaded: {listed}"
    if found.num_shards > 1:
        return (
            f"{lookup} holds shard {found.shard_index} of {found.num_shards} of version {version}: list all of its shards, "
            "with a | between their addresses"
        )
    if need is not None and need.most_ids > described.max_ids:
        return (
            f"max_candidates needs lookups of up to {need.most_ids} ids for version {version}, {lookup} accepts "
            f"{described.max_ids}: lower max_candidates, or raise its max_ids_per_request"
        )
    return ""


def _forgives(state: Readiness) -> bool:
    """Whether a ranker that was ready stays so though nobody could be reached just now."""
    return state.said.ready and (state.answers_without or state.misses < MISSES)
