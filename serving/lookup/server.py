"""The lookup server: the CPU half of releases, rows by id."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from multifacet.serving.config import LookupConfig
from multifacet.serving.errors import InvalidRequestError
from multifacet.serving.framed.server import FramedServer
from multifacet.serving.lookup.answering import LookupAnswers
from multifacet.serving.lookup.mapped_release import LookupHalf
from multifacet.serving.lookup.opening import identify, open_half
from multifacet.serving.lookup.pool import WorkerPool
from multifacet.serving.protocol import admin_pb2, lookup_pb2, lookup_pb2_grpc
from multifacet.serving.server.deployed import Deployed, Identity
from multifacet.serving.server.listener import Listener
from multifacet.serving.server.metrics import ServerMetrics, Status
from multifacet.serving.server.shell import ServerShell
from multifacet.serving.server.versions import LoadedVersions

logger = logging.getLogger(__name__)

SERVICE = "multifacet.serving.v1.Lookup"
_LOOK_EVERY_S = 0.5


class LookupServer(LookupAnswers, ServerShell[LookupHalf]):
    """Serves the rows of one or several releases.

    Args:
        config: Releases, address and limits.

    Raises:
        ArtifactError: A release is damaged; the file is named.
        OSError: From `start`: the address cannot be bound.

    Example:
        ``with LookupServer(LookupConfig(releases=("release",))) as server: LookupClient(server.address)``
    """

    def __init__(self, config: LookupConfig):
        super().__init__(config, LoadedVersions("lookup server"), ServerMetrics("lookup", ("total",)))
        self._deployed = Deployed(
            self._loaded,
            self._open,
            identify=self._identify,
            state_file=config.state_file,
            administered=config.admin_releases is not None,
            waits=config.first_start == "wait",
            budget_bytes=config.memory_budget_bytes,
            gone=self._forget,
        )
        self._pool: WorkerPool | None = None
        # Before releases are read, which may take minutes: what is wrong with tokens and certificates is told at once.
        self._listener = Listener(config, role="lookup", service=SERVICE, register=self._register, metrics=self.metrics)
        try:
            if config.processes > 1:
                self._pool = WorkerPool(config, lambda: self._describe().SerializeToString())
                self.metrics.add_tallies(self._pool.tallies)
            self._deployed.open(config.releases)
        except BaseException:
            self._listener.discard()
            if self._pool is not None:
                self._pool.stop(0)
            raise
        self._process = uuid.uuid4().hex
        self.metrics.report_status(self._measure)
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch_files, name="mapped-files", daemon=True)
        self._framed = (
            FramedServer(config, self._answer_frame, self.metrics, self._answer_quickly, self._pass_on)
            if config.framed_listen is not None
            else None
        )

    @property
    def framed_address(self) -> str:
        """Where it takes frames, as clients name it; empty before `start`, and if nowhere."""
        return f"framed:{self._framed.address}" if self._framed is not None and self._framed.address else ""

    def load(self, path: str | os.PathLike[str], *, current: bool = True) -> str:
        """Load a release beside those that are there; while it fails or runs, the others are served as before.

        A version whose files were changed is replaced by an intact copy.

        Args:
            path: The release.
            current: Whether it becomes the current one; see `choose`.

        Returns:
            Its version.

        Raises:
            ArtifactError: The release is damaged; the file is named.
        """
        return self._deployed.load(Path(path), current=current)

    def shadow(self, version: str, share: float) -> None:  # noqa: ARG002
        """A lookup server scores nothing.

        Raises:
            InvalidRequestError: Always.
        """
        raise InvalidRequestError("a lookup server scores nothing: shadow traffic is a ranker's")

    def status(self) -> admin_pb2.ServerStatus:
        """What is loaded, and how many requests read it now."""
        return admin_pb2.ServerStatus(
            role="lookup",
            current_version=self._loaded.current,
            versions=[
                admin_pb2.VersionStatus(
                    version=version,
                    path=str(self._deployed.path(version) or ""),
                    readers=self._loaded.num_readers(version),
                    damaged=half.files.fault,
                )
                for version, half in self._loaded.items()
            ],
            process=self._process,
            remembers=self._deployed.state.known,
            ready=not self._fault(),
            not_ready_because=self._fault(),
            faults=self._deployed.state.faults,
        )

    def _measure(self) -> Status:
        gauges = self._listener.gauges()
        if self._pool is not None:
            gauges["worker_processes"] = ("Worker processes that take connections.", self._pool.num_alive)
            gauges["worker_processes_replaced"] = ("Worker processes that ended and were replaced.", self._pool.num_replaced)
        if self._framed is not None:
            gauges["framed_connections"] = ("Framed connections that are open.", self._framed.num_connections)
            gauges["framed_queued"] = ("Framed requests that wait.", self._framed.num_queued)
        return Status(versions=self.versions, current=self._loaded.current, ready=self._listener.is_serving, gauges=gauges)

    def start(self) -> str:
        """Accept requests.

        Returns:
            The bound address.
        """
        if self._framed is not None:
            try:
                self._framed.start()
            except OSError:
                self._listener.stop(0)
                raise
        try:
            address = self._listener.open()
        except OSError:
            if self._framed is not None:
                self._framed.stop(0)
            raise
        self._listener.set_health(serving=not self._fault())
        if self._fault():
            logger.warning("not ready: %s", self._fault())
        self._listener.announce({"versions": list(self.versions), "framed_address": self.framed_address})
        self._watcher.start()
        return address

    def say_stopping(self) -> None:
        """Say by health that no more requests should come, and answer those that do until `stop`."""
        self._listener.say_stopping()

    def stop(self, drain_timeout_s: float | None = None) -> None:
        """Drain both transports at once, and stop; see `Listener.stop`."""
        self._listener.say_stopping()
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join(_LOOK_EVERY_S)  # it may be reading a large file
        timeout_s = self.config.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        frames = threading.Thread(target=self._framed.stop, args=(timeout_s,)) if self._framed is not None else None
        if frames is not None:
            frames.start()
        if self._pool is not None:
            self._pool.stop(timeout_s)
        self._listener.stop(timeout_s)
        if frames is not None:
            frames.join()

    def reload(self) -> None:
        """Read tokens and certificates again."""
        self._listener.reload()
        if self._framed is not None:
            self._framed.token.reload()
        if self._pool is not None:
            self._pool.reload()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _open(self, path: Path) -> tuple[str, LookupHalf]:
        half = open_half(path, self.config, dict(self._loaded.items()).get)
        if self._pool is not None:
            self._pool.hold(half.release.version, path, half)
        logger.info("loaded %r", half.release)
        return half.release.version, half

    def _forget(self, version: str) -> None:
        """Let the workers forget what is not held any more."""
        if self._pool is not None and version not in self._loaded:
            self._pool.forget(version)

    def _pass_on(self, stream: socket.socket) -> bool:
        return self._pool is not None and self._pool.pass_on(stream)

    def _identify(self, path: Path) -> Identity:
        return identify(path, self.config)

    def _fault(self) -> str:
        """Why requests should not come; empty if they should."""
        return self._deployed.state.fault

    def _register(self, server: grpc.Server) -> None:
        lookup_pb2_grpc.add_LookupServicer_to_server(_Servicer(self), server)  # type: ignore[no-untyped-call]
        self._register_admin(self, server, self.config)

    def _watch_files(self) -> None:
        """Look at the mapped files until the server stops, whether requests come or not; a thread's work."""
        said = self._fault()
        while not self._stopping.wait(_LOOK_EVERY_S):
            for version, half in self._loaded.items():
                if not half.files.examine():
                    self._deployed.note_damage(version)
                    if self._pool is not None:
                        self._pool.forget(version, half)
            fault = self._fault()
            if said != fault:
                said = fault
                logger.warning("%s", f"not ready: {fault}" if fault else "ready again")
                self._listener.set_health(serving=not fault)


class _Servicer(lookup_pb2_grpc.LookupServicer):
    def __init__(self, server: LookupServer):
        self._server = server

    def Lookup(  # noqa: N802
        self, request: lookup_pb2.LookupRequest, context: grpc.ServicerContext
    ) -> bytes:
        return self._server._listener.answer(lambda: self._server._lookup(request), context, request.request_id)

    def Describe(  # noqa: N802
        self,
        request: lookup_pb2.LookupDescribeRequest,  # noqa: ARG002
        context: grpc.ServicerContext,
    ) -> lookup_pb2.LookupDescription:
        return self._server._listener.answer(self._server._describe, context)
