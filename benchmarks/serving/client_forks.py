"""A client of frames in a process that forks at random moments, as pre-forking workers do: whose rows each process gets.

Three threads ask all the time, each for ids of its own, while the process forks. Every child asks three times, with the client
that it was forked with. wrong_rows are answers with rows of other ids, in parent or child; failed are children that ended with
an error, hung those that had not ended after 30 seconds.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.harness import HIGHER, LOWER, Metric, Row
from benchmarks.harness.witness import IDS, write_witness
from multifacet.serving import LookupConfig, ServerProcess, connect_lookup

_FAULTS = {name: Metric(name=name, unit="", better=LOWER) for name in ("wrong_rows", "failed", "hung")}
_ANSWERED = Metric(name="answered", unit="", better=HIGHER)
_THREADS = 3
_PATIENCE_S = 30.0
_WRONG = 3
"""Exit status of a child that got rows of other ids."""


def run(quick: bool) -> Iterator[Row]:
    """200 forks when quick, else 4,000."""
    num_forks = 200 if quick else 4000
    with tempfile.TemporaryDirectory(prefix="multifacet-bench-") as name:
        folder = Path(name)
        release = write_witness(folder / "release", 1)
        frames = f"unix:{folder / 'frames'}"
        config = LookupConfig(releases=(release.path,), listen="127.0.0.1:0", framed_listen=frames)
        # Started afresh: a child that forks must not have what this process has.
        with ServerProcess("lookup", config, folder), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as worker:
            counts = worker.submit(_fork_away, f"framed:{frames}", release.version, num_forks).result()
    answered = counts.pop("answered")
    case = f"{num_forks} forks"
    config_of_row = {"forks": num_forks, "threads": _THREADS}
    for fault, count in counts.items():
        yield Row(case=case, metric=_FAULTS[fault], value=count, config=config_of_row)
    yield Row(case=f"{case}, in the parent", metric=_ANSWERED, value=answered, config=config_of_row)


class _Rows:
    """Asks for ids, and compares what comes with them."""

    def __init__(self, address: str, version: str):
        self.client = connect_lookup(address, timeout_s=20)
        self._version = version

    def are_right(self, ids: np.ndarray) -> bool:
        """Whether the rows say that they are of these ids."""
        rows = self.client.lookup(self._version, {"pin": ids}).tables["pin"].rows
        return bool((rows.view(np.float32)[:, 1] == ids).all())


def _fork_away(address: str, version: str, num_forks: int) -> dict[str, int]:
    warnings.simplefilter("ignore", DeprecationWarning)  # that a process with threads forks: it is what is measured
    rows = _Rows(address, version)
    counts = {"wrong_rows": 0, "failed": 0, "hung": 0, "answered": 0}
    done = threading.Event()
    lock = threading.Lock()

    def ask(number: int) -> None:
        ids = np.arange(number, IDS, _THREADS + 1)
        while not done.is_set():
            right = rows.are_right(ids)
            with lock:
                counts["answered"] += 1
                counts["wrong_rows"] += not right

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(_THREADS)]
    for thread in threads:
        thread.start()
    moments = random.Random(0)  # noqa: S311  (moments, not secrets)
    own = np.arange(_THREADS, IDS, _THREADS + 1)
    for _ in range(num_forks):
        time.sleep(moments.uniform(0, 0.005))
        child = os.fork()
        if not child:
            _be_child(rows, own)
        status = _end_of(child)
        counts["hung"] += status is None
        counts["wrong_rows"] += status == _WRONG
        counts["failed"] += status not in {None, 0, _WRONG}
    done.set()
    for thread in threads:
        thread.join()
    rows.client.close()
    return counts


def _be_child(rows: _Rows, ids: np.ndarray) -> None:
    try:
        for _ in range(3):
            if not rows.are_right(ids):
                os._exit(_WRONG)
    except BaseException as error:  # noqa: BLE001  (the parent counts it, and here it is said)
        print("child:", type(error).__name__, error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def _end_of(child: int) -> int | None:
    """The exit status of a child; None if it had to be killed."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
