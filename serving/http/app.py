"""The ASGI application: the protocol's paths, each answered by asking a ranker."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from multifacet.inputs import import_extra
from multifacet.serving.client.aio.grpc_clients import AsyncRankerClient
from multifacet.serving.errors import (
    BrokenAnswerError,
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    ServingError,
    UnauthenticatedError,
    UnavailableError,
    VersionNotLoadedError,
)
from multifacet.serving.http.arguments import LENGTHS, SEQUENCE, as_arguments, find_version
from multifacet.serving.http.tensors import BINARY_HEADER, read_inference, write_outputs
from multifacet.serving.secrets import TokenFile

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from multifacet.serving.wire.answers import RankAnswer

__all__ = ["HttpConfig", "make_app"]

logger = logging.getLogger(__name__)

_OUTPUTS: Final = ("ctr", "cvr")


class _TooLongError(InvalidRequestError):
    """A body is longer than is read."""


_STATUS: Final[Mapping[type[ServingError], int]] = {
    _TooLongError: 413,
    InvalidRequestError: 400,
    VersionNotLoadedError: 404,
    OverloadedError: 429,
    BrokenAnswerError: 502,
    UnauthenticatedError: 502,  # it is this process that has no token
    UnavailableError: 503,
    DeadlineExceededError: 504,
}


class HttpConfig(BaseModel):
    """How a ranker is offered over HTTP."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ranker: str = Field(default="127.0.0.1:7402", description="address of the ranker")
    listen: str = Field(default="127.0.0.1:8080", description="HOST:PORT or unix:/PATH")
    name: str = Field(default="ranker", description="the model's name in paths", pattern=r"^[A-Za-z0-9_.-]+$")
    timeout_s: PositiveFloat = Field(default=1.0, description="deadline of a request at the ranker, in seconds")
    max_body_bytes: PositiveInt = Field(default=16 << 20, description="longest body that is read")
    body_timeout_s: PositiveFloat = Field(default=10.0, description="longest wait for a body, in seconds")
    max_connections: PositiveInt = Field(default=1000, description="connections; more are answered 503")
    token_file: Path | None = Field(default=None, description="file of the token that callers must send, as a bearer's")
    ranker_token_file: Path | None = Field(default=None, description="file of the token that the ranker asks for")
    ranker_tls_ca: Path | None = Field(default=None, description="PEM file that the ranker's certificate is checked by")
    tls_certificate: Path | None = Field(default=None, description="PEM file of this server's certificate chain")
    tls_key: Path | None = Field(default=None, description="PEM file of the certificate's private key")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: give both")
        return self


def make_app(config: HttpConfig | None = None) -> Starlette:
    """Makes the application; mount it into another one, or run it by any ASGI server.

    ==================================================  ==========================================================
    `GET /v2`, `/v2/health/live`, `/v2/health/ready`    the server; ready is whether the ranker answers with a version
    `GET /v2/models/ranker[/versions/V][/ready]`        inputs and outputs of the version that is served, or of V
    `POST /v2/models/ranker[/versions/V]/infer`         scores by that version, both halves of it, or a refusal
    ==================================================  ==========================================================

    Args:
        config: The ranker's address, limits and secrets.

    Raises:
        ModuleNotFoundError: The extra `http` is not installed.
        OSError: A token's file cannot be read.
        ValueError: A token's file holds none.
    """
    applications = import_extra("starlette.applications", "http")
    routing = import_extra("starlette.routing", "http")
    service = _Service(config or HttpConfig())
    model = "/v2/models/{model}"
    paths = {
        "/v2": service.server,
        "/v2/health/live": service.live,
        "/v2/health/ready": service.ready,
        model: service.model,
        f"{model}/ready": service.model_ready,
        f"{model}/versions/{{version}}": service.model,
        f"{model}/versions/{{version}}/ready": service.model_ready,
    }
    routes = [routing.Route(path, service.told(answer), methods=["GET"]) for path, answer in paths.items()]
    routes += [
        routing.Route(path, service.told(service.infer), methods=["POST"])
        for path in (f"{model}/infer", f"{model}/versions/{{version}}/infer")
    ]
    app: Starlette = applications.Starlette(routes=routes, lifespan=service.lifespan)
    return app


