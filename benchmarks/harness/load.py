"""Clients that ask a ranker for witnessed scores at a set rate, and ask again what failed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from benchmarks.harness.witness import IDS
from multifacet.serving import RankerClient, ServingError

CANDIDATES = 9
_RETRY_S = 0.05


@dataclass
class Tally:
    """What became of the requests.

    Attributes:
        answered: Requests that got scores.
        mixed: Scores of which a row was of another version or id than asked for.
        lost: Requests that got none in time, however often they were asked again.
        errors: When each failed attempt began and ended, in seconds of `time.monotonic`, and its error.
        versions: How often each version answered.
    """

    answered: int = 0
    mixed: int = 0
    lost: int = 0
    errors: list[tuple[float, float, ServingError]] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)


class Asker(threading.Thread):
    """One client of a ranker.

    Args:
        address: The ranker's.
        interval_s: Between the beginnings of two requests; 0 asks without a pause.
        patience_s: How long a request is asked again before it counts as lost.
    """

    def __init__(self, address: str, *, interval_s: float, patience_s: float = 60.0, seed: int = 0):
        super().__init__(daemon=True, name=f"asker-{seed}")
        self.tally = Tally()
        self._address = address
        self._interval_s = interval_s
        self._patience_s = patience_s
        self._generator = np.random.default_rng(seed)
        self._done = threading.Event()

    def run(self) -> None:
        """Ask until told to stop."""
        due = time.monotonic()
        with RankerClient(self._address, timeout_s=5) as client:
            while not self._done.wait(max(0.0, due - time.monotonic())):
                due = max(due + self._interval_s, time.monotonic() - 1)  # after an outage, not all at once
                self._ask(client)

    def stop(self) -> Tally:
        """End with the request under way."""
        self._done.set()
        self.join()
        return self.tally

    def wait_for_version(self, version: str, timeout_s: float = 30.0) -> None:
        """Wait until this version answers.

        Raises:
            TimeoutError: It does not.
        """
        before, deadline = self.tally.versions[version], time.monotonic() + timeout_s
        while self.tally.versions[version] == before:
            if time.monotonic() > deadline:
                raise TimeoutError(f"version {version} answered nothing for {timeout_s:g} s; {self.tally}")
            time.sleep(0.005)

    def _ask(self, client: RankerClient) -> None:
        pins = self._generator.integers(0, IDS, CANDIDATES)
        user = int(self._generator.integers(0, IDS))
        dense = np.stack([np.full(CANDIDATES, user), pins], axis=1)
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline:
            began = time.monotonic()
            try:
                answer = client.rank({"user": user}, {"pin": pins}, dense=dense)
            except ServingError as error:
                self.tally.errors.append((began, time.monotonic(), error))
                time.sleep(_RETRY_S)
                continue
            self.tally.answered += 1
            self.tally.versions[answer.version] += 1
            self.tally.mixed += int(np.count_nonzero((answer.ctr != 0.5) | (answer.cvr != 0.5)))
            return
        self.tally.lost += 1
