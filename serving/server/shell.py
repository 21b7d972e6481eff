"""What a lookup server and a ranker have in common: the versions that they hold, and how they are told about them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Generic, TypeVar

from multifacet.serving.protocol import admin_pb2_grpc
from multifacet.serving.server.admin import AdminServicer

if TYPE_CHECKING:
    import grpc

    from multifacet.serving.config import ListenConfig
    from multifacet.serving.server.admin import Administered
    from multifacet.serving.server.deployed import Deployed
    from multifacet.serving.server.listener import Listener
    from multifacet.serving.server.versions import LoadedVersions

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ServerShell(Generic[T]):
    """A server's addresses and versions: the base of both servers, which set its attributes."""

    _loaded: LoadedVersions[T]
    _deployed: Deployed[T]
    _listener: Listener

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

    def choose(self, version: str) -> None:
        """Make a version the current one: the one that cannot be retired, and that requests without a version get.

        A ranker first sees that its lookup server has it.

        Raises:
            VersionNotLoadedError: It is not loaded here, or not there; the current version stays.
            UnavailableError: The lookup server cannot be reached; the current version stays.
        """
        self._deployed.choose(version)

    def retire(self, version: str, *, timeout_s: float = 0.0) -> None:
        """Forget a version; requests under way still end with it.

        Args:
            version: A version; one that is not loaded is retired already.
            timeout_s: How long to wait for those requests.

        Raises:
            ValueError: It is the current one: load or choose another first.
            OverloadedError: It still has readers after that time; it stays.
        """
        self._deployed.retire(version, timeout_s)
        logger.info("retired version %s", version)

    def _register_admin(self, administered: Administered, server: grpc.Server, config: ListenConfig) -> None:
        """Take orders about versions, where the configuration lets somebody give them."""
        if config.admin_releases is not None:
            servicer = AdminServicer(administered, config.admin_releases, config.drain_timeout_s, lambda: self._listener)
            admin_pb2_grpc.add_AdminServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
