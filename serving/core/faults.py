"""Why something was not done, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FaultKind = Literal["invalid", "artifact", "not_loaded", "overloaded", "unavailable", "storage", "error"]
"""invalid: asked for what is never done. artifact: the release is damaged. not_loaded: a version that is not held here, or
there. overloaded: later, perhaps. unavailable: the other end is away. storage: the state file cannot be written."""


@dataclass(frozen=True)
class Fault:
    """Why something was not done.

    Attributes:
        kind: Which of the errors it becomes.
        text: What was given, what was expected, the way out.
    """

    kind: FaultKind
    text: str
