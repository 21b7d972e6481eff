"""The keys of a sampler's calls: a draw depends on where in the sample it stands, never on when or on which thread."""

from __future__ import annotations

import threading

import torch.utils.data

from multifacet.graphdb.counter import derive_key


class Stream:
    """The keys of a sampler's successive calls.

    The n-th call in the main process has the key of (seed, n). A data loader's workers hold copies of the sampler: there the
    worker's own seed, which torch draws anew each epoch from the loader's generator, enters the key, so that workers and
    epochs differ and a seeded loader repeats.

    Args:
        seed: Any integer.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._calls = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[int, int]:
        return self.seed, self._calls

    def __setstate__(self, state: tuple[int, int]) -> None:
        self.seed, self._calls = state
        self._lock = threading.Lock()

    def next_key(self) -> int:
        """The key of one more call."""
        with self._lock:
            call = self._calls
            self._calls += 1
        worker = torch.utils.data.get_worker_info()
        return int(derive_key(self.seed, call) if worker is None else derive_key(self.seed, call, worker.seed))
