"""Clients of the two servers: synchronous, safe to share between threads, one connection each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt

from serving.answers import LookupAnswer, RankAnswer, read_lookup, read_rank
from serving.channel import open_channel
from serving.errors import (
    BrokenAnswerError,
    DeadlineExceededError,
    InvalidRequestError,
    UnavailableError,
    from_rpc_error,
)
from serving.packing import pack_ids
from serving.protocol import lookup_pb2, lookup_pb2_grpc, ranker_pb2, ranker_pb2_grpc

_MAX_ANSWER_BYTES = 64 << 20


class _Client:
    """The connection that both clients have."""

    _role = "server"

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 1.0,
        tls_ca: Path | None = None,
        tls_certificate: Path | None = None,
        tls_key: Path | None = None,
        max_answer_bytes: int = _MAX_ANSWER_BYTES,
    ):
        self.address = address
        self.timeout_s = timeout_s
        self._channel = open_channel(
            address,
            tls_ca=tls_ca,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
            max_answer_bytes=max_answer_bytes,
        )
        self._attach()

    def _attach(self) -> None:
        """Make the stubs of the service on the channel."""
        raise NotImplementedError

    @property
    def _server(self) -> str:
        return f"{self._role} {self.address}"

    def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        try:
            return method(request, timeout=self.timeout_s if timeout_s is None else timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._server) from error

    def close(self) -> None:
        """Close the connection; requests under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address}, timeout_s={self.timeout_s})"


class PendingLookup:
    """A lookup under way.

    It is called as a stream of one answer, which on the wire is the same thing: gRPC for Python runs such a call on
    the threads that start and read it, but starts a thread of its own for each future, at a third of a millisecond.
    """

    def __init__(self, method: Any, request: lookup_pb2.LookupRequest, server: str, timeout_s: float):
        self._server = server
        self._started_ns = time.perf_counter_ns()
        self._call = method(request, timeout=timeout_s)
        self.elapsed_us = 0
        """Microseconds from sending to reading the answer; 0 until it is read."""

    def cancel(self) -> None:
        """Give it up; safe from any thread."""
        self._call.cancel()

    def result(self) -> LookupAnswer:
        """Wait for the answer.

        Raises:
            ServingError: As `LookupClient.lookup`.
        """
        try:
            answer = next(self._call, None)
            next(self._call, None)  # the end, which came with it: the call is done, and never cancelled behind it
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._server) from error
        self.elapsed_us = (time.perf_counter_ns() - self._started_ns) // 1000
        if answer is None:
            raise BrokenAnswerError(f"{self._server}: it ended the lookup without an answer")
        return read_lookup(answer, self._server)


