"""Clients of the two servers for asyncio: gRPC's own, and which class speaks to which address."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import grpc
import numpy.typing as npt

from multifacet.serving.client.aio.framed import AsyncFramedLookup
from multifacet.serving.client.aio.lookups import AsyncLookupConnection
from multifacet.serving.client.aio.replicated import AsyncReplicatedLookup
from multifacet.serving.client.grpc_clients import ENDING_S, MAX_ANSWER_BYTES
from multifacet.serving.client.grpc_pending import error_of
from multifacet.serving.fleet import FRAMED, Fleet
from multifacet.serving.policy import ReplicaPolicy
from multifacet.serving.protocol import lookup_pb2, lookup_pb2_grpc, ranker_pb2, ranker_pb2_grpc
from multifacet.serving.secrets import ChangingFiles, TokenFile
from multifacet.serving.tracing import client_span, tell_rank, trace_headers
from multifacet.serving.wire.answers import Asked, LookupAnswer, RankAnswer, Shard, read_lookup, read_rank
from multifacet.serving.wire.channel import open_async_channel
from multifacet.serving.wire.packing import pack_ids, pack_rank

logger = logging.getLogger(__name__)


class _Calls:
    """Unary calls on one channel of the running event loop; a new one where certificates changed."""

    def __init__(
        self,
        address: str,
        server: str,
        stub_of: Callable[[grpc.aio.Channel], Any],
        *,
        timeout_s: float,
        tls_ca: str | os.PathLike[str] | None,
        tls_certificate: str | os.PathLike[str] | None,
        tls_key: str | os.PathLike[str] | None,
        token_file: str | os.PathLike[str] | None,
        max_answer_bytes: int,
    ):
        self._token = TokenFile(token_file)
        self._server = server
        self._timeout_s = timeout_s
        self._open = functools.partial(
            open_async_channel,
            address,
            tls_ca=tls_ca,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
            max_answer_bytes=max_answer_bytes,
        )
        self._files = ChangingFiles(tls_ca, tls_certificate, tls_key)
        self._stub_of = stub_of
        self._channel = self._open()
        self._stub = stub_of(self._channel)
        self._closings: set[asyncio.Task[None]] = set()

    async def call(self, method: str, request: Any, timeout_s: float | None) -> Any:
        if self._files.have_changed():
            self._renew()
        deadline_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            return await getattr(self._stub, method)(request, timeout=deadline_s, metadata=trace_headers(self._token.metadata))
        except grpc.RpcError as error:
            raise error_of(error, self._server, cancelled=False) from error

    async def close(self) -> None:
        """Close all connections."""
        for closing in self._closings:
            closing.cancel()
        await self._channel.close()

    def _renew(self) -> None:
        try:
            channel = self._open()
        except (OSError, ValueError) as error:
            logger.error("%s is asked with the certificate of before: %s", self._server, error)  # noqa: TRY400
            return
        # It waits for the calls that are under way, and then cancels them.
        closing = asyncio.get_running_loop().create_task(self._channel.close(grace=ENDING_S))
        self._closings.add(closing)
        closing.add_done_callback(self._closings.discard)
        self._channel, self._stub = channel, self._stub_of(channel)
        logger.info("certificates were read again: a new connection to %s", self._server)


class _GrpcLookup(AsyncLookupConnection):
    """A lookup server over gRPC."""

    def __init__(self, address: str, *, timeout_s: float, shard: Shard, **options: Any):
        self._shard = shard
        self.address = address
        self.timeout_s = timeout_s
        self._calls = _Calls(address, self.server, lookup_pb2_grpc.LookupStub, timeout_s=timeout_s, **options)

    async def lookup(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> LookupAnswer:
        """As `AsyncLookupConnection`."""
        features = [pack_ids(feature, values) for feature, values in ids.items()]
        request = lookup_pb2.LookupRequest(version=version, features=features, request_id=request_id)
        answer = await self._calls.call("Lookup", request, timeout_s)
        return read_lookup(answer, Asked.of(version, self._shard, ids), self.server)

    async def describe(self, *, timeout_s: float | None = None) -> lookup_pb2.LookupDescription:
        """What is loaded, and the limits."""
        description: lookup_pb2.LookupDescription = await self._calls.call(
            "Describe", lookup_pb2.LookupDescribeRequest(), timeout_s
        )
        return description

    async def close(self) -> None:
        """Close the connection."""
        await self._calls.close()


class AsyncLookupClient(AsyncLookupConnection):
    """Asks a lookup server, or a fleet of them, for rows; frames where an address says ``framed:``, gRPC otherwise.

    Make it where the event loop runs.

    Args:
        address: As `serving.connect_lookup` takes it: ``a,b`` are servers that hold the same, ``a|b`` the shards of a release.
        timeout_s: Deadline of a request that names none, in seconds.
        tls_ca: PEM file of the authority that signed the server's certificate; turns TLS on; gRPC only.
        tls_certificate: PEM file of the client's own certificate chain, for a server that asks for one; gRPC only.
        tls_key: PEM file of that certificate's private key; gRPC only.
        token_file: File with the token that the servers ask for.
        max_answer_bytes: Longest answer of a server accepted, in bytes; -1 for no limit.
        policy: Retries, hedges and ejection among servers that hold the same.

    Raises:
        ValueError: An address is not understood, frames are to travel over TLS, or there is nobody to hedge with.

    Example:
        ``async with AsyncLookupClient("framed:unix:/run/lookup.sock") as client: await client.lookup(version, {"pin": [7]})``
    """

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
        policy: ReplicaPolicy | None = None,
    ):
        fleet = Fleet.parse(address)
        policy = policy or ReplicaPolicy()
        fleet.check_hedging(hedges=policy.hedges)
        fleet.check_tls(wanted=any(file is not None for file in (tls_ca, tls_certificate, tls_key)))
        self.address = str(fleet)
        self.timeout_s = timeout_s

        def connect(server: str, shard: Shard) -> AsyncLookupConnection:
            if server.startswith(FRAMED):
                return AsyncFramedLookup(
                    server, timeout_s=timeout_s, token=TokenFile(token_file), max_answer_bytes=max_answer_bytes, shard=shard
                )
            return _GrpcLookup(
                server,
                timeout_s=timeout_s,
                tls_ca=tls_ca,
                tls_certificate=tls_certificate,
                tls_key=tls_key,
                token_file=token_file,
                max_answer_bytes=max_answer_bytes,
                shard=shard,
            )

        shards = [
            AsyncReplicatedLookup([connect(server, shard) for server in servers], policy=policy, timeout_s=timeout_s)
            if len(servers) > 1
            else connect(servers[0], shard)
            for shard, servers in fleet.numbered()
        ]
        self._connection = shards[0]
        if len(shards) > 1:
            # Imported here: one server, the usual case, needs no kernel to share ids out.
            from multifacet.serving.client.aio.sharded import AsyncShardedLookup  # noqa: PLC0415

            self._connection = AsyncShardedLookup(shards, timeout_s=timeout_s)

    @property
    def server(self) -> str:
        """How messages name the other end."""
        return self._connection.server

    def counters(self) -> Mapping[str, int]:
        """Retries, hedges, ejections: how many there were, if there are several servers."""
        return self._connection.counters()

    async def lookup(
        self, version: str, ids: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None, request_id: str = ""
    ) -> LookupAnswer:
        """Rows of every table that the given features feed; arguments and errors as `LookupConnection.lookup`."""
        return await self._connection.lookup(version, ids, timeout_s=timeout_s, request_id=request_id)

    async def describe(self, *, timeout_s: float | None = None) -> lookup_pb2.LookupDescription:
        """What is loaded, and the limits."""
        return await self._connection.describe(timeout_s=timeout_s)

    async def close(self) -> None:
        """Close the connections; requests under way are cancelled."""
        await self._connection.close()


class AsyncRankerClient:
    """Asks a ranker for scores; make it where the event loop runs.

    Args:
        address: ``host:port`` or ``unix:/path``.
        timeout_s: Deadline of a request that names none, in seconds.
        tls_ca: As `AsyncLookupClient`.
        tls_certificate: As `AsyncLookupClient`.
        tls_key: As `AsyncLookupClient`.
        token_file: File with the token that the server asks for.
        max_answer_bytes: Longest answer accepted, in bytes.
    """

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
        self._calls = _Calls(
            address,
            self.server,
            ranker_pb2_grpc.RankerStub,
            timeout_s=timeout_s,
            tls_ca=tls_ca,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
            token_file=token_file,
            max_answer_bytes=max_answer_bytes,
        )

    @property
    def server(self) -> str:
        """How messages name the other end."""
        return f"ranker {self.address}"

    async def rank(
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
        """Score the candidates of one request; arguments and errors as `RankerClient.rank`."""
        request = pack_rank(request_ids, candidate_ids, dense, sequences=sequences, version=version, request_id=request_id)
        with client_span("rank", request__id=request_id, server_address=self.address) as hop:
            answer: ranker_pb2.RankAnswer = await self._calls.call("Rank", request, timeout_s)
            tell_rank(hop, answer)
            return read_rank(answer, request.num_candidates, self.server)

    async def describe(self, *, timeout_s: float | None = None) -> ranker_pb2.RankerDescription:
        """What is loaded, the features that a request needs, and the limits."""
        description: ranker_pb2.RankerDescription = await self._calls.call(
            "Describe", ranker_pb2.RankerDescribeRequest(), timeout_s
        )
        return description

    async def close(self) -> None:
        """Close the connection; requests under way are cancelled."""
        await self._calls.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
