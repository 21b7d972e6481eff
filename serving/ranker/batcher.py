"""Dynamic batching: requests of one version that arrive together go through the upper model together."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import torch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class UpperHalf(Protocol):
    """What a batcher asks of a version's scorer; `Scorer` says more."""

    def probabilities(self, dense: torch.Tensor, embeddings: torch.Tensor) -> tuple[npt.NDArray[np.float32], int]:
        """Give the probabilities of a batch, unchecked, and the microseconds they took."""

    def checked(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Give the scores of one request, if they are numbers."""


class _Part:
    """One request's part in a batch."""

    __slots__ = ("dense", "embeddings", "error", "is_done", "probabilities", "upper_us")

    def __init__(self, dense: torch.Tensor, embeddings: torch.Tensor):
        self.dense = dense
        self.embeddings = embeddings
        self.probabilities: npt.NDArray[np.float32] | None = None
        self.error: BaseException | None = None
        self.upper_us = 0
        self.is_done = False


class Batcher:
    """Scores requests of one version, as many at a time as have come; safe to share between threads.

    The first of a batch leads it: it waits for those that are on their way (`expect`), for the latency budget at most, and then
    scores all. Nobody waits for requests that have not come, so that one that is alone goes at once. While a batch is scored,
    the next one gathers and may be scored beside it.

    Args:
        scorer: The version's upper model.
        max_candidates: Most candidates in a batch; a request that has more goes alone.
        wait_us: Longest wait of a batch's first request for others, in microseconds.
    """

    def __init__(self, scorer: UpperHalf, *, max_candidates: int, wait_us: int):
        self._scorer = scorer
        self._max_candidates = max_candidates
        self._wait_s = wait_us * 1e-6
        self._changed = threading.Condition()
        self._num_expected = 0
        self._open: list[_Part] = []
        self._num_open = 0
        self.num_batches = 0
        """How many times the upper model ran."""

    def expect(self) -> Arrival:
        """Let batches wait for the request of a ``with`` block, which scores once or not at all."""
        return Arrival(self)

    def note_expected(self, change: int) -> None:
        """Count a request that is on its way, or no longer is."""
        with self._changed:
            self._num_expected += change
            if not self._num_expected:
                self._changed.notify_all()

    def score(self, dense: torch.Tensor, embeddings: torch.Tensor) -> tuple[npt.NDArray[np.float32], int]:
        """As `Scorer.score`, perhaps together with others; of a request that was expected, through its `Arrival`.

        Raises:
            BrokenAnswerError: This request's scores are not finite; the others of the batch are not concerned.
        """
        part = _Part(dense, embeddings)
        batch = self._join(part)
        if batch is not None:
            self._run(batch)
        if part.error is not None:
            raise part.error
        assert part.probabilities is not None  # noqa: S101
        return self._scorer.checked(part.probabilities), part.upper_us

    def _join(self, part: _Part) -> list[_Part] | None:
        """Add a request to the open batch; the batch, if it is this thread that has to run it."""
        with self._changed:
            self._num_expected -= 1
            if self._open and self._num_open + len(part.dense) > self._max_candidates:
                self._close()
            batch = self._open
            batch.append(part)
            self._num_open += len(part.dense)
            if len(batch) == 1:
                until = time.monotonic() + self._wait_s
                while self._open is batch and self._num_expected and self._num_open < self._max_candidates:
                    left_s = until - time.monotonic()
                    if left_s <= 0:
                        break
                    self._changed.wait(left_s)
                if self._open is batch:
                    self._close()
                return batch
            if not self._num_expected or self._num_open >= self._max_candidates:
                self._close()
            while not part.is_done:
                self._changed.wait()
            return None

    def _close(self) -> None:
        self._open = []
        self._num_open = 0
        self.num_batches += 1
        self._changed.notify_all()

    def _run(self, batch: list[_Part]) -> None:
        error: BaseException | None = None
        try:
            if len(batch) == 1:
                (part,) = batch
                part.probabilities, part.upper_us = self._scorer.probabilities(part.dense, part.embeddings)
                return
            probabilities, upper_us = self._scorer.probabilities(
                torch.cat([part.dense for part in batch]), torch.cat([part.embeddings for part in batch])
            )
            start = 0
            for part in batch:
                part.probabilities = probabilities[start : start + len(part.dense)]
                part.upper_us = upper_us
                start += len(part.dense)
        except BaseException as raised:
            error = raised
            raise
        finally:
            with self._changed:
                for part in batch:
                    part.error = error
                    part.is_done = True
                self._changed.notify_all()


class Arrival:
    """One request that a batch may wait for."""

    __slots__ = ("_batcher", "_has_come")

    def __init__(self, batcher: Batcher):
        self._batcher = batcher
        self._has_come = False

    def score(self, dense: torch.Tensor, embeddings: torch.Tensor) -> tuple[npt.NDArray[np.float32], int]:
        """Score it; see `Batcher.score`."""
        self._has_come = True
        return self._batcher.score(dense, embeddings)

    def __enter__(self) -> Self:
        self._batcher.note_expected(1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._has_come:
            self._batcher.note_expected(-1)
