"""Shadow traffic: requests that are scored a second time by another version, to see how far apart the two are."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from multifacet.serving.protocol import admin_pb2

logger = logging.getLogger(__name__)

_MAX_WAITING = 8

Score = Callable[[], npt.NDArray[np.float32]]


class Shadow:
    """Compares the scores of a share of the requests with another version's.

    It works on one thread of its own, after the answer has gone: no caller waits for it. While it is behind, requests pass it
    by uncompared.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._random = random.Random()  # noqa: S311  (a sample, not a secret)
        self._waiting = 0
        self.set("", 0.0)

    def set(self, version: str, share: float) -> None:
        """Compare with this version from now on, and forget what was counted; an empty version ends it.

        Args:
            version: A loaded version.
            share: Of the requests, 0 to 1.

        Raises:
            ValueError: The share is none.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"the share of shadow traffic is {share}: expected 0 to 1")
        with self._lock:
            self.version = version
            self.share = share if version else 0.0
            self._requests = 0
            self._compared = 0
            self._failed = 0
            self._sum_abs = 0.0
            self._sum = 0.0

    def offer(self, current: npt.NDArray[np.float32], score: Score) -> None:
        """Perhaps compare one request.

        Args:
            current: float32 [num_candidates, 2], what was answered.
            score: Scores the same request with the version that it was offered for.
        """
        if not self.share or self._random.random() >= self.share:
            return
        with self._lock:
            if self._waiting >= _MAX_WAITING:
                return
            self._waiting += 1
        self._worker.submit(self._compare, self.version, current, score)

    def report(self) -> admin_pb2.ShadowReport:
        """What was counted since `set`."""
        with self._lock:
            num = 2 * max(1, self._compared)
            return admin_pb2.ShadowReport(
                version=self.version,
                share=self.share,
                requests=self._requests,
                compared=self._compared,
                failed=self._failed,
                mean_abs_difference=self._sum_abs / num,
                mean_difference=self._sum / num,
            )

    def close(self) -> None:
        """Wait for comparisons under way."""
        self._worker.shutdown(cancel_futures=True)

    def _compare(self, version: str, current: npt.NDArray[np.float32], score: Score) -> None:
        difference = None
        try:
            difference = score().astype(np.float64) - current
        except Exception as error:  # noqa: BLE001  (whatever it is: it counts against the version)
            logger.info("version %s could not score a shadowed request: %s", version, error)
        with self._lock:
            self._waiting -= 1
            if version != self.version:
                return
            if difference is None:
                self._failed += 1
                return
            self._requests += 1
            self._compared += len(difference)
            self._sum_abs += float(np.abs(difference).sum())
            self._sum += float(difference.sum())
