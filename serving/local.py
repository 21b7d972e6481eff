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

from multifacet.serving.config import ListenConfig, LookupConfig, RankerConfig
from multifacet.serving.errors import ServingError

logger = logging.getLogger(__name__)

_SOURCE_ROOT = Path(__file__).resolve().parents[1]
_LOG_LINES = 20


class ServerProcess:
    """One server as a child process, which drains when told to, when closed, and when its parent dies.

    It is started at once; `wait_until_ready`, or entering the ``with`` block, waits until it accepts requests.

    Args:
        role: ``lookup`` or ``ranker``.
        config: Its configuration, without a ready file: this class watches one of its own.
        folder: Existing folder for its ready file and its log.
        startup_timeout_s: Longest wait for it to be ready, in seconds.

    Example:
        ``with ServerProcess("lookup", LookupConfig(releases=("release",)), folder) as server: server.address``
    """

    def __init__(
        self,
        role: Literal["lookup", "ranker"],
        config: ListenConfig,
        folder: str | os.PathLike[str],
        *,
        startup_timeout_s: float = 90.0,
    ):
        folder = Path(folder)
        self.role = role
        self.log_path = folder / f"{role}.log"
        self.announcement: dict[str, Any] = {}
        self._config = config
        self._ready_file = folder / f"{role}.ready"
        self._startup_timeout_s = startup_timeout_s
        self._process = self._spawn(config.listen)

    @property
    def address(self) -> str:
        """The bound address; empty before it is ready."""
        return str(self.announcement.get("address", ""))

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Wait until it accepts requests.

        Raises:
            ServingError: It ended, or was not ready in time; the end of its log is in the message. It is killed.
        """
        try:
            self._poll(time.monotonic() + self._startup_timeout_s)
        except BaseException:
            self.kill()
            raise

    def restart(self) -> None:
        """Start it again on the address that it had, after it ended or was killed, and wait until it is ready."""
        self.kill()
        address = self.address
        self.announcement = {}
        self._process = self._spawn(address or self._config.listen)
        self.wait_until_ready()

    def log_end(self) -> str:
        """The last lines that it logged."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-_LOG_LINES:])

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

    def __enter__(self) -> Self:
        self.wait_until_ready()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.terminate()

    def _spawn(self, listen: str) -> subprocess.Popen[bytes]:
        self._ready_file.unlink(missing_ok=True)
        settings = {
            **self._config.model_dump(mode="json", exclude_unset=True),
            "listen": listen,
            "ready_file": str(self._ready_file),
        }
        search_path = os.pathsep.join(filter(None, (str(_SOURCE_ROOT), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-P", "-m", "multifacet.serving", self.role, "--stop-at-stdin-end"]
        with self.log_path.open("ab") as log:
            # The child reads its stdin to the end, which comes when this process closes it or dies, however it dies.
            return subprocess.Popen(
                [*command, "--config-json", json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": search_path},
            )

    def _poll(self, deadline: float) -> None:
        while not self._read_announcement():
            status = self._process.poll()
            if status is not None:
                raise ServingError(f"the {self.role} ended with status {status}; its log ends:\n{self.log_end()}")
            if time.monotonic() >= deadline:
                raise ServingError(
                    f"the {self.role} was not ready within {self._startup_timeout_s:g} s; its log ends:\n{self.log_end()}"
                )
            time.sleep(0.02)

    def _read_announcement(self) -> bool:
        try:
            self.announcement = json.loads(self._ready_file.read_text())
        except FileNotFoundError:
            return False
        return True

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


class LocalDeployment:
    """A release served by two real processes on this machine, until the ``with`` block ends.

    Args:
        release_path: The release.
        transport: ``unix`` for sockets in a private folder, ``tcp`` for loopback ports that the system chooses.
        lookup: Further fields of `LookupConfig`.
        ranker: Further fields of `RankerConfig`.
        startup_timeout_s: Longest wait for each of the two, in seconds.

    Attributes:
        lookup: The lookup server's process, within the ``with`` block.
        ranker: The ranker's process, within the ``with`` block.

    Raises:
        ServingError: On entering: one of the two failed to start; the end of its log is in the message.

    Example:
        ``with LocalDeployment("release") as served: RankerClient(served.ranker_address)``
    """

    lookup: ServerProcess
    ranker: ServerProcess

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

    @property
    def lookup_address(self) -> str:
        """Where the lookup server listens."""
        return self.lookup.address

    @property
    def ranker_address(self) -> str:
        """Where the ranker listens."""
        return self.ranker.address

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as started:
            folder = Path(tempfile.mkdtemp(prefix="multifacet-"))  # only this user may enter it
            started.callback(shutil.rmtree, folder, ignore_errors=True)
            fields = {"releases": (self._release_path,), "listen": self._listen(folder, "lookup")}
            lookup_config = LookupConfig.model_validate({**fields, **self._lookup_fields})
            self.lookup = self._start("lookup", lookup_config, folder, started)
            if self._transport == "tcp":  # its port is known once it is ready; a socket's path before
                self.lookup.wait_until_ready()
            fields = {
                "releases": (self._release_path,),
                "listen": self._listen(folder, "ranker"),
                "lookup": self.lookup.address or lookup_config.listen,
            }
            ranker_config = RankerConfig.model_validate({**fields, **self._ranker_fields})
            self.ranker = self._start("ranker", ranker_config, folder, started)
            self.lookup.wait_until_ready()
            self.ranker.wait_until_ready()
            self._exit = started.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._exit.close()

    def _start(
        self, role: Literal["lookup", "ranker"], config: ListenConfig, folder: Path, started: contextlib.ExitStack
    ) -> ServerProcess:
        process = ServerProcess(role, config, folder, startup_timeout_s=self._startup_timeout_s)
        started.callback(process.terminate)
        return process

    def _listen(self, folder: Path, role: str) -> str:
        return f"unix:{folder / role}.sock" if self._transport == "unix" else "127.0.0.1:0"
