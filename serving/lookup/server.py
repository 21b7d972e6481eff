"""The lookup server: the CPU half of releases, rows by id."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import numpy as np

from multifacet.serving.config import LookupConfig
from multifacet.serving.errors import InvalidRequestError, ServingError, VersionNotLoadedError
from multifacet.serving.framed.connection import ClosedError
from multifacet.serving.framed.server import FramedServer
from multifacet.serving.lookup.kernel_plan import version_of
from multifacet.serving.lookup.mapped_release import FetchedRows, LookupHalf
from multifacet.serving.lookup.opening import identify, open_half
from multifacet.serving.lookup.rows import SendBuffer
from multifacet.serving.protocol import admin_pb2, lookup_pb2, lookup_pb2_grpc
from multifacet.serving.server.deployed import Deployed, Identity
from multifacet.serving.server.listener import Listener
from multifacet.serving.server.metrics import ServerMetrics, Status
from multifacet.serving.server.shell import ServerShell
from multifacet.serving.server.versions import LoadedVersions
from multifacet.serving.tracing import tell_rows
from multifacet.serving.wire.frames import Kind, padded
from multifacet.serving.wire.packing import IdArray, check_features, check_id_type, count_ids, unpack_ids

logger = logging.getLogger(__name__)

SERVICE = "multifacet.serving.v1.Lookup"
_INT64 = np.dtype("<i8")
_LOOK_EVERY_S = 0.5


class LookupServer(ServerShell[LookupHalf]):
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
        self.config = config
        self._loaded: LoadedVersions[LookupHalf] = LoadedVersions("lookup server")
        self.metrics = ServerMetrics("lookup", ("total",))
        self._deployed = Deployed(
            self._loaded,
            self._open,
            identify=self._identify,
            state_file=config.state_file,
            administered=config.admin_releases is not None,
            waits=config.first_start == "wait",
            budget_bytes=config.memory_budget_bytes,
        )
        # Before releases are read, which may take minutes: what is wrong with tokens and certificates is told at once.
        self._listener = Listener(config, role="lookup", service=SERVICE, register=self._register, metrics=self.metrics)
        try:
            self._deployed.open(config.releases)
        except BaseException:
            self._listener.discard()
            raise
        self._process = uuid.uuid4().hex
        self.metrics.report_status(self._measure)
        self._buffers: deque[SendBuffer] = deque()  # as many as requests were ever worked on at once
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch_files, name="mapped-files", daemon=True)
        self._framed_send = SendBuffer()  # the kernel's answers
        self._general_send = SendBuffer()  # those of the general way; both are the framed server's one thread's
        self._framed = (
            FramedServer(config, self._answer_frame, self.metrics, self._answer_quickly)
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
        self._listener.stop(timeout_s)
        if frames is not None:
            frames.join()

    def reload(self) -> None:
        """Read tokens and certificates again."""
        self._listener.reload()
        if self._framed is not None:
            self._framed.token.reload()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _open(self, path: Path) -> tuple[str, LookupHalf]:
        half = open_half(path, self.config, dict(self._loaded.items()).get)
        logger.info("loaded %r", half.release)
        return half.release.version, half

    def _identify(self, path: Path) -> Identity:
        return identify(path, self.config)

    def _fault(self) -> str:
        """Why requests should not come; empty if they should."""
        return self._deployed.state.fault

    def _register(self, server: grpc.Server) -> None:
        lookup_pb2_grpc.add_LookupServicer_to_server(_Servicer(self), server)  # type: ignore[no-untyped-call]
        self._register_admin(self, server, self.config)

    def _lookup(self, request: lookup_pb2.LookupRequest) -> lookup_pb2.LookupAnswer:
        """A lookup whose rows are in the message."""
        started_ns = time.perf_counter_ns()
        try:
            send = self._buffers.pop()
        except IndexError:
            send = SendBuffer()
        try:
            half, all_fetched = self._fetch(request, send)
            tables = [each.describe(rows=bytes(send.read(each.start, each.start + each.num_bytes))) for each in all_fetched]
        finally:
            self._buffers.append(send)
        return lookup_pb2.LookupAnswer(
            version=half.release.version, tables=tables, server_us=self._observe(started_ns), **half.shard_fields
        )

    def _lookup_framed(self, request: lookup_pb2.LookupRequest) -> tuple[bytes, memoryview]:
        """A lookup whose rows go from the mapped tables to where they are sent from, and are copied nowhere else."""
        started_ns = time.perf_counter_ns()
        send = self._general_send
        tables = []
        stop = 0
        half, all_fetched = self._fetch(request, send)
        for fetched in all_fetched:
            tables.append(fetched.describe(num_rows=fetched.num_rows))
            stop = fetched.start + padded(fetched.num_rows * fetched.table.row_bytes)
        answer = lookup_pb2.LookupAnswer(
            version=half.release.version, tables=tables, server_us=self._observe(started_ns), **half.shard_fields
        )
        return answer.SerializeToString(), send.read(0, stop)

    def _fetch(self, request: lookup_pb2.LookupRequest, send: SendBuffer) -> tuple[LookupHalf, list[FetchedRows]]:
        if not request.version:
            raise InvalidRequestError("the request names no version: a lookup must say which half it belongs to")
        with self._loaded.lease(request.version) as (_, half):
            if not half.files.is_whole():
                raise self._changed(request.version, half)
            all_fetched = half.fetch(self._read_ids(request, half), send)
            if not half.files.is_intact():
                raise self._changed(request.version, half)
        self.metrics.count_version(request.version)
        for table, num_rows, num_unknown_ids, _ in all_fetched:
            self.metrics.count_rows(table.name, num_rows, num_unknown_ids)
        tell_rows(request.version, ((each.num_rows, each.num_unknown_ids) for each in all_fetched))
        return half, all_fetched

    def _changed(self, version: str, half: LookupHalf) -> VersionNotLoadedError:
        intact = tuple(held for held, other in self._loaded.items() if not other.files.fault)
        return VersionNotLoadedError(
            f"version {version} is no longer served here: files of {half.release.path} were changed under the server "
            f"({half.files.fault}); served: {', '.join(intact) or 'none'}",
            loaded=intact,
        )

    def _watch_files(self) -> None:
        """Look at the mapped files until the server stops, whether requests come or not; a thread's work."""
        said = self._fault()
        while not self._stopping.wait(_LOOK_EVERY_S):
            for version, half in self._loaded.items():
                if not half.files.examine():
                    self._deployed.note_damage(version)
            fault = self._fault()
            if said != fault:
                said = fault
                logger.warning("%s", f"not ready: {fault}" if fault else "ready again")
                self._listener.set_health(serving=not fault)

    def _read_ids(self, request: lookup_pb2.LookupRequest, half: LookupHalf) -> dict[str, IdArray]:
        """The ids by feature: what is plainly right passes, the rest is looked at closely and refused with its reason."""
        ids: dict[str, IdArray] = {}
        num_bytes = 0
        for message in request.features:
            feature, packed = message.feature, message.int64_ids
            if not packed or len(packed) & 7 or feature in ids or half.id_types.get(feature) != "int64":
                return self._check_ids(request, half)
            ids[feature] = np.frombuffer(packed, _INT64)
            num_bytes += len(packed)
        return ids if num_bytes <= 8 * self.config.max_ids_per_request else self._check_ids(request, half)

    def _check_ids(self, request: lookup_pb2.LookupRequest, half: LookupHalf) -> dict[str, IdArray]:
        id_types = half.id_types
        where = f"version {request.version}"
        features = [message.feature for message in request.features]
        check_features(features, id_types.keys(), where, every=False)
        num_ids = sum(count_ids(message) for message in request.features)
        if num_ids > self.config.max_ids_per_request:
            raise InvalidRequestError(
                f"{num_ids} ids in one request: at most {self.config.max_ids_per_request} are accepted; split it"
            )
        ids = {}
        for feature, message in zip(features, request.features, strict=True):
            ids[feature] = given = unpack_ids(message)
            check_id_type(feature, given, id_types[feature], where)
        return ids

    def _observe(self, started_ns: int) -> int:
        total_us = (time.perf_counter_ns() - started_ns) // 1000
        self.metrics.observe_us({"total": total_us})
        return total_us

    def _answer_frame(self, kind: Kind, message: bytes | bytearray | memoryview) -> tuple[bytes, memoryview]:
        if kind is Kind.LOOKUP:
            request = lookup_pb2.LookupRequest.FromString(message)
            try:
                return self._lookup_framed(request)
            except ServingError as error:
                error.request_id = request.request_id
                raise
        lookup_pb2.LookupDescribeRequest.FromString(message)
        return self._describe().SerializeToString(), memoryview(b"")

    def _answer_quickly(self, frame: memoryview, descriptor: int) -> tuple[memoryview, int] | None:
        """A framed lookup by the compiled kernel; None if it is anything but plainly right."""
        wanted = version_of(frame)
        if wanted not in self._loaded:
            return None
        try:
            with self._loaded.lease(wanted) as (_, half):
                if not half.files.is_whole():
                    return None
                plan = half.plan
                answered = plan.answer(frame, self._framed_send, descriptor)
                if answered is not None and not half.files.is_intact():
                    if answered.num_sent:
                        raise ClosedError  # the rest is never sent, so that what was sent is no answer
                    return None
        except VersionNotLoadedError:  # retired just now
            return None
        if answered is None:
            return None
        counts = answered.counts
        for place, table in enumerate(plan.tables):
            if counts[2 * place]:
                self.metrics.count_rows(table, counts[2 * place], counts[2 * place + 1])
        tell_rows(wanted, (pair for pair in zip(counts[::2], counts[1::2], strict=True) if pair[0]))
        self.metrics.count_version(wanted)
        self.metrics.observe_us({"total": answered.elapsed_us})
        return answered.frame, answered.num_sent

    def _describe(self) -> lookup_pb2.LookupDescription:
        return lookup_pb2.LookupDescription(
            versions=[
                lookup_pb2.LookupVersion(
                    version=version,
                    **half.shard_fields,
                    tables=[
                        lookup_pb2.TableDescription(
                            table=table.name,
                            feature=table.feature,
                            id_type=half.id_types[table.feature],
                            num_rows=table.rows_of(half.release.shard),
                            dim=table.dim,
                            row_bytes=table.row_bytes,
                            precision=table.precision,
                        )
                        for table in half.release.tables
                    ],
                )
                for version, half in self._loaded.items()
                if half.files.is_intact()
            ],
            max_ids_per_request=self.config.max_ids_per_request,
            current_version=self._loaded.current,
        )


class _Servicer(lookup_pb2_grpc.LookupServicer):
    def __init__(self, server: LookupServer):
        self._server = server

    def Lookup(  # noqa: N802
        self, request: lookup_pb2.LookupRequest, context: grpc.ServicerContext
    ) -> lookup_pb2.LookupAnswer:
        return self._server._listener.answer(lambda: self._server._lookup(request), context, request.request_id)

    def Describe(  # noqa: N802
        self,
        request: lookup_pb2.LookupDescribeRequest,  # noqa: ARG002
        context: grpc.ServicerContext,
    ) -> lookup_pb2.LookupDescription:
        return self._server._listener.answer(self._server._describe, context)
