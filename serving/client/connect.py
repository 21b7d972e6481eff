"""Clients of lookup servers from their addresses, whatever carries the requests and however many servers there are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from multifacet.serving.client.framed import FramedLookupClient
from multifacet.serving.client.grpc_clients import MAX_ANSWER_BYTES, LookupClient
from multifacet.serving.client.replicated import ReplicatedLookup
from multifacet.serving.fleet import FRAMED, Fleet
from multifacet.serving.policy import ReplicaPolicy
from multifacet.serving.wire.answers import Shard

if TYPE_CHECKING:
    from multifacet.serving.client.lookups import LookupConnection


def connect_lookup(
    address: str,
    *,
    timeout_s: float = 1.0,
    tls_ca: str | os.PathLike[str] | None = None,
    tls_certificate: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    token_file: str | os.PathLike[str] | None = None,
    max_answer_bytes: int = MAX_ANSWER_BYTES,
    policy: ReplicaPolicy | None = None,
    shard: tuple[int, int] | None = None,
) -> LookupConnection:
    """A client of one lookup server or of a fleet, over frames where an address says ``framed:`` and over gRPC otherwise.

    Args:
        address: ``host:port``, ``unix:/path``, ``framed:host:port`` or ``framed:unix:/path``; several with commas between them
            are servers that hold the same release, and lists with ``|`` between them the shards of a release that was split.
        timeout_s: Deadline of a request that names none, in seconds.
        tls_ca: As `LookupClient`; gRPC only.
        tls_certificate: As `LookupClient`; gRPC only.
        tls_key: As `LookupClient`; gRPC only.
        token_file: File with the token that the servers ask for.
        max_answer_bytes: Longest answer of a server accepted, in bytes; -1 for no limit.
        policy: Retries, hedges and ejection among servers that hold the same.
        shard: To ask one shard of a split release alone, which of how many it is, such as (1, 4): ids of the others then get
            the out-of-vocabulary row. None takes no shard for the whole.

    Raises:
        ValueError: An address is not understood, frames are to travel over TLS, several shards are listed where one is
            to be asked alone, or there is nobody to hedge with.

    Example:
        ``connect_lookup("10.0.0.1:7401,10.0.0.2:7401|10.0.0.3:7401,10.0.0.4:7401")``: two shards of two replicas each.
    """
    fleet = Fleet.parse(address)
    if shard is not None and len(fleet.shards) > 1:
        raise ValueError(f"shard={shard} asks one shard alone, but {address!r} lists {len(fleet.shards)}: leave one out")
    policy = policy or ReplicaPolicy()
    fleet.check_hedging(hedges=policy.hedges)
    fleet.check_tls(wanted=any(file is not None for file in (tls_ca, tls_certificate, tls_key)))

    def connect(server: str, part: Shard) -> LookupConnection:
        if not server.startswith(FRAMED):
            return LookupClient(
                server,
                timeout_s=timeout_s,
                tls_ca=tls_ca,
                tls_certificate=tls_certificate,
                tls_key=tls_key,
                token_file=token_file,
                max_answer_bytes=max_answer_bytes,
                shard=part,
                watched=policy.hedges,
            )
        return FramedLookupClient(
            server, timeout_s=timeout_s, token_file=token_file, max_answer_bytes=max_answer_bytes, shard=part
        )

    numbered = [(Shard(*shard), fleet.shards[0])] if shard is not None else fleet.numbered()
    shards = [
        ReplicatedLookup([connect(server, part) for server in servers], policy=policy, timeout_s=timeout_s)
        if len(servers) > 1
        else connect(servers[0], part)
        for part, servers in numbered
    ]
    if len(shards) == 1:
        return shards[0]
    # Imported here: one server, the usual case, needs no kernel to share ids out.
    from multifacet.serving.client.sharded import ShardedLookup  # noqa: PLC0415

    return ShardedLookup(shards, timeout_s=timeout_s, hedges=policy.hedges)
