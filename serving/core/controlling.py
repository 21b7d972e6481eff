"""What a rollout's controller knows at one moment, and what it has to ask next to reach a goal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from multifacet.serving.core.document import State
from multifacet.serving.core.judging import Outcomes, outcomes_of
from multifacet.serving.core.reports import Report
from multifacet.serving.core.rollout_events import (
    Action,
    Ask,
    Call,
    Choose,
    End,
    Goal,
    Holds,
    Lacks,
    Load,
    Phase,
    Reach,
    Retire,
    Serves,
    SetShadow,
    Shadows,
    Status,
)

Command = Literal["start", "adopt", "advance", "rollback", "abandon"]

# --- state ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Controller:
    """Everything that a command's next step depends on.

    Attributes:
        document: What is written down, or will be next.
        reports: What servers said last, by address.
        away: Servers that failed while that was forgiven, and why.
        before: For each ranker how requests ended before the switch: under the new version, and under the old.
        mended: Whether anything was changed.
        impossible: Versions that could not be brought to every server that answers.
        previous: At a start, the rollout before.
        from_version: At a start, the version to start from, if the rankers do not serve one.
    """

    command: Command
    document: State
    previous: State | None = None
    from_version: str = ""
    impossible: tuple[str, ...] = ()
    phases: tuple[Phase, ...] = ()
    place: int = 0
    reports: tuple[tuple[str, Report], ...] = ()
    away: tuple[tuple[str, str], ...] = ()
    asked: Ask | None = None
    noting: Literal["", "begins", "done"] = ""
    before: tuple[tuple[str, Outcomes, Outcomes], ...] = ()
    until: float | None = None
    fault: str = ""
    mended: bool = False
    over: End | None = field(default=None)

    def report(self, address: str) -> Report | None:
        """What a server said last; None if it is to be asked."""
        return dict(self.reports).get(address)

    def away_because(self, address: str) -> str:
        """Why a server is left out; empty if it is not."""
        return dict(self.away).get(address, "")


Step: TypeAlias = tuple[Controller, tuple[Action, ...]]


def next_ask(state: Controller, phase: Reach) -> Ask | None:
    """What to ask for the first goal that is not reached; None if all are, or are given up."""
    for goal in phase.goals:
        if not phase.strict and state.away_because(goal.address):
            continue
        report = state.report(goal.address)
        if report is None:
            return Ask(goal.address, Status())
        call = _mend(goal, report, state.document)
        if call is not None:
            return Ask(goal.address, call)
    return None


def _mend(goal: Goal, report: Report, document: State) -> Call | None:
    """What brings a server to a goal; None if it is there."""
    match goal:
        case Holds() if (held := report.version(goal.version)) is None or held.damaged:
            return Load(document.path(goal.version, goal.address))
        case Serves() if report.current != goal.version or not report.remembers:
            return Choose(goal.version)
        case Lacks() if report.version(goal.version) is not None:
            return Retire(goal.version)
        case Shadows() if report.shadow.version != goal.version or report.shadow.share != goal.share:
            return SetShadow(goal.version, goal.share)
    return None


def outcomes(state: Controller, address: str) -> tuple[str, Outcomes, Outcomes]:
    """How a ranker's requests ended, as it said last: its address, those of the new version, those of the old."""
    report = state.report(address)
    if report is None:
        return address, Outcomes(""), Outcomes("")
    return address, outcomes_of(report, state.document.new_version), outcomes_of(report, state.document.old_version)


def undone(asked: Ask, report: Report) -> str:
    """Say what a server did not do, by what it holds."""
    held = ", ".join(version.version for version in report.held) or "none"
    if isinstance(asked.call, Load):
        return (
            f"{asked.address} loaded {asked.call.path}, but does not hold the version that was planned: is it another release "
            f"there? held: {held}"
        )
    return f"{asked.address} did not do what it was asked ({asked.call}); held: {held}, current: {report.current or 'none'}"
