"""What a server says that it holds, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HeldVersion:
    """A version that a server holds.

    Attributes:
        version: The version.
        path: Its folder there.
        answered: Requests of a ranker, since its process started.
        failed: Of those that their caller is not to blame for.
        refused: Of those that were refused as wrong.
        damaged: Why it is not served though it is held; empty if it is.
    """

    version: str
    path: str = ""
    answered: int = 0
    failed: int = 0
    refused: int = 0
    damaged: str = ""


@dataclass(frozen=True, kw_only=True)
class ShadowReport:
    """What shadow traffic showed since it was set.

    Attributes:
        version: The version that requests are also scored with; empty if none.
        share: Of the requests.
        requests: That were compared.
        compared: Candidates.
        failed: Requests that the version could not score.
        mean_abs_difference: Of the probabilities.
        mean_difference: Shadow less current.
    """

    version: str = ""
    share: float = 0.0
    requests: int = 0
    compared: int = 0
    failed: int = 0
    mean_abs_difference: float = 0.0
    mean_difference: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a server holds.

    Attributes:
        role: ``lookup`` or ``ranker``.
        current: Its current version; empty if none is.
        held: The versions that it serves, the oldest first.
        shadow: What shadow traffic showed.
        process: Names the process: another one has counted anew.
        remembers: Whether its state file, or somebody, said that `current` is the current version.
    """

    role: str
    current: str = ""
    held: tuple[HeldVersion, ...] = ()
    shadow: ShadowReport = ShadowReport()
    process: str = ""
    remembers: bool = True

    def version(self, version: str) -> HeldVersion | None:
        """What it says about a version; None if it does not hold it."""
        return next((held for held in self.held if held.version == version), None)
