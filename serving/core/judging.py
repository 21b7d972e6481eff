"""How requests ended before a switch and after it, and whether the new version may be kept."""

from __future__ import annotations

from dataclasses import dataclass

from multifacet.serving.core.limits import Limits, exceeds
from multifacet.serving.core.reports import Report


@dataclass(frozen=True)
class Outcomes:
    """How a ranker's requests ended for a version, as one process counted them."""

    process: str
    answered: int = 0
    failed: int = 0
    refused: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.answered + self.failed + self.refused


def outcomes_of(report: Report, version: str) -> Outcomes:
    """How a ranker's requests ended for a version, as it reports."""
    held = report.version(version)
    if held is None:
        return Outcomes(report.process)
    return Outcomes(report.process, held.answered, held.failed, held.refused)


def judge_outcomes(before: Outcomes, after: Outcomes, old: Outcomes, limits: Limits) -> str:
    """What is wrong with how requests ended since the switch, or nothing.

    Args:
        before: Under the new version, before the switch.
        after: Under the new version, now.
        old: Under the old version, before the switch.
        limits: What is allowed.
    """
    if before.process != after.process:  # it was started again, and counts anew
        before = Outcomes(after.process)
    failed, refused = after.failed - before.failed, after.refused - before.refused
    num = after.total - before.total
    if num < limits.min_requests:
        return ""
    if exceeds(failed, num, limits.max_failure_rate):
        return f"{failed} of {num} requests failed since the switch"
    usual = old.refused / old.total if old.total else 0.0
    if exceeds(refused, num, min(1.0, usual + limits.max_failure_rate)):
        return (
            f"{refused} of {num} requests were refused as wrong since the switch, {old.refused} of {old.total} under the old "
            "version: do callers send what the new one reads?"
        )
    return ""
