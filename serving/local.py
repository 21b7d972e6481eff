"""A lookup server and a ranker as two processes of this machine, for demos, tests and offline comparison."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import BaseModel

from serving.config import LookupConfig, RankerConfig
from serving.errors import ServingError

logger = logging.getLogger(__name__)

_SOURCE_ROOT = Path(__file__).resolve().parents[1]
_STDERR_LINES = 20


class ServerProcess:
    """One server as a child process, which drains when told to, when closed, and when its parent dies.

    Args:
        role: ``lookup`` or ``ranker``.
        config: Its configuration, without a ready file: this class watches one of its own.
        folder: Existing folder for its ready file and its log.
        startup_timeout_s: Longest wait for it to be ready, in seconds.
        environment: Variables to add to the environment.

    Raises:
        ServingError: It ended, or was not ready in time; the end of its log is in the message.
    """

    def __init__(
        self,
        role: Literal["lookup", "ranker"],
        config: BaseModel,
        folder: Path,
        *,
        startup_timeout_s: float = 90.0,
        environment: Mapping[str, str] | None = None,
    ):
        self.role = role
        self._ready_file = folder / f"{role}.ready"
        self._ready_file.unlink(missing_ok=True)
        self.log_path = folder / f"{role}.log"
        settings = {**config.model_dump(mode="json", exclude_unset=True), "ready_file": str(self._ready_file)}
        search_path = os.pathsep.join(filter(None, (str(_SOURCE_ROOT), os.environ.get("PYTHONPATH"))))
        with self.log_path.open("ab") as log:
            # The child reads its stdin to the end, which comes when this process closes it or dies, however it dies.
            self._process = subprocess.Popen(  # noqa: S603
                [
                    *(sys.executable, "-P", "-m", "serving", role, "--stop-at-stdin-end"),
                    *("--config-json", json.dumps(settings)),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": search_path, **(environment or {})},
            )
        try:
            self.announcement = self._wait_until_ready(startup_timeout_s)
        except BaseException:
            self.kill()
            raise

    @property
    def address(self) -> str:
        """The bound address."""
        return str(self.announcement["address"])

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def log_end(self) -> str:
        """The last lines that it logged."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-_STDERR_LINES:])

    def terminate(self, timeout_s: float = 15.0) -> int:
        """Drain and end it; kill it if it takes longer.

        Returns:
            Its exit status: 0 after a drain.
        """
        if self._process.poll() is None:
            self._process.terminate()
        return self._join(timeout_s)

    def kill(self) -> None:
        """End it at once, without a drain."""
        if self._process.poll() is None:
            self._process.kill()
        self._join(15.0)

    def _join(self, timeout_s: float) -> int:
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            logger.warning("the %s (pid %d) did not drain within %g s: killed", self.role, self.pid, timeout_s)
            self._process.kill()
            status = self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        return status

    def _wait_until_ready(self, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(FileNotFoundError):
                announcement: dict[str, Any] = json.loads(self._ready_file.read_text())
                return announcement
            status = self._process.poll()
            if status is not None:
                raise ServingError(f"the {self.role} ended with status {status}; its log ends:\n{self.log_end()}")
            if time.monotonic() >= deadline:
                raise ServingError(f"the {self.role} was not ready within {timeout_s:g} s; its log ends:\n{self.log_end()}")
            time.sleep(0.02)


class LocalDeployment:
    """A release served by two real processes on this machine, until the ``with`` block ends.

    Args:
        release_path: The release.
        transport: ``unix`` for sockets in a private folder, ``tcp`` for loopback ports that the system chooses.
        lookup: Further fields of `LookupConfig`.
        ranker: Further fields of `RankerConfig`.
        startup_timeout_s: Longest wait for each of the two, in seconds.

    Attributes:
        lookup_address: Where the lookup server listens.
        ranker_address: Where the ranker listens.

    Raises:
        ServingError: On entering: one of the two failed to start; the end of its log is in the message.

    Example:
        ``with LocalDeployment("release") as served: RankerClient(served.ranker_address)``
    """

    def __init__(
        self,
        release_path: str | os.PathLike[str],
        *,
        transport: Literal["unix", "tcp"] = "unix",
        lookup: Mapping[str, Any] | None = None,
        ranker: Mapping[str, Any] | None = None,
        startup_timeout_s: float = 90.0,
    ):
        self._release_path = Path(release_path).absolute()
        self._transport = transport
        self._lookup_fields = dict(lookup or {})
        self._ranker_fields = dict(ranker or {})
        self._startup_timeout_s = startup_timeout_s
        self._exit = contextlib.ExitStack()
        self.lookup_address = ""
        self.ranker_address = ""
        self.lookup_process: ServerProcess | None = None
        self.ranker_process: ServerProcess | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as started:
            folder = Path(tempfile.mkdtemp(prefix="multifacet-"))  # only this user may enter it
            started.callback(shutil.rmtree, folder, ignore_errors=True)
            lookup_config = LookupConfig(
                **{
                    "releases": (self._release_path,),
                    "listen": self._listen(folder, "lookup"),
                    **self._lookup_fields,
                }
            )
            self.lookup_process = self._start("lookup", lookup_config, folder)
            started.callback(self.lookup_process.terminate)
            self.lookup_address = self.lookup_process.address
            ranker_config = RankerConfig(
                **{
                    "releases": (self._release_path,),
                    "listen": self._listen(folder, "ranker"),
                    "lookup": self.lookup_address,
                    **self._ranker_fields,
                }
            )
            self.ranker_process = self._start("ranker", ranker_config, folder)
            started.callback(self.ranker_process.terminate)
            self.ranker_address = self.ranker_process.address
            self._exit = started.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._exit.close()

    def _start(self, role: Literal["lookup", "ranker"], config: BaseModel, folder: Path) -> ServerProcess:
        return ServerProcess(role, config, folder, startup_timeout_s=self._startup_timeout_s)

    def _listen(self, folder: Path, role: str) -> str:
        return f"unix:{folder / role}.sock" if self._transport == "unix" else "127.0.0.1:0"
