"""Control of a live server: the Admin service, and its client."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import grpc

from multifacet.artifacts import ArtifactError
from multifacet.serving.errors import InvalidRequestError, UnavailableError, from_rpc_error
from multifacet.serving.protocol import admin_pb2, admin_pb2_grpc
from multifacet.serving.secrets import TokenFile
from multifacet.serving.server.deployed import inside
from multifacet.serving.wire.channel import open_channel

if TYPE_CHECKING:
    from multifacet.serving.server.listener import Listener

_RETRY_S = 0.1


class Administered(Protocol):
    """A server that can be told what to serve."""

    def load(self, path: Path, *, current: bool) -> str:
        """Load a release beside the others."""
        ...

    def choose(self, version: str) -> None:
        """Make a version the current one."""

    def retire(self, version: str, *, timeout_s: float) -> None:
        """Forget a version once its last reader is done."""

    def shadow(self, version: str, share: float) -> None:
        """Score a share of the requests with another version as well."""

    def status(self) -> admin_pb2.ServerStatus:
        """What is loaded, and who reads it."""
        ...


class AdminServicer(admin_pb2_grpc.AdminServicer):
    """Turns calls into those of the server.

    Args:
        server: What is administered.
        releases: Folder below which releases may be loaded from.
        drain_timeout_s: How long a retired version may keep readers.
        listener: Gives the listener, which checks the token and tells errors.
    """

    def __init__(self, server: Administered, releases: Path, drain_timeout_s: float, listener: Callable[[], Listener]):
        self._server = server
        self._releases = releases
        self._drain_timeout_s = drain_timeout_s
        self._listener = listener

    def Load(self, request: admin_pb2.LoadRequest, context: grpc.ServicerContext) -> admin_pb2.ServerStatus:  # noqa: N802
        """Load a release."""
        return self._do(lambda: self._server.load(inside(request.path, self._releases), current=False), context)

    def Choose(self, request: admin_pb2.VersionRequest, context: grpc.ServicerContext) -> admin_pb2.ServerStatus:  # noqa: N802
        """Choose a version."""
        return self._do(lambda: self._server.choose(request.version), context)

    def Retire(self, request: admin_pb2.VersionRequest, context: grpc.ServicerContext) -> admin_pb2.ServerStatus:  # noqa: N802
        """Retire a version."""
        return self._do(lambda: self._server.retire(request.version, timeout_s=self._drain_timeout_s), context)

    def Shadow(self, request: admin_pb2.ShadowRequest, context: grpc.ServicerContext) -> admin_pb2.ServerStatus:  # noqa: N802
        """Set the shadow."""
        return self._do(lambda: self._server.shadow(request.version, request.share), context)

    def Status(self, request: admin_pb2.StatusRequest, context: grpc.ServicerContext) -> admin_pb2.ServerStatus:  # noqa: N802, ARG002
        """Tell what is held."""
        return self._do(lambda: None, context)

    def _do(self, change: Callable[[], object], context: grpc.ServicerContext) -> admin_pb2.ServerStatus:
        def call() -> admin_pb2.ServerStatus:
            try:
                change()
            except (ArtifactError, ValueError) as error:
                raise InvalidRequestError(str(error)) from error
            return self._server.status()

        return self._listener().answer(call, context)


class AdminClient:
    """Tells one live server what to serve.

    A server that cannot be reached is tried again until the deadline: one that was killed comes back with what it had.

    Args:
        address: ``host:port`` or ``unix:/path``.
        token_file: File with the server's admin token.
        timeout_s: How long one change may take, a restart of the server included.
        tls_ca: PEM file of the authority that signed the server's certificate; turns TLS on.
        tls_certificate: PEM file of the client's own certificate chain, for a server that asks for one.
        tls_key: PEM file of that certificate's private key.
    """

    def __init__(
        self,
        address: str,
        *,
        token_file: str | os.PathLike[str],
        timeout_s: float = 60.0,
        tls_ca: str | os.PathLike[str] | None = None,
        tls_certificate: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
    ):
        self.address = address
        self.timeout_s = timeout_s
        self._token = TokenFile(token_file)
        self._channel = open_channel(
            address, tls_ca=tls_ca, tls_certificate=tls_certificate, tls_key=tls_key, max_answer_bytes=1 << 20
        )
        self._stub = admin_pb2_grpc.AdminStub(self._channel)  # type: ignore[no-untyped-call]

    def load(self, path: str | os.PathLike[str]) -> admin_pb2.ServerStatus:
        """Load a release beside the others.

        Raises:
            ServingError: It is damaged, or not below the server's folder; or the server does not answer in time.
        """
        return self._call(self._stub.Load, admin_pb2.LoadRequest(path=os.fspath(path)))

    def choose(self, version: str) -> admin_pb2.ServerStatus:
        """Make a version the current one; a ranker checks that its lookup server has it."""
        return self._call(self._stub.Choose, admin_pb2.VersionRequest(version=version))

    def retire(self, version: str) -> admin_pb2.ServerStatus:
        """Forget a version once its last reader is done."""
        return self._call(self._stub.Retire, admin_pb2.VersionRequest(version=version))

    def shadow(self, version: str, share: float) -> admin_pb2.ServerStatus:
        """Score a share of a ranker's requests with another version as well; an empty version ends it."""
        return self._call(self._stub.Shadow, admin_pb2.ShadowRequest(version=version, share=share))

    def status(self) -> admin_pb2.ServerStatus:
        """What the server holds."""
        return self._call(self._stub.Status, admin_pb2.StatusRequest())

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _call(self, method: Any, request: Any) -> admin_pb2.ServerStatus:
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                answer: admin_pb2.ServerStatus = method(
                    request, timeout=max(0.01, deadline - time.monotonic()), metadata=self._token.metadata
                )
            except grpc.RpcError as error:
                failure = from_rpc_error(error, f"admin of {self.address}")
                if not isinstance(failure, UnavailableError) or time.monotonic() + _RETRY_S > deadline:
                    raise failure from error
                time.sleep(_RETRY_S)
            else:
                return answer