class _Service:
    """What the paths answer."""

    def __init__(self, config: HttpConfig):
        self.config = config
        self._token = TokenFile(config.token_file)
        TokenFile(config.ranker_token_file)  # a file that cannot be read is told now, not by the first request
        self._client: AsyncRankerClient | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Closes the connection in the end."""
        del app
        try:
            yield
        finally:
            if self._client is not None:
                await self._client.close()

    @property
    def client(self) -> AsyncRankerClient:
        """The ranker, connected to within the loop that asks first: applications that are mounted have no lifespan."""
        if self._client is None:
            self._client = AsyncRankerClient(
                self.config.ranker,
                timeout_s=self.config.timeout_s,
                token_file=self.config.ranker_token_file,
                tls_ca=self.config.ranker_tls_ca,
            )
        return self._client

    def told(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Asks for the token, and tells a refusal as the protocol does: {"error": ...}."""
        requests = import_extra("starlette.requests", "http")

        async def handle(request: Request) -> Response:
            token = self._token.token
            is_probe = request.url.path.endswith("/v2/health/live")
            if token is not None and not is_probe:
                given = request.headers.get("authorization", "").encode("latin-1", "replace")
                if not hmac.compare_digest(given, f"Bearer {token}".encode()):
                    return _json({"error": "this server asks for a token: send it as Authorization: Bearer"}, status=401)
            try:
                return await answer(request)
            except requests.ClientDisconnect:  # nobody reads what is answered
                return _json({"error": "the client is gone"}, status=400)
            except ServingError as error:
                status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
                if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
                    logger.warning("%s: %d: %s", request.url.path[:200], status, error)
                return _json({"error": str(error)}, status=status)

        return handle

    async def server(self, request: Request) -> Response:
        """What this server is."""
        del request
        from importlib.metadata import version  # noqa: PLC0415

        return _json({"name": "multifacet", "version": version("multifacet"), "extensions": ["binary_tensor_data"]})

    async def live(self, request: Request) -> Response:
        """This process answers."""
        del request
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        """Whether the ranker serves a version."""
        del request
        try:
            is_ready = bool((await self.client.describe()).current_version)
        except ServingError as error:
            return _json({"ready": False, "error": str(error)}, status=503)
        return _json({"ready": is_ready}, status=200 if is_ready else 503)

    async def model(self, request: Request) -> Response:
        """The inputs and outputs of a version."""
        self._check_name(request)
        description = await self.client.describe()
        version = find_version(description, request.path_params.get("version") or description.current_version)
        inputs = []
        for feature in version.id_features:
            kind = "BYTES" if feature.id_type == "string" else "INT64"
            inputs.append({"name": feature.feature, "datatype": kind, "shape": [-1]})
            if feature.list_length:
                inputs.append({"name": f"{feature.feature}{LENGTHS}", "datatype": "UINT32", "shape": [-1]})
        for sequence in version.sequences:
            kind = "BYTES" if sequence.id_type == "string" else "INT64"
            inputs.append({"name": f"{SEQUENCE}{sequence.feature}", "datatype": kind, "shape": [-1]})
        if version.dense_features:
            names = {"columns": list(version.dense_features)}
            shape = [-1, len(version.dense_features)]
            inputs.append({"name": "dense", "datatype": "FP32", "shape": shape, "parameters": names})
        outputs = [{"name": name, "datatype": "FP32", "shape": [-1]} for name in _OUTPUTS]
        versions = [each.version for each in description.versions]
        return _json(
            {
                "name": self.config.name,
                "versions": versions,
                "platform": "multifacet",
                "inputs": inputs,
                "outputs": outputs,
                "parameters": {"version": version.version},
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """Whether a version is loaded."""
        self._check_name(request)
        description = await self.client.describe()
        version = find_version(description, request.path_params.get("version") or description.current_version)
        return _json({"name": self.config.name, "version": version.version, "ready": True})

    async def infer(self, request: Request) -> Response:
        """Scores of one request's candidates."""
        self._check_name(request)
        inference = read_inference(await self._read(request), request.headers.get(BINARY_HEADER))
        unknown = sorted(set(inference.outputs) - set(_OUTPUTS))
        if unknown:
            raise InvalidRequestError(f"there is no output {unknown[0][:200]!r}: outputs are {', '.join(_OUTPUTS)}")
        version = request.path_params.get("version") or ""
        answer: RankAnswer = await self.client.rank(**as_arguments(inference), version=version, request_id=inference.id)
        outputs = {"ctr": answer.ctr, "cvr": answer.cvr}
        document: dict[str, Any] = {
            "model_name": self.config.name,
            "model_version": answer.version,
            "parameters": {"num_unknown_ids": answer.num_unknown_ids, "without_tables": answer.without_tables},
        }
        if inference.id:
            document["id"] = inference.id
        wanted = {name: values for name, values in outputs.items() if not inference.outputs or name in inference.outputs}
        body, length = write_outputs(document, wanted, inference)
        return _json(body, headers={} if length is None else {BINARY_HEADER: str(length)})

    async def _read(self, request: Request) -> bytes:
        """The body, in bounded memory and time."""
        if request.headers.get("content-encoding", "identity") != "identity":
            raise InvalidRequestError("the body is compressed: send it as it is")
        parts, length = [], 0
        try:
            async with asyncio.timeout(self.config.body_timeout_s):
                async for part in request.stream():
                    length += len(part)
                    if length > self.config.max_body_bytes:
                        raise _TooLongError(f"the body is longer than {self.config.max_body_bytes} bytes")
                    parts.append(part)
        except TimeoutError as error:
            raise InvalidRequestError(f"the body did not come within {self.config.body_timeout_s} seconds") from error
        return b"".join(parts)

    def _check_name(self, request: Request) -> None:
        name = request.path_params["model"]
        if name != self.config.name:
            raise VersionNotLoadedError(f"there is no model {name[:200]!r}: this server has {self.config.name!r}")


def _json(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    responses = import_extra("starlette.responses", "http")
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    kind = "application/octet-stream" if headers else "application/json"
    response: Response = responses.Response(body, status_code=status, headers=dict(headers or {}), media_type=kind)
    return response
