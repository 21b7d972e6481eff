"""The lookup server: the CPU half of releases, rows by id."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import numpy as np
import numpy.typing as npt

from serving.admin import AdminServicer
from serving.config import LookupConfig
from serving.deployed import Deployed
from serving.errors import InvalidRequestError
from serving.framed_server import FramedServer
from serving.frames import Kind, padded
from serving.gather import SendBuffer, gather
from serving.listener import Listener
from serving.metrics import ServerMetrics
from serving.packing import IdArray, check_features, check_id_type, count_ids, unpack_ids
from serving.protocol import admin_pb2, admin_pb2_grpc, lookup_pb2, lookup_pb2_grpc
from serving.release import Release, ReleaseTable
from serving.versions import LoadedVersions
from tables.idmap import IdMap

logger = logging.getLogger(__name__)

SERVICE = "multifacet.serving.v1.Lookup"


@dataclass(frozen=True, slots=True)
class FoundRows:
    """Rows of one table, found and not yet read.

    Attributes:
        table: The table.
        stored: uint8 [table.rows, row_bytes]: all of its rows, mapped.
        rows: int32 [num_ids], the row of each id.
        num_unknown_ids: How many of them are the out-of-vocabulary row.
    """

    table: ReleaseTable
    stored: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.int32]
    num_unknown_ids: int

    @property
    def num_bytes(self) -> int:
        """The length of the rows, back to back."""
        return len(self.rows) * self.table.row_bytes

    def describe(self) -> lookup_pb2.TableRows:
        """The table's part of an answer, without the rows."""
        table = self.table
        return lookup_pb2.TableRows(
            table=table.name,
            row_bytes=table.row_bytes,
            dim=table.dim,
            precision=table.precision,
            num_unknown_ids=self.num_unknown_ids,
        )


class LookupHalf:
    """The lookup half of one release, mapped into memory.

    Args:
        release: An open release.
        populate: Whether to map all pages of the tables now.
    """

    def __init__(self, release: Release, *, populate: bool = True):
        self.release = release
        self._rows: dict[str, npt.NDArray[np.uint8]] = {
            table.name: release.map_rows(table, populate=populate) for table in release.tables
        }
        self._id_maps: dict[str, IdMap] = {
            name: release.id_map(name) for name in sorted({table.id_map for table in release.tables})
        }
        for table in release.tables:
            id_map = self._id_maps[table.id_map]
            if id_map.num_rows != table.rows or id_map.num_hashes != 1:
                raise ValueError(
                    f"{release.path}: table {table.name!r} has {table.rows} rows, its id map maps to {id_map.num_rows} "
                    f"by {id_map.num_hashes} hashes; publish the model again"
                )
        for id_map in self._id_maps.values():  # compiles the look-up kernels, or reads their cache, before serving
            id_map.rows(np.zeros(1, np.int64) if id_map.id_type == "int64" else [""])
        for table in release.tables:
            gather(self._rows[table.name], np.zeros(1, np.int32), np.empty(table.row_bytes, np.uint8))

    def find(self, ids: Mapping[str, IdArray]) -> list[FoundRows]:
        """Where the rows of every table are that the features feed.

        Args:
            ids: External ids [n] by feature; each feature one of the release's.

        Returns:
            One entry a table, in the release's order of tables.
        """
        found: dict[tuple[str, str], tuple[npt.NDArray[np.int32], int]] = {}
        answers = []
        for table in self.release.tables:
            if table.feature not in ids:
                continue
            key = (table.feature, table.id_map)
            if key not in found:
                found[key] = self._find(table, ids[table.feature])
            answers.append(FoundRows(table, self._rows[table.name], *found[key]))
        return answers

    def _find(self, table: ReleaseTable, ids: IdArray) -> tuple[npt.NDArray[np.int32], int]:
        if not len(ids):
            return np.empty(0, np.int32), 0
        id_map = self._id_maps[table.id_map]
        rows = id_map.rows(ids)
        if id_map.oov_row is None:  # hashed: every id has a row
            return rows, 0
        return rows, int(np.count_nonzero(rows == id_map.oov_row))


