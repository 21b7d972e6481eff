"""Clients of the two servers over gRPC: synchronous, safe to share between threads, one connection each."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import grpc
import numpy.typing as npt

from multifacet.serving.client.grpc_pending import GrpcPendingLookup, GrpcWatchedLookup, error_of
from multifacet.serving.client.lookups import LookupConnection
from multifacet.serving.protocol import lookup_pb2, lookup_pb2_grpc, ranker_pb2, ranker_pb2_grpc
from multifacet.serving.secrets import ChangingFiles, TokenFile
from multifacet.serving.tracing import client_span, tell_lookup, tell_rank, trace_headers
from multifacet.serving.wire.answers import WHOLE, Asked, LookupAnswer, RankAnswer, Shard, read_lookup, read_rank
from multifacet.serving.wire.channel import open_channel
from multifacet.serving.wire.packing import pack_ids, pack_rank

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 64 << 20
ENDING_S = 60.0
"""How long requests may go on over a connection that was replaced."""


class _Client:
    """The connection that both clients have."""

    _role = "server"

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 1.0,
        tls_ca: str | os.PathLike[str] | None = None,
        tls_certificate: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        token_file: str | os.PathLike[str] | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ):
        self.address = address
        self.timeout_s = timeout_s
        self._token = TokenFile(token_file)
        self._open = functools.partial(
            open_channel,
            address,
            tls_ca=tls_ca,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
            max_answer_bytes=max_answer_bytes,
        )
        self._files = ChangingFiles(tls_ca, tls_certificate, tls_key)
        self._renewing = threading.Lock()
        self._ending: list[threading.Timer] = []
        self._channel = self._open()
        self._attach()

    def _attach(self) -> None:
        """Make the stubs of the service on the channel."""
        raise NotImplementedError

    @property
    def server(self) -> str:
        """How messages name the other end."""
        return f"{self._role} {self.address}"

    def _renew(self) -> None:
        """Connect anew where certificates changed; what is under way ends on the connection that it began on."""
        if not self._files.have_changed():
            return
        with self._renewing:
            try:
                channel = self._open()
            except (OSError, ValueError) as error:
                # The files are replaced one after the other: the next look may find a pair.
                logger.error("%s is asked with the certificate of before: %s", self.server, error)  # noqa: TRY400
                return
            ending = threading.Timer(ENDING_S, self._channel.close)
            ending.daemon = True
            ending.start()
            self._ending = [*(timer for timer in self._ending if timer.is_alive()), ending]
            self._channel = channel
            self._attach()
        logger.info("certificates were read again: a new connection to %s", self.server)

    def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        try:
            deadline_s = self.timeout_s if timeout_s is None else timeout_s
            return method(request, timeout=deadline_s, metadata=trace_headers(self._token.metadata))
        except grpc.RpcError as error:
            raise error_of(error, self.server, cancelled=False) from error

    def close(self) -> None:
        """Close the connection; requests under way are cancelled."""
        self._channel.close()
        for timer in self._ending:
            timer.cancel()
            timer.function()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address}, timeout_s={self.timeout_s})"


class LookupClient(_Client, LookupConnection):
    """Asks a lookup server for rows.

    Args:
        address: ``host:port`` or ``unix:/path``.
        timeout_s: Deadline of a request that names none, in seconds.
        tls_ca: PEM file of the authority that signed the server's certificate; turns TLS on.
        tls_certificate: PEM file of the client's own certificate chain, for a server that asks for one.
        tls_key: PEM file of that certificate's private key.
        token_file: File with the token that the server asks for.
        max_answer_bytes: Longest answer accepted, in bytes.
        shard: Which part of a split release the server must hold; rows from another are refused.
        watched: Whether lookups say when their answer is there, which `serving.client.waiting.Watch` needs and which takes a
            thread.
    """

    _role = "lookup server"

    def __init__(self, address: str, *, shard: Shard = WHOLE, watched: bool = False, **options: Any):
        super().__init__(address, **options)
        self.shard = shard
        self._watched = watched

    def _attach(self) -> None:
        self._stub = lookup_pb2_grpc.LookupStub(self._channel)  # type: ignore[no-untyped-call]
        self._start = self._channel.unary_stream(
            "/multifacet.serving.v1.Lookup/Lookup",
            request_serializer=lookup_pb2.LookupRequest.SerializeToString,
            response_deserializer=lookup_pb2.LookupAnswer.FromString,
        )

    def start(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> GrpcPendingLookup | GrpcWatchedLookup:
        """Send a lookup and return at once; see `lookup`."""
        self._renew()
        request = _request(version, ids, request_id)
        deadline_s = self.timeout_s if timeout_s is None else timeout_s
        asked = Asked.of(version, self.shard, ids)
        metadata = trace_headers(self._token.metadata)
        if self._watched:
            return GrpcWatchedLookup(self._stub.Lookup, request, asked, self.server, deadline_s, metadata)
        return GrpcPendingLookup(self._start, request, asked, self.server, deadline_s, metadata)

    def lookup(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> LookupAnswer:
        """As `LookupConnection.lookup`, by a call that waits: gRPC takes 0.25 ms longer for one under way."""
        with client_span("lookup", request__id=request_id, version=version, server_address=self.address) as hop:
            self._renew()
            request = _request(version, ids, request_id)
            answer = read_lookup(
                self._call(self._stub.Lookup, request, timeout_s), Asked.of(version, self.shard, ids), self.server
            )
            tell_lookup(hop, answer)
            return answer

    def describe(self, *, timeout_s: float | None = None) -> lookup_pb2.LookupDescription:
        """What is loaded, and the limits."""
        self._renew()
        description: lookup_pb2.LookupDescription = self._call(
            self._stub.Describe, lookup_pb2.LookupDescribeRequest(), timeout_s
        )
        return description


def _request(version: str, ids: Mapping[str, npt.ArrayLike], request_id: str) -> lookup_pb2.LookupRequest:
    features = [pack_ids(feature, values) for feature, values in ids.items()]
    return lookup_pb2.LookupRequest(version=version, features=features, request_id=request_id)


class RankerClient(_Client):
    """Asks a ranker for scores.

    Args:
        address: ``host:port`` or ``unix:/path``.
        timeout_s: Deadline of a request that names none, in seconds.
        tls_ca: PEM file of the authority that signed the server's certificate; turns TLS on.
        tls_certificate: PEM file of the client's own certificate chain, for a server that asks for one.
        tls_key: PEM file of that certificate's private key.
        token_file: File with the token that the server asks for.
        max_answer_bytes: Longest answer accepted, in bytes.

    Example:
        ``client.rank({"user": 7}, {"pin": [1, 2], "advertiser": [5, 5]}, dense=np.zeros((2, 3), np.float32))``
    """

    _role = "ranker"

    def _attach(self) -> None:
        self._stub = ranker_pb2_grpc.RankerStub(self._channel)  # type: ignore[no-untyped-call]

    def rank(
        self,
        request_ids: Mapping[str, int | str | npt.ArrayLike],
        candidate_ids: Mapping[str, npt.ArrayLike],
        *,
        dense: npt.ArrayLike,
        sequences: Mapping[str, npt.ArrayLike] | None = None,
        version: str = "",
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> RankAnswer:
        """Score the candidates of one request.

        Args:
            request_ids: One external id a feature, the same for every candidate: the user. A list of ids of a feature that
                has several: {"user": 7, "interests": ["bikes", "tea"]}.
            candidate_ids: External ids [num_candidates] a feature: pin, advertiser. A list of ids a candidate of a feature
                that has several: {"pin": [1, 2], "tags": [["red", "new"], []]}; of a longer list than the model reads
                the first ids count, as in training.
            dense: float32 [num_candidates, num_dense], raw, in the order that `describe` gives.
            sequences: External ids [n] of the user's sequences by name ({"recent_pins": [...]}), the latest first, if the model
                reads one; [] is an empty history. A version that reads none passes them by.
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
        self._renew()
        request = pack_rank(request_ids, candidate_ids, dense, sequences=sequences, version=version, request_id=request_id)
        with client_span("rank", request__id=request_id, server_address=self.address) as hop:
            answer: ranker_pb2.RankAnswer = self._call(self._stub.Rank, request, timeout_s)
            tell_rank(hop, answer)
            return read_rank(answer, request.num_candidates, self.server)

    def describe(self, *, timeout_s: float | None = None) -> ranker_pb2.RankerDescription:
        """What is loaded, the features that a request needs, and the limits."""
        self._renew()
        description: ranker_pb2.RankerDescription = self._call(
            self._stub.Describe, ranker_pb2.RankerDescribeRequest(), timeout_s
        )
        return description
