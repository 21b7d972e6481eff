"""How long it takes from an event to the first score that knows of it."""

from __future__ import annotations

import datetime as dt
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Freshness", "unix_seconds"]


def unix_seconds(text: str) -> float:
    """Gives a time's seconds since 1970; a time without a zone is UTC.

    Example:
        >>> unix_seconds("1970-01-02T00:00:00")
        86400.0
    """
    time_ = dt.datetime.fromisoformat(text)
    return (time_ if time_.tzinfo is not None else time_.replace(tzinfo=dt.UTC)).timestamp()


class Freshness:
    """When each version scored first.

    A request costs one look into a dictionary, and a version one lock.

    Args:
        clock: Seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._first: dict[str, float] = {}
        self._lock = threading.Lock()

    def scored(self, version: str) -> None:
        """Note that a request was scored by a version."""
        if version not in self._first:
            with self._lock:
                self._first.setdefault(version, self._clock())

    def gauges(self, version: str, knows_until: str | None) -> dict[str, tuple[str, float]]:
        """Give the current version's numbers, by name, each with its description; none if its events' time is not known.

        Args:
            version: The current version.
            knows_until: The time until which it knows of events.
        """
        if knows_until is None:
            return {}
        until = unix_seconds(knows_until)
        found = {"knows_until_timestamp_seconds": ("Time until which the current version knows of events, since 1970.", until)}
        if version in self._first:
            delay = self._first[version] - until
            found["first_score_delay_seconds"] = (
                "From the latest event that the current version knows of to its first score, in seconds.",
                delay,
            )
        return found
