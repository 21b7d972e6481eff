"""Which of several servers that hold the same is asked next, left out, and asked whether it is well again.

No clock, no thread and no lock is here: the time is handed in. What is known of a server changes in place, since every
request changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from multifacet.serving.policy import ReplicaPolicy

LACKS_S = 1.0
"""How long others are asked first for a version that a server refused."""


class Standing:
    """What is known about one server.

    Attributes:
        num_in_flight: Requests that it has not answered.
        num_late: How many it answered too late, in a row.
        is_out: Whether it is left out.
        probe_at: When to ask it whether it is well.
        probe_wait_s: How long that was put off last.
    """

    __slots__ = ("_lacks", "is_out", "num_in_flight", "num_late", "probe_at", "probe_wait_s")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Know nothing about it."""
        self.num_in_flight = 0
        self.num_late = 0
        self.is_out = False
        self.probe_at = 0.0
        self.probe_wait_s = 0.0
        self._lacks: dict[str, float] = {}

    def note_missing(self, version: str, now: float) -> None:
        """It refused a version: for a second others are asked for it first."""
        self._lacks = {version: until for version, until in self._lacks.items() if until > now}
        self._lacks[version] = now + LACKS_S

    def is_good(self, version: str, now: float) -> bool:
        """Whether it should answer a request of this version."""
        return not self.is_out and not (self._lacks and self._lacks.get(version, 0.0) > now)

    def note_end(self, policy: ReplicaPolicy, *, late: bool | None) -> str:
        """A request of it ended.

        Args:
            policy: When to leave it out.
            late: Whether the answer came too late; None says nothing about the server.

        Returns:
            Why it is to be left out from now on; empty if it is not.
        """
        self.num_in_flight = max(0, self.num_in_flight - 1)
        if late is None:
            return ""
        self.num_late = self.num_late + 1 if late else 0
        if late and self.num_late >= policy.eject_after:
            return f"its last {self.num_late} answers came too late"
        if not late and not self.is_out:
            self.probe_wait_s = 0.0
        return ""

    def leave_out(self, policy: ReplicaPolicy, now: float) -> None:
        """Ask it nothing but whether it is well."""
        self.is_out = True
        self._put_off(policy, now)

    def note_probe(self, policy: ReplicaPolicy, now: float, *, well: bool) -> None:
        """It was asked whether it is well: it is taken back, or asked again later."""
        if not well:
            self._put_off(policy, now)
            return
        self.is_out = False
        self.num_late = 0

    def _put_off(self, policy: ReplicaPolicy, now: float) -> None:
        self.probe_wait_s = min(policy.probe_at_most_s, max(policy.probe_after_s, 2 * self.probe_wait_s))
        self.probe_at = now + self.probe_wait_s


S = TypeVar("S", bound=Standing)


def choose(
    others: Sequence[S], version: str, now: float, sample: Callable[[Sequence[S], int], Sequence[S]], *, good_only: bool = False
) -> S | None:
    """The server for a request: of two good ones at random, the one with fewer requests in flight.

    Args:
        others: Servers that were not asked yet.
        version: The version wanted.
        now: The time.
        sample: Draws so many of some without putting any back.
        good_only: Whether to choose none rather than one that is left out.
    """
    good = [standing for standing in others if standing.is_good(version, now)]
    choice: Sequence[S] = good or ([] if good_only else others)
    if len(choice) < 2:
        return choice[0] if choice else None
    chosen, second = sample(choice, 2)
    return second if second.num_in_flight < chosen.num_in_flight else chosen


def next_probe(all_: Sequence[S]) -> S | None:
    """The server that is asked next whether it is well; None if none is left out."""
    return min((standing for standing in all_ if standing.is_out), key=_probe_at, default=None)


def _probe_at(standing: Standing) -> float:
    return standing.probe_at
