"""The steps of a rollout: pure, without sockets, files and clocks.

A step is a list of goals, each of them about one server: it holds a version, it serves a version, it lacks a version. The
controller asks a server what it holds, mends the first goal that is not reached, and goes on. So a step that was
interrupted anywhere is done by doing it again, and a server that forgot something meanwhile is given it again.

Only `Ask` takes long, and `Sleep`. Whoever drives the steps may put `Interrupted` in place of the answer to either.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from multifacet.serving.core.controlling import Controller, Step, next_ask, outcomes, undone
from multifacet.serving.core.document import FORWARD, State
from multifacet.serving.core.document import Step as StepName
from multifacet.serving.core.judging import judge_outcomes
from multifacet.serving.core.limits import describe_shadow, exceeds, judge_shadow
from multifacet.serving.core.rollout_events import (
    Answered,
    Answers,
    Ask,
    Began,
    Compare,
    Count,
    End,
    Event,
    Failed,
    Goal,
    Holds,
    Interrupted,
    Judge,
    Lacks,
    Note,
    Noted,
    Phase,
    Reach,
    Remark,
    Serves,
    SetShadow,
    Shadows,
    Sleep,
    Status,
    Watch,
    Woke,
)

POLL_S = 0.05


def step(state: Controller, event: Event) -> Step:
    """What an event leads to."""
    if state.over is not None:
        return state, ()
    match event:
        case Began():
            return _begin(state, event.now)
        case Noted():
            return _noted(state, event)
        case Answered():
            return _answered(state, event)
        case Failed():
            return _failed(state, event)
        case Woke():
            reports = tuple((address, report) for address, report in state.reports if address not in state.document.rankers)
            return _go_on(replace(state, reports=reports), event.now)  # rankers are asked anew
        case Interrupted():
            return _end(state, "interrupted", f"{state.command} stops: {event.reason}")


def _end(state: Controller, kind: Literal["done", "refused", "rolled back", "failed", "interrupted"], text: str = "") -> Step:
    end = End(kind, text)
    return replace(state, over=end, asked=None), (end,)


# --- what a command does ----------------------------------------------------------------------------------------------------


def _begin(state: Controller, now: float) -> Step:
    document = state.document
    match state.command:
        case "start":
            before = state.previous
            if before is not None and not before.is_over:
                if (before.new_version, before.rankers, before.lookups) == (
                    document.new_version,
                    document.rankers,
                    document.lookups,
                ):
                    return _end(replace(state, document=before), "done")
                return _end(
                    state,
                    "refused",
                    f"rollout {before.number} to version {before.new_version} is at {before.doing or before.done}: advance it, "
                    "roll it back, or abandon it, before another starts",
                )
            asked = tuple(Answers(address) for address in (*document.rankers, *document.lookups))
            return _go_on(replace(state, phases=(Reach(asked), Judge())), now)
        case "adopt":
            before = state.previous
            if before is not None and not before.is_over:
                return _end(state, "refused", f"rollout {before.number} is at {before.doing or before.done}: abandon it first")
            return _go_on(replace(state, phases=(Reach(_final(document)),)), now)
        case "abandon":
            asked = tuple(Answers(address) for address in (*document.lookups, *document.rankers))
            phases = (Reach(asked, strict=False), Judge())
            return _note(replace(state, phases=phases, document=_doing(document, "abandoned")), "begins")
        case "rollback":
            if document.doing is None and document.done == "rolled_back":
                return _end(state, "done")
            return _roll_back(state)
        case "advance":
            if document.doing in {"rolled_back", "abandoned"}:
                return _roll_back(state) if document.doing == "rolled_back" else _begin(replace(state, command="abandon"), now)
            if document.is_over:  # a server that was replaced is given what the others have
                return _go_on(replace(state, phases=(Reach(_final(document)),)), now)
            name = FORWARD[FORWARD.index(document.done) + 1]
            state = replace(state, document=_doing(document, name), phases=_forward(name, document))
            return _note(state, "begins")


def _doing(document: State, name: StepName | None) -> State:
    return document.model_copy(update={"doing": name})


def _roll_back(state: Controller) -> Step:
    document = _doing(state.document, "rolled_back")
    old, new = document.old_version, document.new_version
    goals: list[Goal] = [Holds(address, old) for address in (*document.lookups, *document.rankers)]
    goals += [Serves(address, old) for address in document.lookups]
    for address in document.rankers:
        goals += [Shadows(address, ""), Serves(address, old)]
    if new != old:  # of servers that adopted a release there is no other one
        goals += [Lacks(address, new) for address in (*document.rankers, *document.lookups)]
    return _note(replace(state, document=document, phases=(Reach(tuple(goals)),), place=0, until=None), "begins")


def _forward(name: StepName, document: State) -> tuple[Phase, ...]:
    rankers, lookups = document.rankers, document.lookups
    new = document.new_version
    lookups_hold = tuple(Holds(address, new) for address in lookups)
    rankers_hold = tuple(Holds(address, new) for address in rankers)
    match name:
        case "ranker_loaded":
            return (Reach(rankers_hold),)
        case "lookup_loaded":
            return (Reach(lookups_hold),)
        case "shadowed":
            share = document.limits.shadow_share
            if not share:
                return ()
            shadows = tuple(Shadows(address, new, share) for address in rankers)
            off = tuple(Shadows(address, "") for address in rankers)
            return (Reach((*lookups_hold, *rankers_hold, *shadows)), Compare(), Reach(off))
        case "switched":
            # Lookup servers first: a ranker that starts and remembers nothing asks them which version is the current one.
            chosen = tuple(Serves(address, new) for address in lookups)
            switched = tuple(Serves(address, new) for address in rankers)
            return (Reach((*lookups_hold, *rankers_hold, *chosen)), Count(), Reach(switched), Watch())
        case _:
            return (Reach(_final(document.model_copy(update={"done": "retired"}))),)


def _final(document: State) -> tuple[Goal, ...]:
    """What holds once the rollout is over, for a server that was replaced meanwhile as well."""
    kept = document.final_version
    rankers = [address for address in document.rankers if address not in document.left_out]
    lookups = [address for address in document.lookups if address not in document.left_out]
    goals: list[Goal] = [Holds(address, kept) for address in (*lookups, *rankers)]
    goals += [Serves(address, kept) for address in (*lookups, *rankers)]
    # Rankers first: once none of them holds the other version, no lookup for it can come.
    gone = [version for version in (document.old_version, document.new_version) if version != kept]
    goals += [Lacks(address, version) for version in gone for address in (*rankers, *lookups)]
    return tuple(goals)


# --- going on ---------------------------------------------------------------------------------------------------------------


def _go_on(state: Controller, now: float) -> Step:
    while state.place < len(state.phases):
        phase = state.phases[state.place]
        match phase:
            case Reach():
                ask = next_ask(state, phase)
                if ask is not None:
                    return replace(state, asked=ask), (ask,)
            case Count():
                state = replace(state, before=tuple(outcomes(state, address) for address in state.document.rankers))
            case Compare() | Watch():
                ask = next_ask(state, Reach(tuple(Answers(address) for address in state.document.rankers)))
                if ask is not None:
                    return replace(state, asked=ask), (ask,)
                waited = _compare(state, now) if isinstance(phase, Compare) else _watch(state, now)
                if waited is not None:
                    return waited
            case Judge():
                return _judge_start(state) if state.command == "start" else _settle(state, now)
        state = replace(state, place=state.place + 1, until=None)
    if state.fault and state.document.doing != "rolled_back":
        return _roll_back(replace(state, document=state.document.model_copy(update={"reason": state.fault})))
    if state.command == "adopt":
        return replace(state, noting="done"), (Note(state.document, "adopted"),)
    if state.command == "advance" and state.document.is_over:
        if state.mended:
            return _end(state, "done")
        return _end(state, "refused", f"rollout {state.document.number} is over ({state.document.done}): start another")
    return _finish(state)


def _finish(state: Controller) -> Step:
    doing = state.document.doing
    document = state.document.model_copy(update={"done": doing or state.document.done, "doing": None})
    if document.done in {"retired", "rolled_back"}:
        document = document.model_copy(update={"served": document.new_version if doing == "retired" else document.old_version})
    return _note(replace(state, document=document), "done")


def _note(state: Controller, event: Literal["begins", "done"]) -> Step:
    return replace(state, noting=event), (Note(state.document, event),)


def _noted(state: Controller, event: Noted) -> Step:
    noting, state = state.noting, replace(state, noting="")
    if event.fault:
        return _end(state, "failed", event.fault)
    if noting == "begins":
        return _go_on(state, 0.0)
    if state.fault:
        return _end(state, "rolled back", f"rolled back to version {state.document.old_version}: {state.fault}")
    return _end(state, "done")


def _answered(state: Controller, event: Answered) -> Step:
    asked = state.asked
    if asked is None:
        return state, ()
    others = tuple((address, report) for address, report in state.reports if address != asked.address)
    changed = state.mended or not isinstance(asked.call, Status)
    state = replace(state, reports=(*others, (asked.address, event.report)), asked=None, mended=changed)
    phase = state.phases[state.place]
    again = next_ask(state, phase) if isinstance(phase, Reach) else None
    if again == asked and not isinstance(asked.call, Status):  # it said that it did it, and it is not done
        return _failed(replace(state, asked=asked), Failed(event.now, undone(asked, event.report)))
    role = "ranker" if asked.address in state.document.rankers else "lookup"
    if event.report.role != role:
        other = f"{asked.address} is a {event.report.role}, and is listed as a {role}"
        return _end(state, "refused", f"{other}: give --ranker and --lookup their own addresses")
    return _go_on(state, event.now)


def _failed(state: Controller, event: Failed) -> Step:
    asked = state.asked
    if asked is None:
        return state, ()
    phase = state.phases[state.place]
    if state.command != "abandon":
        return _end(state, "failed", event.reason)
    # Whoever gives a rollout up is not stopped by one server: it is left out, or another version is settled on.
    state = replace(state, asked=None)
    if not isinstance(phase, Reach) or not phase.strict or event.away:
        state = replace(state, away=(*state.away, (asked.address, event.reason)))
    else:
        state = replace(state, impossible=(*state.impossible, state.document.served))
    if isinstance(phase, Reach) and phase.strict:
        state = replace(state, phases=(Judge(),), place=0)
    state, actions = _go_on(state, event.now)
    return state, (Remark(state.document, f"{asked.address}: {event.reason}"), *actions)


# --- judging ----------------------------------------------------------------------------------------------------------------


def _compare(state: Controller, now: float) -> Step | None:
    """Go on waiting for enough comparisons; None once there are, with `fault` of the state set if they are bad."""
    document, limits = state.document, state.document.limits
    if state.until is None:
        state = replace(state, until=now + limits.shadow_timeout_s)
    for address in document.rankers:
        report = state.report(address)
        if report is not None and report.shadow.version != document.new_version:  # it was started again, and forgot
            ask = Ask(address, SetShadow(document.new_version, limits.shadow_share))
            return replace(state, asked=ask), (ask,)
    shadows = [(address, report.shadow) for address in document.rankers if (report := state.report(address)) is not None]
    enough = all(shadow.compared >= limits.min_compared for _, shadow in shadows)
    hopeless = any(exceeds(shadow.failed, shadow.failed + shadow.requests, limits.max_failure_rate) for _, shadow in shadows)
    if not enough and not hopeless and now < (state.until or 0.0):
        return state, (Sleep(POLL_S),)
    faults = [f"{address}: {fault}" for address, shadow in shadows if (fault := judge_shadow(shadow, limits))]
    remarks = tuple(Remark(document, f"shadow at {address}: {describe_shadow(shadow)}") for address, shadow in shadows)
    state, actions = _go_on(replace(state, place=state.place + 1, until=None, fault="; ".join(faults)), now)
    return state, (*remarks, *actions)


def _watch(state: Controller, now: float) -> Step | None:
    """Go on watching; None once the time is over without a fault."""
    limits = state.document.limits
    if state.until is None:
        state = replace(state, until=now + limits.watch_s)
    for address, before, old in state.before:
        _, after, _ = outcomes(state, address)
        if fault := judge_outcomes(before, after, old, limits):
            fault = f"{address}: {fault}"
            return _roll_back(replace(state, fault=fault, document=state.document.model_copy(update={"reason": fault})))
    if now < (state.until or 0.0):
        return state, (Sleep(POLL_S),)
    return None


def _judge_start(state: Controller) -> Step:
    """Write a plan down, or say why it cannot be done."""
    document = state.document
    rankers = {address: report for address in document.rankers if (report := state.report(address)) is not None}
    lookups = {address: report for address in document.lookups if (report := state.report(address)) is not None}
    currents = {report.current for report in rankers.values()}
    old = state.from_version or (next(iter(currents)) if len(currents) == 1 else "")
    if not old:
        serve = {address: report.current or "none" for address, report in rankers.items()}
        return _end(
            state,
            "refused",
            f"the rankers do not serve one version: {serve}. Advance, roll back or abandon what was begun, or say from which "
            "version to start",
        )
    if old == document.new_version:
        return _end(state, "refused", f"the rankers serve version {document.new_version} already")
    paths = {
        address: held.path
        for address, report in (*lookups.items(), *rankers.items())
        if (held := report.version(old)) is not None
    }
    lacking = [address for address in lookups if address not in paths]
    if lacking and not state.from_version:
        return _end(
            state,
            "refused",
            f"the rankers serve version {old}, which lookup server {', '.join(lacking)} does not hold: are these the rankers' "
            "lookup servers? Load it there, or advance the last rollout",
        )
    if not paths:
        return _end(state, "refused", f"no server holds version {old}, from which to start")
    ranker_paths = [paths[address] for address in rankers if address in paths]
    document = document.model_copy(
        update={
            "old_version": old,
            "old_path": Path((ranker_paths or list(paths.values()))[0]),
            "old_paths": tuple((address, Path(path)) for address, path in paths.items()),
        }
    )
    return replace(state, document=document, noting="done"), (Note(document, "planned"),)


def _settle(state: Controller, now: float) -> Step:
    """Choose the version that a rollout that is given up ends with, from what the servers that answer hold."""
    document = state.document
    there = {address: report for address, report in state.reports if not state.away_because(address)}
    rankers = [address for address in document.rankers if address in there]
    lookups = [address for address in document.lookups if address in there]
    if not rankers or not lookups:
        missing = "ranker" if not rankers else "lookup server"
        reasons = "; ".join(reason for _, reason in state.away)
        return _end(state, "failed", f"no {missing} answers: {reasons}")
    candidates = dict.fromkeys((document.old_version, document.new_version))
    for report in there.values():
        candidates |= dict.fromkeys(held.version for held in report.held)

    def preference(version: str) -> tuple[int, int, int]:
        found = [there[address].version(version) for address in (*rankers, *lookups)]
        held = sum(entry is not None and not entry.damaged for entry in found)
        served = sum(there[address].current == version for address in rankers)
        whole = held == len(rankers) + len(lookups)
        return (int(whole), served if whole else held, int(version == document.old_version))

    possible = [version for version in candidates if version and version not in state.impossible]
    if not possible:
        tried = ", ".join(state.impossible)
        return _end(state, "failed", f"no version can be served by all that answer; tried: {tried}. Load one that can")
    kept = max(possible, key=preference)
    goals: list[Goal] = [Holds(address, kept) for address in (*lookups, *rankers)]
    goals += [Serves(address, kept) for address in lookups]
    for address in rankers:
        goals += [Shadows(address, ""), Serves(address, kept)]
    gone = [version for version in (document.old_version, document.new_version) if version != kept]
    leftovers = tuple(Lacks(address, version) for version in gone for address in (*rankers, *lookups))
    left_out = tuple(address for address, _ in state.away)
    reason = document.reason or "given up"
    is_third = kept not in {document.old_version, document.new_version}
    paths = [held.path for report in there.values() if is_third and (held := report.version(kept)) is not None]
    document = document.model_copy(
        update={
            "served": kept,
            "served_path": Path(paths[0]) if paths else None,
            "left_out": left_out,
            "reason": reason,
        }
    )
    phases = (Reach(tuple(goals)), Reach(leftovers, strict=False))
    return _go_on(replace(state, document=document, phases=phases, place=0), now)
