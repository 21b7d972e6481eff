"""How requests ended, by version: what a rollout watches."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from multifacet.serving.errors import InvalidRequestError


class Outcomes:
    """Counts how the requests of each version ended."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def count(self, version: str) -> Iterator[Outcome]:
        """Count the request of the ``with`` block: as refused if it is wrong, as failed if it raises or is marked so.

        Who is to blame for a wrong request is for the rollout to see: a new version may read what no caller sends.
        """
        outcome = Outcome()
        try:
            yield outcome
        except InvalidRequestError:
            with self._lock:
                self.refused[version] += 1
            raise
        except Exception:
            with self._lock:
                self.failed[version] += 1
            raise
        with self._lock:
            (self.failed if outcome.degraded else self.answered)[version] += 1


class Outcome:
    """How one request ends.

    Attributes:
        degraded: Whether it was answered, but without its rows. Too many degraded answers roll the version back.
    """

    __slots__ = ("degraded",)

    def __init__(self) -> None:
        self.degraded = False
