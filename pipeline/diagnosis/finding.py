"""What a check found."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Finding", "Level", "above", "below", "worst"]

Level = Literal["ok", "warn", "stop"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One check of one thing.

    Attributes:
        check: The check's name, such as "window gap".
        subject: What was checked, such as a facet, a table or a server.
        value: The number; None where it is none.
        limit: The limit that it broke, or the first that it would break; None where there is none.
        level: "ok", "warn" or "stop".
        told: The number in words.
        cause: What such a number comes from; empty if all is well.
        mend: The line that mends it; empty if all is well.
    """

    check: str
    subject: str
    value: float | None
    limit: float | None
    level: Level
    told: str
    cause: str = ""
    mend: str = ""

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        fields = asdict(self)
        if self.value is not None and not math.isfinite(self.value):
            fields["value"] = None
        return fields


def above(
    check: str, subject: str, value: float, warn: float | None, stop: float | None, *, told: str, cause: str, mend: str
) -> Finding:
    """Finds fault with a number above its limits.

    Args:
        check: The check's name.
        subject: What was checked.
        value: The number.
        warn: Above it is a warning; None for never.
        stop: Above it is a stop; None for never.
        told: The number in words.
        cause: What such a number comes from.
        mend: What mends it.

    Example:
        >>> above("window gap", "kge", 100.0, 30.0, 90.0, told="100 days", cause="old tables", mend="pretrain").level
        'stop'
    """
    level: Level = "ok"
    limit = warn if warn is not None else stop
    if stop is not None and not value <= stop:
        level, limit = "stop", stop
    elif warn is not None and not value <= warn:
        level, limit = "warn", warn
    if level == "ok":
        return Finding(check=check, subject=subject, value=value, limit=limit, level=level, told=told)
    return Finding(check=check, subject=subject, value=value, limit=limit, level=level, told=told, cause=cause, mend=mend)


def below(
    check: str, subject: str, value: float, warn: float | None, stop: float | None, *, told: str, cause: str, mend: str
) -> Finding:
    """Finds fault with a number below its limits; otherwise as `above`."""
    turned = above(
        check,
        subject,
        -value,
        None if warn is None else -warn,
        None if stop is None else -stop,
        told=told,
        cause=cause,
        mend=mend,
    )
    limit = None if turned.limit is None else -turned.limit
    return Finding(
        check=check,
        subject=subject,
        value=value,
        limit=limit,
        level=turned.level,
        told=told,
        cause=turned.cause,
        mend=turned.mend,
    )


def worst(findings: Iterable[Finding]) -> Level:
    """Gives the highest level among findings."""
    levels = {found.level for found in findings}
    return "stop" if "stop" in levels else "warn" if "warn" in levels else "ok"