class LookupServer:
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
        self._deployed = Deployed(self._loaded, self._open, state_file=config.state_file)
        self._deployed.open(config.releases)
        self._listener = Listener(config, role="lookup", service=SERVICE, register=self._register, metrics=self.metrics)
        self._send_buffer = SendBuffer()
        self._framed = FramedServer(config, self._answer_frame, self.metrics) if config.framed_listen is not None else None

    @property
    def framed_address(self) -> str:
        """Where it takes frames, as clients name it; empty before `start`, and if nowhere."""
        return f"framed:{self._framed.address}" if self._framed is not None and self._framed.address else ""

    @property
    def address(self) -> str:
        """The bound address; empty before `start`."""
        return self._listener.address

    @property
    def metrics_address(self) -> str:
        """Where Prometheus may scrape; empty if nowhere."""
        return self._listener.metrics_address

    @property
    def versions(self) -> tuple[str, ...]:
        """The loaded versions, the oldest first."""
        return self._loaded.versions

    def load(self, path: str | os.PathLike[str]) -> str:
        """Load a release beside those that are there; while it fails or runs, the others are served as before.

        Returns:
            Its version.

        Raises:
            ArtifactError: The release is damaged; the file is named.
        """
        return self._deployed.load(Path(path).absolute(), current=True)

    def choose(self, version: str) -> None:
        """Make a version the one that cannot be retired.

        Raises:
            VersionNotLoadedError: It is not loaded.
        """
        self._deployed.choose(version)

    def retire(self, version: str, *, timeout_s: float = 0.0) -> None:
        """Forget a version; requests under way still get their rows from it.

        Args:
            version: A version; one that is not loaded is retired already.
            timeout_s: How long to wait for those requests.

        Raises:
            ValueError: It is the current one: load or choose another first.
            OverloadedError: It still has readers after that time; it stays.
        """
        self._deployed.retire(version, timeout_s)
        logger.info("retired version %s", version)

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
                    version=version, path=str(self._deployed.path(version) or ""), readers=self._loaded.num_readers(version)
                )
                for version in self._loaded.versions
            ],
        )

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
        return self._listener.start({"versions": list(self.versions), "framed_address": self.framed_address})

    def stop(self, drain_timeout_s: float | None = None) -> None:
        """Drain and stop; see `Listener.stop`."""
        if self._framed is not None:
            self._framed.stop(self.config.drain_timeout_s if drain_timeout_s is None else drain_timeout_s)
        self._listener.stop(drain_timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _open(self, path: Path) -> tuple[str, LookupHalf]:
        release = Release.open(path, verify=self.config.verify, half="lookup")
        half = LookupHalf(release, populate=self.config.populate)
        logger.info("loaded %r", release)
        return release.version, half

    def _register(self, server: grpc.Server) -> None:
        lookup_pb2_grpc.add_LookupServicer_to_server(_Servicer(self), server)  # type: ignore[no-untyped-call]
        config = self.config
        if config.admin_releases is not None:
            servicer = AdminServicer(self, config.admin_releases, config.drain_timeout_s, lambda: self._listener)
            admin_pb2_grpc.add_AdminServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]

    def _lookup(self, request: lookup_pb2.LookupRequest) -> lookup_pb2.LookupAnswer:
        """A lookup whose rows are in the message."""
        started_ns = time.perf_counter_ns()
        tables = []
        with self._lease(request) as half:
            for found in self._find(request, half):
                rows = np.empty(found.num_bytes, np.uint8)
                gather(found.stored, found.rows, rows)
                tables.append(found.describe())
                tables[-1].rows = rows.tobytes()
        return lookup_pb2.LookupAnswer(version=request.version, tables=tables, server_us=self._observe(started_ns))

    def _lookup_framed(self, request: lookup_pb2.LookupRequest) -> tuple[bytes, memoryview]:
        """A lookup whose rows go from the mapped tables to where they are sent from, and are copied nowhere else."""
        started_ns = time.perf_counter_ns()
        tables = []
        start = 0
        with self._lease(request) as half:
            all_found = self._find(request, half)
            rows = self._send_buffer.take(sum(padded(found.num_bytes) for found in all_found))
            for found in all_found:
                gather(found.stored, found.rows, rows[start : start + found.num_bytes])
                rows[start + found.num_bytes : start + padded(found.num_bytes)] = 0
                start += padded(found.num_bytes)
                tables.append(found.describe())
                tables[-1].num_rows = len(found.rows)
        answer = lookup_pb2.LookupAnswer(version=request.version, tables=tables, server_us=self._observe(started_ns))
        return answer.SerializeToString(), rows.data

    @contextmanager
    def _lease(self, request: lookup_pb2.LookupRequest) -> Iterator[LookupHalf]:
        if not request.version:
            raise InvalidRequestError("the request names no version: a lookup must say which half it belongs to")
        with self._loaded.lease(request.version) as (_, half):
            yield half

    def _find(self, request: lookup_pb2.LookupRequest, half: LookupHalf) -> list[FoundRows]:
        id_types = half.release.manifest.id_types
        where = f"version {request.version}"
        check_features([message.feature for message in request.features], list(id_types), where, every=False)
        num_ids = sum(count_ids(message) for message in request.features)
        if num_ids > self.config.max_ids_per_request:
            raise InvalidRequestError(
                f"{num_ids} ids in one request: at most {self.config.max_ids_per_request} are accepted; split it"
            )
        ids = {message.feature: unpack_ids(message) for message in request.features}
        for feature, given in ids.items():
            check_id_type(feature, given, id_types[feature], where)
        all_found = half.find(ids)
        for found in all_found:
            self.metrics.count_rows(found.table.name, len(found.rows), found.num_unknown_ids)
        return all_found

    def _observe(self, started_ns: int) -> int:
        total_us = (time.perf_counter_ns() - started_ns) // 1000
        self.metrics.observe_us({"total": total_us})
        return total_us

    def _answer_frame(self, kind: Kind, message: bytes | bytearray | memoryview) -> tuple[bytes, memoryview]:
        if kind is Kind.LOOKUP:
            return self._lookup_framed(lookup_pb2.LookupRequest.FromString(message))
        lookup_pb2.LookupDescribeRequest.FromString(message)
        return self._describe().SerializeToString(), memoryview(b"")

    def _describe(self) -> lookup_pb2.LookupDescription:
        return lookup_pb2.LookupDescription(
            versions=[
                lookup_pb2.LookupVersion(
                    version=version,
                    tables=[
                        lookup_pb2.TableDescription(
                            table=table.name,
                            feature=table.feature,
                            id_type=half.release.manifest.id_types[table.feature],
                            num_rows=table.rows,
                            dim=table.dim,
                            row_bytes=table.row_bytes,
                            precision=table.precision,
                        )
                        for table in half.release.tables
                    ],
                )
                for version, half in self._loaded.items()
            ],
            max_ids_per_request=self.config.max_ids_per_request,
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
