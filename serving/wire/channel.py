"""A client's connection: one gRPC channel, kept open and used by all of its requests."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
from grpc.experimental import ChannelOptions

from multifacet.serving.addresses import Address
from multifacet.serving.secrets import check_pair

# A name with several addresses: all of them are used in turns, and looked up anew when one is lost.
_BALANCED = ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}')

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # gRPC sends even loopback traffic through http_proxy if the environment has one.
    ("grpc.enable_http_proxy", 0),
    # By default a server that comes back is tried after 1 s, then ever later, up to 2 minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A connection that goes silent is given up, used or not.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Two clients in one process share no connection, so that closing or losing one never disturbs the other.
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(
    address: str,
    *,
    tls_ca: str | os.PathLike[str] | None = None,
    tls_certificate: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    max_answer_bytes: int,
) -> grpc.Channel:
    """A channel to a server; it connects at the first request and connects again when the server comes back.

    Args:
        address: ``host:port`` or ``unix:/path``.
        tls_ca: PEM file of the authority that signed the server's certificate; None connects in plain text.
        tls_certificate: PEM file of the client's own certificate chain, for a server that asks for one.
        tls_key: PEM file of that certificate's private key.
        max_answer_bytes: Longest answer accepted, in bytes.

    Raises:
        ValueError: The address is not understood, a certificate comes without its key or without `tls_ca`, or they do not
            belong together.
        OSError: The PEM file cannot be read.
    """
    target = Address.parse(address).text
    options = (*_options(address, max_answer_bytes), (ChannelOptions.SingleThreadedUnaryStream, 1))  # see GrpcPendingLookup
    credentials = _credentials(tls_ca, tls_certificate, tls_key)
    if credentials is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, credentials, options=options)


def open_async_channel(
    address: str,
    *,
    tls_ca: str | os.PathLike[str] | None = None,
    tls_certificate: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    max_answer_bytes: int,
) -> grpc.aio.Channel:
    """As `open_channel`, for the event loop that is running."""
    target = Address.parse(address).text
    options = _options(address, max_answer_bytes)
    credentials = _credentials(tls_ca, tls_certificate, tls_key)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, credentials, options=options)


def _options(address: str, max_answer_bytes: int) -> tuple[tuple[str, int | str], ...]:
    # One address is connected to again when it is next used; in turns, all are at once, and then ever later.
    balanced = (_BALANCED,) if Address.parse(address).is_name else ()
    return (
        *_OPTIONS,
        *balanced,
        ("grpc.max_receive_message_length", max_answer_bytes),
        ("grpc.max_send_message_length", -1),
    )


def _credentials(
    tls_ca: str | os.PathLike[str] | None,
    tls_certificate: str | os.PathLike[str] | None,
    tls_key: str | os.PathLike[str] | None,
) -> grpc.ChannelCredentials | None:
    if (tls_certificate is None) != (tls_key is None) or (tls_certificate is not None and tls_ca is None):
        raise ValueError("tls_certificate and tls_key go together, and with tls_ca")
    if tls_ca is None:
        return None
    if tls_certificate is not None and tls_key is not None:
        check_pair(tls_certificate, tls_key)
    return grpc.ssl_channel_credentials(
        root_certificates=Path(tls_ca).read_bytes(),
        private_key=Path(tls_key).read_bytes() if tls_key is not None else None,
        certificate_chain=Path(tls_certificate).read_bytes() if tls_certificate is not None else None,
    )
