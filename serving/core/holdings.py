"""Which releases a server holds, remembers and calls its current one: pure steps, without files, clocks and threads.

A server *remembers* what it was told to hold (its state file), and *holds* what it has opened. What is asked for is remembered
before it is done, so that a server that is killed, or whose disk is full, is never told one thing and found with another.
Changes take turns; a release is opened beside them, since that may take minutes:

    load    identify -> open -> write -> hold
    choose  check -> write -> current
    retire  drain -> write -> forget
    shadow  check -> shadow
"""

from __future__ import annotations

from dataclasses import replace

from multifacet.serving.core.faults import Fault
from multifacet.serving.core.held import (
    Change,
    Holdings,
    Opening,
    Step,
    beyond_budget,
    known,
    not_loaded,
    opening_at,
    swap,
    without,
)
from multifacet.serving.core.holdings_events import (
    Action,
    Check,
    Checked,
    Choose,
    ChooseAsked,
    Damaged,
    Document,
    Drain,
    Drained,
    Drop,
    Entry,
    Event,
    Fail,
    Forget,
    Hold,
    Identified,
    Identify,
    LoadAsked,
    Open,
    Opened,
    Refused,
    Reopen,
    RetireAsked,
    SetShadow,
    ShadowAsked,
    Started,
    Tell,
    Warn,
    Write,
    Written,
)


def step(state: Holdings, event: Event) -> Step:
    """What an event leads to."""
    match event:
        case Started():
            return _start(state, event)
        case LoadAsked():
            return _ask_load(state, event)
        case ChooseAsked():
            return _queue(state, Change("choose", (event.ticket,), Entry(event.version, "")))
        case RetireAsked():
            return _queue(state, Change("retire", (event.ticket,), Entry(event.version, ""), event.timeout_s))
        case ShadowAsked():
            return _queue(state, Change("shadow", (event.ticket,), Entry(event.version, ""), event.share))
        case Identified():
            return _start_identified(state, event) if state.stage != "running" else _identified(state, event)
        case Opened():
            return _start_opened(state, event) if state.stage != "running" else _opened(state, event)
        case Refused():
            return _start_refused(state, event) if state.stage != "running" else _refused(state, event)
        case Checked():
            return _checked(state, event)
        case Drained():
            return _drained(state, event)
        case Written():
            return _written(state, event)
        case Damaged():
            known = state.entry(event.version) is not None
            return replace(state, damaged=state.damaged | {event.version} if known else state.damaged), ()


# --- starting ---------------------------------------------------------------------------------------------------------------


def _start(state: Holdings, event: Started) -> Step:
    document = event.document
    if document is None:
        entries = tuple(Entry("", path) for path in event.configured)
        told, known = not event.waits, not event.keeps_state
    else:
        entries, told, known = document.releases, True, True
    return _next_to_open(
        replace(
            state,
            stage="starting",
            started=event,
            told=told,
            known=known,
            to_open=entries,
            remembered=document or Document(),
            current="",
        )
    )


def _next_to_open(state: Holdings) -> Step:
    if state.to_open:
        return state, (Identify(state.to_open[0].path),)
    document = state.started.document
    missing = document is not None and state.entry(document.current) is None
    if missing and state.stage == "starting":  # it may lie where the configuration says
        entries = tuple(Entry("", path) for path in state.started.configured)
        return _next_to_open(replace(state, stage="falling back", to_open=entries))
    return _finish_start(state)


def _skip(state: Holdings, fault: Fault) -> Step:
    if state.started.document is None:
        return replace(state, stage="failed"), (Fail(fault),)
    first = state.to_open[0]
    state, actions = _next_to_open(replace(state, to_open=state.to_open[1:], faults=(*state.faults, fault.text)))
    return state, (Warn(f"what is remembered cannot be served: {first.path}: {fault.text}"), *actions)


def _start_identified(state: Holdings, event: Identified) -> Step:
    first = state.to_open[0]
    if first.version and event.version != first.version:
        return _skip(state, Fault("artifact", f"{event.path} holds version {event.version}, not {first.version}"))
    if state.entry(event.version) is not None:
        held = (*(entry for entry in state.held if entry.version != event.version), known(state, event.version))
        if state.started.document is None:  # given twice: the last one counts
            return _next_to_open(replace(state, held=held, to_open=state.to_open[1:]))
        return _next_to_open(replace(state, to_open=state.to_open[1:]))
    fault = beyond_budget(state, event.entry)
    if fault is not None:
        return _skip(state, fault)
    return replace(state, to_open=(event.entry, *state.to_open[1:])), (Open(event.path, event.version),)


def _start_opened(state: Holdings, event: Opened) -> Step:
    first = state.to_open[0]
    if event.version != first.version:
        state, actions = _skip(state, _replaced(event, first))
        return state, (Drop(event.path), *actions)
    state, actions = _next_to_open(replace(state, held=(*state.held, first), to_open=state.to_open[1:]))
    return state, (Hold(event.version, event.path), *actions)


