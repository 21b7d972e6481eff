"""Bugs that are planted into the cores, one at a time, to see that worlds find them: patches, no switches of the product."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from benchmarks.harness.worlds import plans
from benchmarks.harness.worlds.world import Ending, simulate
from multifacet.artifacts import artifact, files
from multifacet.serving.core import agreement, controller, held, holdings, layers
from multifacet.serving.core import holdings_events as events
from multifacet.serving.core import rollout_events as moves
from multifacet.serving.server.versions import Lease, Leases, LoadedVersions

Patch = Callable[[contextlib.ExitStack], None]


@dataclass(frozen=True)
class Bug:
    """A bug that a world should find.

    Attributes:
        name: What is wrong, in a few words.
        patch: Plants it.
        recorded: Whether it is in the order of file operations, which is recorded anew then.
    """

    name: str
    patch: Patch
    recorded: bool = False

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """Have the bug within the ``with`` block."""
        with contextlib.ExitStack() as stack:
            if self.recorded:
                plans.plan.cache_clear()
                stack.callback(plans.plan.cache_clear)
            self.patch(stack)
            yield


def find(bug: Bug, *, most: int, first: int = 0) -> Ending | None:
    """The first world that finds a bug; None if none of so many does."""
    with bug.planted():
        for seed in range(first, first + most):
            ending = simulate(seed)
            if ending.violation:
                return ending
    return None


def _setting(target: Any, name: str, value: Any) -> Patch:
    def patch(stack: contextlib.ExitStack) -> None:
        stack.enter_context(mock.patch.object(target, name, value))

    return patch


def _around(target: Any, name: str, make: Callable[[Any], Any]) -> Patch:
    def patch(stack: contextlib.ExitStack) -> None:
        stack.enter_context(mock.patch.object(target, name, make(getattr(target, name))))

    return patch


def _both(first: Patch, second: Patch) -> Patch:
    def patch(stack: contextlib.ExitStack) -> None:
        first(stack)
        second(stack)

    return patch


# --- the servers ------------------------------------------------------------------------------------------------------------


def _no_lease(_leases: Leases, _version: str) -> None:
    """Count nobody."""


def _nobody_reads(_versions: LoadedVersions[Any], _version: str) -> int:
    return 0


def _tell_before_writing(real: Any) -> Any:
    def write(state: Any) -> Any:
        change = state.changes[0]
        next_state, actions = real(state)
        if not any(isinstance(action, events.Write) for action in actions) or not change.tickets:
            return next_state, actions
        told = tuple(events.Tell(ticket, change.entry.version) for ticket in change.tickets)
        queue = (replace(change, tickets=()), *state.changes[1:])
        return replace(next_state, changes=queue, remembered=holdings._wanted(state)), (*told, *actions)

    return write


def _forget_to_write(state: Any) -> Any:
    return holdings._done(state, holdings._wanted(state))


def _opened_unchecked(state: Any, event: events.Opened) -> Any:
    opening = held.opening_at(state, event.path)
    state = replace(state, openings=held.without(state.openings, opening))
    return holdings._queue(state, held.Change("load", opening.tickets, opening.entry, current=opening.current))


def _load_becomes_current(real: Any) -> Any:
    def wanted(state: Any) -> Any:
        document = real(state)
        change = state.changes[0]
        return replace(document, current=change.entry.version) if change.kind == "load" else document

    return wanted


# --- the rollout ------------------------------------------------------------------------------------------------------------


def _skip_the_lookup_servers(real: Any) -> Any:
    def forward(name: str, document: Any) -> Any:
        if name == "lookup_loaded":
            return ()
        phases = real(name, document)
        rankers = document.rankers
        return tuple(
            moves.Reach(tuple(goal for goal in phase.goals if goal.address in rankers))
            if isinstance(phase, moves.Reach)
            else phase
            for phase in phases
        )

    return forward


def _lookup_servers_retire_first(real: Any) -> Any:
    def final(document: Any) -> Any:
        goals = real(document)
        last = [goal for goal in goals if isinstance(goal, moves.Lacks) and goal.address in document.rankers]
        return (*(goal for goal in goals if goal not in last), *last)

    return final


def _believe_old_reports(real: Any) -> Any:
    def answered(state: Any, event: moves.Answered) -> Any:
        asked = state.asked
        before = dict(getattr(state, "reports", ())).get(asked.address) if asked is not None else None
        if before is not None and isinstance(asked.call, moves.Retire | moves.Choose | moves.Load) and before.held:
            event = replace(event, report=before)
        return real(state, event)

    return answered


def _take_silence_for_done(real: Any) -> Any:
    def failed(state: Any, event: moves.Failed) -> Any:
        asked = state.asked
        report = state.report(asked.address) if asked is not None else None
        if report is None or not event.away or not isinstance(asked.call, moves.Choose | moves.Retire):
            return real(state, event)
        match asked.call:
            case moves.Choose(version):
                report = replace(report, current=version, remembers=True)
            case moves.Retire(version):
                report = replace(report, held=tuple(entry for entry in report.held if entry.version != version))
        return controller._answered(state, moves.Answered(event.now, report))

    return failed


def _roll_back_without_loading(real: Any) -> Any:
    def roll_back(state: Any) -> Any:
        state, actions = real(state)
        goals = state.phases[0].goals
        return replace(
            state, phases=(moves.Reach(tuple(goal for goal in goals if not isinstance(goal, moves.Holds))),)
        ), actions

    return roll_back


def _always_lacks(real: Any) -> Any:
    def roll_back(state: Any) -> Any:
        state, actions = real(state)
        document = state.document
        gone = tuple(moves.Lacks(address, document.new_version) for address in (*document.rankers, *document.lookups))
        goals = state.phases[0].goals
        return replace(state, phases=(moves.Reach((*(goal for goal in goals if goal not in gone), *gone)),)), actions

    return roll_back


BUGS = (
    Bug("the version of an answer is not checked", _setting(agreement, "misfit", lambda *_: "")),
    Bug("the version of a release is not looked at again once it is open", _setting(holdings, "_opened", _opened_unchecked)),
    Bug("a delta is laid over whatever is there", _setting(layers, "misplaced", lambda *_: "")),
    Bug("a lease is not counted", _both(_setting(Leases, "take", _no_lease), _setting(Leases, "give_back", _no_lease))),
    Bug("a lease is not looked at again once it is counted", _setting(Lease, "confirm", lambda _: True)),
    Bug("a version is retired without waiting for its readers", _setting(LoadedVersions, "num_readers", _nobody_reads)),
    Bug("a change is told before it is written", _around(holdings, "_write", _tell_before_writing)),
    Bug("a change is not written at all", _setting(holdings, "_write", _forget_to_write)),
    Bug("a load makes its version the current one", _around(holdings, "_wanted", _load_becomes_current)),
    Bug("a file is renamed before it is synced", _setting(files, "sync_file", lambda _: None), recorded=True),
    Bug("a folder is not synced after the rename", _setting(files, "sync_open", lambda _: None), recorded=True),
    Bug(
        "a release's files are not synced",
        _around(artifact, "hash_file", lambda real: lambda path, **_: real(path)),
        recorded=True,
    ),
    Bug("a phase is skipped: lookup servers are not loaded", _around(controller, "_forward", _skip_the_lookup_servers)),
    Bug("lookup servers retire before rankers", _around(controller, "_final", _lookup_servers_retire_first)),
    Bug("a server that does not answer is taken to have done it", _around(controller, "_failed", _take_silence_for_done)),
    Bug("a stale report is believed", _around(controller, "_answered", _believe_old_reports)),
    Bug("a rollback does not load the old version", _around(controller, "_roll_back", _roll_back_without_loading)),
    Bug("a rollback retires what it serves", _around(controller, "_roll_back", _always_lacks)),
)