class LookupClient(_Client):
    """Asks a lookup server for rows.

    Args:
        address: ``host:port`` or ``unix:/path``.
        timeout_s: Deadline of a request that names none, in seconds.
        tls_ca: PEM file of the authority that signed the server's certificate; turns TLS on.
        tls_certificate: PEM file of the client's own certificate chain, for a server that asks for one.
        tls_key: PEM file of that certificate's private key.
        max_answer_bytes: Longest answer accepted, in bytes.
    """

    _role = "lookup server"

    def _attach(self) -> None:
        self._stub = lookup_pb2_grpc.LookupStub(self._channel)  # type: ignore[no-untyped-call]
        self._start = self._channel.unary_stream(
            "/multifacet.serving.v1.Lookup/Lookup",
            request_serializer=lookup_pb2.LookupRequest.SerializeToString,
            response_deserializer=lookup_pb2.LookupAnswer.FromString,
        )

    def lookup(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> LookupAnswer:
        """Rows of every table that the given features feed.

        Args:
            version: Version of the release; it must be loaded.
            ids: External ids [n] by feature, int64 or strings; unknown ids get the out-of-vocabulary row.
            timeout_s: Deadline in seconds.
            request_id: For the server's log.

        Raises:
            InvalidRequestError: Unknown feature, ids of the wrong type, too many.
            VersionNotLoadedError: The version is not loaded; `loaded` has those that are.
            UnavailableError: The server cannot be reached.
            DeadlineExceededError: It took longer than the deadline.
            OverloadedError: Too many requests in hand, or the message is too large.
        """
        return self.start(version, ids, timeout_s=timeout_s, request_id=request_id).result()

    def start(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> PendingLookup:
        """Send a lookup and return at once; see `lookup`."""
        request = lookup_pb2.LookupRequest(
            version=version,
            features=[pack_ids(feature, values) for feature, values in ids.items()],
            request_id=request_id,
        )
        deadline_s = self.timeout_s if timeout_s is None else timeout_s
        return PendingLookup(self._start, request, self._server, deadline_s)

    def describe(self, *, timeout_s: float | None = None) -> lookup_pb2.LookupDescription:
        """What is loaded, and the limits."""
        description: lookup_pb2.LookupDescription = self._call(
            self._stub.Describe, lookup_pb2.LookupDescribeRequest(), timeout_s
        )
        return description

    def wait_for_versions(
        self, versions: Sequence[str], *, timeout_s: float, stopped: Callable[[], bool] = lambda: False
    ) -> lookup_pb2.LookupDescription | None:
        """Wait until the server is up and has all of these versions loaded.

        Args:
            versions: Versions to wait for.
            timeout_s: Longest wait in seconds.
            stopped: Ends the wait early when it says so.

        Returns:
            The server's description; None if `stopped`.

        Raises:
            UnavailableError: It cannot be reached, or lacks a version, until the end of the wait; says which.
        """
        deadline = time.monotonic() + timeout_s
        while not stopped():
            try:
                description = self.describe(timeout_s=min(1.0, timeout_s))
            except (UnavailableError, DeadlineExceededError) as error:
                trouble = str(error)
            else:
                loaded = [entry.version for entry in description.versions]
                missing = [version for version in versions if version not in loaded]
                if not missing:
                    return description
                trouble = f"it has not loaded {', '.join(missing)}; loaded: {', '.join(loaded)}"
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"{self._server} was not ready within {timeout_s:g} s: {trouble}. Start it with the same release, "
                    "or mend the address."
                )
            time.sleep(0.05)
        return None


class RankerClient(_Client):
    """Asks a ranker for scores.

    Args:
        address: ``host:port`` or ``unix:/path``.
        timeout_s: Deadline of a request that names none, in seconds.
        tls_ca: PEM file of the authority that signed the server's certificate; turns TLS on.
        tls_certificate: PEM file of the client's own certificate chain, for a server that asks for one.
        tls_key: PEM file of that certificate's private key.
        max_answer_bytes: Longest answer accepted, in bytes.

    Example:
        ``client.rank({"user": 7}, {"pin": [1, 2], "advertiser": [5, 5]}, dense=np.zeros((2, 3), np.float32))``
    """

    _role = "ranker"

    def _attach(self) -> None:
        self._stub = ranker_pb2_grpc.RankerStub(self._channel)  # type: ignore[no-untyped-call]

    def rank(
        self,
        request_ids: Mapping[str, int | str],
        candidate_ids: Mapping[str, npt.ArrayLike],
        *,
        dense: npt.ArrayLike,
        version: str = "",
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> RankAnswer:
        """Score the candidates of one request.

        Args:
            request_ids: One external id a feature, the same for every candidate: the user.
            candidate_ids: External ids [num_candidates] a feature: pin, advertiser.
            dense: float32 [num_candidates, num_dense], raw, in the order that `describe` gives.
            version: Wanted version; empty for whatever the ranker serves.
            request_id: Comes back in the answer, and goes into logs.
            timeout_s: Deadline in seconds.

        Raises:
            InvalidRequestError: Wrong features, lengths or values; says which.
            VersionNotLoadedError: The version is not loaded here or by the lookup server.
            UnavailableError: The ranker, or its lookup server, cannot be reached.
            DeadlineExceededError: The deadline passed.
            OverloadedError: Too many requests in hand, or the message is too large.
        """
        features = np.asarray(dense, dtype="<f4")
        if features.ndim != 2:
            raise InvalidRequestError(f"dense has shape {features.shape}: expected [num_candidates, num_dense]")
        request = ranker_pb2.RankRequest(
            version=version,
            request_id=request_id,
            num_candidates=len(features),
            request_features=[pack_ids(feature, [value]) for feature, value in request_ids.items()],
            candidate_features=[pack_ids(feature, values) for feature, values in candidate_ids.items()],
            dense=features.tobytes(),
        )
        answer: ranker_pb2.RankAnswer = self._call(self._stub.Rank, request, timeout_s)
        return read_rank(answer, len(features), self._server)

    def describe(self, *, timeout_s: float | None = None) -> ranker_pb2.RankerDescription:
        """What is loaded, the features that a request needs, and the limits."""
        description: ranker_pb2.RankerDescription = self._call(
            self._stub.Describe, ranker_pb2.RankerDescribeRequest(), timeout_s
        )
        return description