def _start_refused(state: Holdings, event: Refused) -> Step:
    return _skip(state, event.fault)


def _finish_start(state: Holdings) -> Step:
    document = state.started.document
    if not state.held and not (document is not None and state.started.administered):
        text = "; ".join(state.faults) or "there is no release to serve"
        return replace(state, stage="failed"), (Fail(Fault("artifact", text)),)
    if document is None:
        current = state.held[-1].version
        wanted = Document(state.held, current)
    else:
        # What is remembered and could not be opened stays remembered: only who asked for it may take it back.
        current = document.current if state.entry(document.current) is not None else ""
        wanted = Document(tuple(state.entry(entry.version) or entry for entry in document.releases), document.current)
    state = replace(state, stage="running", current=current)
    if wanted == state.remembered or not state.started.keeps_state:
        return replace(state, remembered=wanted), (Choose(current),)
    state, actions = _queue(replace(state, remembered=wanted), Change("start"))
    return state, (Choose(current), *actions)


# --- loading ----------------------------------------------------------------------------------------------------------------


def _ask_load(state: Holdings, event: LoadAsked) -> Step:
    for opening in state.openings:
        if opening.entry.path == event.path:  # whoever asks twice waits for the first
            joined = replace(opening, tickets=(*opening.tickets, event.ticket), current=opening.current or event.current)
            return replace(state, openings=swap(state.openings, opening, joined)), ()
    for change in state.changes:
        if change.kind == "load" and change.entry.path == event.path:  # it is open, and waits for its turn
            return _join_change(state, change, (event.ticket,), current=event.current), ()
    opening = Opening(Entry("", event.path), (event.ticket,), event.current)
    return replace(state, openings=(*state.openings, opening)), (Identify(event.path),)


def _identified(state: Holdings, event: Identified) -> Step:
    opening = opening_at(state, event.path)
    if state.entry(event.version) is not None and event.version not in state.damaged:
        state = replace(state, openings=without(state.openings, opening))
        if opening.current and event.version != state.current:
            return _queue(state, Change("choose", opening.tickets, Entry(event.version, "")))
        return state, tuple(Tell(ticket, event.version) for ticket in opening.tickets)
    for change in state.changes:
        if change.kind == "load" and change.entry.version == event.version:
            state = replace(state, openings=without(state.openings, opening))
            return _join_change(state, change, opening.tickets, current=opening.current), ()
    for other in state.openings:
        if other != opening and other.entry.version == event.version:
            joined = replace(other, tickets=other.tickets + opening.tickets, current=other.current or opening.current)
            openings = without(swap(state.openings, other, joined), opening)
            return replace(state, openings=openings), ()
    entry = event.entry
    fault = beyond_budget(state, entry)
    if fault is not None:
        return _refused(state, Refused(event.path, fault))
    openings = swap(state.openings, opening, replace(opening, entry=entry))
    return replace(state, openings=openings), (Open(event.path, event.version),)


def _opened(state: Holdings, event: Opened) -> Step:
    opening = opening_at(state, event.path)
    if event.version != opening.entry.version:
        state, actions = _refused(state, Refused(event.path, _replaced(event, opening.entry)))
        return state, (Drop(event.path), *actions)
    state = replace(state, openings=without(state.openings, opening))
    return _queue(state, Change("load", opening.tickets, opening.entry, current=opening.current))


def _refused(state: Holdings, event: Refused) -> Step:
    opening = opening_at(state, event.path)
    told = tuple(Tell(ticket, "", event.fault) for ticket in opening.tickets)
    return replace(state, openings=without(state.openings, opening)), told


def _replaced(event: Opened, entry: Entry) -> Fault:
    """Another release was put into the folder after its manifest was read: its rows are not those of that version."""
    text = f"{event.path} held version {entry.version}, and {event.version} took its place while it was opened: load it again"
    return Fault("artifact", text)


def _join_change(state: Holdings, change: Change, tickets: tuple[int, ...], *, current: bool) -> Holdings:
    joined = replace(change, tickets=change.tickets + tickets, current=change.current or current)
    return replace(state, changes=tuple(joined if other == change else other for other in state.changes))


# --- changes, one at a time -------------------------------------------------------------------------------------------------


def _queue(state: Holdings, change: Change) -> Step:
    state = replace(state, changes=(*state.changes, change))
    return _begin(state) if len(state.changes) == 1 else (state, ())


