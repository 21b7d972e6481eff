"""Clients of lookup servers from their addresses, whatever carries the requests and however many servers there are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from serving.client import MAX_ANSWER_BYTES, LookupClient
from serving.fleet import FRAMED, Fleet
from serving.framed_client import FramedLookupClient
from serving.policy import ReplicaPolicy
from serving.replicated import ReplicatedLookup

if TYPE_CHECKING:
    from serving.lookups import LookupConnection


def connect_lookup(
    address: str,
    *,
    timeout_s: float = 1.0,
    tls_ca: Path | None = None,
    tls_certificate: Path | None = None,
    tls_key: Path | None = None,
    token_file: Path | None = None,
    max_answer_bytes: int = MAX_ANSWER_BYTES,
    policy: ReplicaPolicy | None = None,
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

    Raises:
        ValueError: An address is not understood, frames are to travel over TLS, or there is nobody to hedge with.

    Example:
        ``connect_lookup("10.0.0.1:7401,10.0.0.2:7401|10.0.0.3:7401,10.0.0.4:7401")``: two shards of two replicas each.
    """
    fleet = Fleet.parse(address)
    policy = policy or ReplicaPolicy()
    fleet.check_hedging(hedges=policy.hedges)
    fleet.check_tls(wanted=any(file is not None for file in (tls_ca, tls_certificate, tls_key)))

    def connect(server: str) -> LookupConnection:
        if not server.startswith(FRAMED):
            return LookupClient(
                server,
                timeout_s=timeout_s,
                tls_ca=tls_ca,
                tls_certificate=tls_certificate,
                tls_key=tls_key,
                token_file=token_file,
                max_answer_bytes=max_answer_bytes,
                watched=policy.hedges,
            )
        return FramedLookupClient(server, timeout_s=timeout_s, token_file=token_file, max_answer_bytes=max_answer_bytes)

    shards = [
        ReplicatedLookup([connect(server) for server in shard], policy=policy, timeout_s=timeout_s)
        if len(shard) > 1
        else connect(shard[0])
        for shard in fleet.shards
    ]
    if len(shards) == 1:
        return shards[0]
    # Imported here: one server, the usual case, needs no kernel to share ids out.
    from serving.sharded import ShardedLookup  # noqa: PLC0415

    return ShardedLookup(shards, timeout_s=timeout_s, hedges=policy.hedges)
