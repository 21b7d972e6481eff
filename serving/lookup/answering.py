"""Answers to lookups from the versions that a process holds: over gRPC, over frames, and by the compiled kernel."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from multifacet.serving.errors import InvalidRequestError, ServingError, VersionNotLoadedError
from multifacet.serving.framed.connection import ClosedError
from multifacet.serving.lookup.kernel_plan import version_of
from multifacet.serving.lookup.rows import SendBuffer
from multifacet.serving.protocol import lookup_pb2
from multifacet.serving.tracing import tell_rows
from multifacet.serving.wire.frames import Kind, padded
from multifacet.serving.wire.packing import IdArray, check_features, check_id_type, count_ids, pack_answer, unpack_ids

if TYPE_CHECKING:
    from multifacet.serving.config import LookupConfig
    from multifacet.serving.lookup.mapped_release import FetchedRows, LookupHalf
    from multifacet.serving.server.metrics import ServerMetrics
    from multifacet.serving.server.versions import LoadedVersions

_INT64 = np.dtype("<i8")


class LookupAnswers:
    """What a lookup server and its worker processes have in common: the base of both.

    Args:
        config: Limits.
        loaded: The versions that are held.
        metrics: Where requests are counted.
    """

    def __init__(self, config: LookupConfig, loaded: LoadedVersions[LookupHalf], metrics: ServerMetrics):
        self.config = config
        self._loaded = loaded
        self.metrics = metrics
        self._buffers: deque[SendBuffer] = deque()  # as many as requests were ever worked on at once
        self._framed_send = SendBuffer()  # the kernel's answers
        self._general_send = SendBuffer()  # those of the general way; both are the framed server's one thread's

    def _lookup(self, request: lookup_pb2.LookupRequest) -> bytes:
        """A lookup whose rows are in the message, which is put together by one copy of them."""
        started_ns = time.perf_counter_ns()
        try:
            send = self._buffers.pop()
        except IndexError:
            send = SendBuffer()
        try:
            half, all_fetched = self._fetch(request, send)
            tables = [(each.describe(), send.read(each.start, each.start + each.num_bytes)) for each in all_fetched]
            answer = lookup_pb2.LookupAnswer(version=half.release.version, tables=(), server_us=0, **half.shard_fields)
            answer.server_us = self._observe(started_ns)
            return pack_answer(answer, tables)
        finally:
            self._buffers.append(send)

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
