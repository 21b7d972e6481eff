"""The HTTP server as a whole process: runs until SIGTERM or SIGINT, then lets requests in flight end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from multifacet.inputs import import_extra
from multifacet.serving.addresses import Address
from multifacet.serving.http.app import make_app
from multifacet.serving.log_limit import limit_log

if TYPE_CHECKING:
    from multifacet.serving.http.app import HttpConfig

__all__ = ["serve_http"]


def serve_http(config: HttpConfig) -> None:
    """Offers a ranker over HTTP until SIGTERM or SIGINT.

    Raises:
        ModuleNotFoundError: The extra `http` is not installed.
        OSError: The address cannot be bound.
        ValueError: A token's file holds none.
    """
    uvicorn = import_extra("uvicorn", "http")
    address = Address.parse(config.listen)
    address.check_free()
    where: dict[str, Any] = (
        {"uds": str(address.unix_path)} if address.unix_path is not None else {"host": address.host, "port": address.port}
    )
    limit_log()
    uvicorn.run(
        make_app(config),
        **where,
        ssl_certfile=config.tls_certificate,
        ssl_keyfile=config.tls_key,
        limit_concurrency=config.max_connections,
        timeout_graceful_shutdown=10,
        access_log=False,
        server_header=False,
        log_config=None,
    )
