"""Servers forked from a process that has imported everything: one that was killed is back in a moment, not in seconds."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

from multifacet.serving import LookupConfig, RankerConfig, serve_lookup, serve_ranker

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "multifacet.serving.lookup.server",
        "multifacet.serving.ranker.server",
        "benchmarks.harness.chaos",
        "benchmarks.harness.kills",
        "benchmarks.harness.attacks",
    ]
)
_POLL_S = 0.01


class ForkedServer:
    """A lookup server or a ranker in a process of its own.

    Args:
        config: Its configuration, with a listen address that it keeps and a ready file.
    """

    def __init__(self, config: LookupConfig | RankerConfig):
        if config.ready_file is None:
            raise ValueError("a forked server needs a ready file: nothing else tells when it accepts requests")
        self.address = config.listen
        self._config = config
        self._ready_file: Path = config.ready_file
        self._process = FORKS.Process(target=_serve, args=(config,), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        """The process id."""
        if self._process.pid is None:
            raise RuntimeError("it was not started")
        return self._process.pid

    def wait_until_ready(self, timeout_s: float = 120.0) -> None:
        """Wait until it accepts requests.

        Raises:
            TimeoutError: It does not in time.
            RuntimeError: It ended; its traceback is on stderr.
        """
        deadline = time.monotonic() + timeout_s
        while not self._ready_file.exists():
            if not self._process.is_alive():
                raise RuntimeError(f"the server of {self.address} ended with status {self._process.exitcode}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server of {self.address} was not ready within {timeout_s:g} s")
            time.sleep(_POLL_S)

    def restart(self, *, wait: bool = True) -> None:
        """Kill it (SIGKILL) and start it again on its address.

        Args:
            wait: Whether to wait until it is ready.
        """
        self._process.kill()
        self._process.join()
        self._ready_file.unlink(missing_ok=True)
        self._process = FORKS.Process(target=_serve, args=(self._config,), daemon=True)
        self._process.start()
        if wait:
            self.wait_until_ready()

    def __enter__(self) -> ForkedServer:
        self.wait_until_ready()
        return self

    def __exit__(self, *unused: object) -> None:
        self._process.terminate()
        self._process.join(15)
        self._process.kill()


def _serve(config: LookupConfig | RankerConfig) -> None:
    if isinstance(config, LookupConfig):
        serve_lookup(config)
    else:
        serve_ranker(config)