def _begin(state: Holdings) -> Step:
    """Begin with the first change in the queue, if there is one."""
    if not state.changes:
        return state, ()
    change = state.changes[0]
    version = change.entry.version
    match change.kind:
        case "start" | "load":
            return _write(state)
        case "choose":
            if state.entry(version) is None:
                return _end(state, not_loaded(state, version))
            if version in state.damaged:
                text = f"files of version {version} were changed while it was served: load an intact copy first"
                return _end(state, Fault("not_loaded", text))
            if version == state.current and state.told and state.known:
                return _end(state)
            return replace(state, phase="check"), (Check(version),)
        case "shadow":
            if not version:
                return _end(replace(state, shadow=("", 0.0)), None, SetShadow("", 0.0))
            if not 0 <= change.value <= 1:
                text = f"the share of shadow traffic is {change.value}: expected 0 to 1"
                return _end(state, Fault("invalid", text))
            if state.entry(version) is None:
                return _end(state, not_loaded(state, version))
            return replace(state, phase="check"), (Check(version),)
        case "retire":
            return _begin_retiring(state, change)


def _begin_retiring(state: Holdings, change: Change) -> Step:
    version = change.entry.version
    if version and version in {state.current, state.remembered.current}:
        listed = ", ".join(entry.version for entry in state.held)
        text = (
            f"version {version} is the current one of this server: load or choose another version before retiring it "
            f"(loaded: {listed})"
        )
        return _end(state, Fault("invalid", text))
    if state.entry(version) is None:  # retired already, or remembered and never opened
        return _write(state)
    ends = version == state.shadow[0]
    actions = (SetShadow("", 0.0),) if ends else ()
    state = replace(state, shadow=("", 0.0) if ends else state.shadow, phase="drain")
    return state, (*actions, Drain(version, change.value))


def _checked(state: Holdings, event: Checked) -> Step:
    change = state.changes[0]
    if event.fault is not None:
        return _end(state, event.fault)
    if change.kind == "shadow":
        shadow = (change.entry.version, change.value)
        return _end(replace(state, shadow=shadow), None, SetShadow(*shadow))
    return _write(state)


def _drained(state: Holdings, event: Drained) -> Step:
    change = state.changes[0]
    if not event.num_readers:
        return _write(state)
    text = f"version {change.entry.version} still has {event.num_readers} readers after {change.value:g} s: it stays loaded"
    return _end(state, Fault("overloaded", text), Reopen(change.entry.version))


def _write(state: Holdings) -> Step:
    document = _wanted(state)
    is_there = document == state.remembered and not state.unwritten and state.changes[0].kind != "start"
    if is_there or not state.started.keeps_state:
        return _done(state, document)
    return replace(state, phase="write"), (Write(document),)


def _wanted(state: Holdings) -> Document:
    """What is to be remembered once the first change is done."""
    change, before = state.changes[0], state.remembered
    entry = change.entry
    match change.kind:
        case "load":
            is_known = any(other.version == entry.version for other in before.releases)
            releases = tuple(entry if other.version == entry.version else other for other in before.releases)
            current = entry.version if change.current or not before.current else before.current
            return Document(releases if is_known else (*releases, entry), current)
        case "choose":
            is_known = any(other.version == entry.version for other in before.releases)
            return Document(before.releases if is_known else (*before.releases, known(state, entry.version)), entry.version)
        case "retire":
            return replace(before, releases=tuple(other for other in before.releases if other.version != entry.version))
    return before


def _written(state: Holdings, event: Written) -> Step:
    change = state.changes[0]
    document = _wanted(state)
    if event.fault is None:
        return _done(replace(state, unwritten=False), document)
    match change.kind:
        case "start":
            state = replace(state, unwritten=True)
            return _end(state, None, Warn(f"the state file could not be written at the start: {event.fault.text}"))
        case "load":
            return _end(state, event.fault, Drop(change.entry.path))
        case "retire" if state.entry(change.entry.version) is not None:
            return _end(state, event.fault, Reopen(change.entry.version))
    return _end(state, event.fault)


def _done(state: Holdings, document: Document) -> Step:
    change = state.changes[0]
    version = change.entry.version
    state = replace(state, remembered=document)
    match change.kind:
        case "load":
            held = tuple(entry for entry in state.held if entry.version != version)
            place = next((place for place, entry in enumerate(state.held) if entry.version == version), len(held))
            state = replace(state, held=(*held[:place], change.entry, *held[place:]), damaged=state.damaged - {version})
            actions: tuple[Action, ...] = (Hold(version, change.entry.path),)
            if document.current == version:
                state, actions = replace(state, current=version), (*actions, Choose(version))
                state = replace(state, told=state.told or change.current, known=state.known or change.current)
            return _end(state, None, *actions)
        case "choose":
            return _end(replace(state, current=version, told=True, known=True), None, Choose(version))
        case "retire" if state.entry(version) is not None:
            held = tuple(entry for entry in state.held if entry.version != version)
            return _end(replace(state, held=held, damaged=state.damaged - {version}), None, Forget(version))
    return _end(state)


def _end(state: Holdings, fault: Fault | None = None, *actions: Action) -> Step:
    """The first change is over: tell who waits, and begin with the next."""
    change = state.changes[0]
    told = tuple(Tell(ticket, change.entry.version, fault) for ticket in change.tickets)
    state, next_actions = _begin(replace(state, changes=state.changes[1:], phase=""))
    return state, (*actions, *told, *next_actions)
