"""Configuration of the two servers: every field is validated, and carries the text of its ``--help``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from multifacet.serving.addresses import Address
from multifacet.serving.fleet import Fleet
from multifacet.serving.policy import ReplicaPolicy
from multifacet.serving.secrets import read_token


class ListenConfig(BaseModel):
    """Where and how a server listens; the same for the lookup server and the ranker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: str = Field(
        default="127.0.0.1:0",
        description="Address to listen on: HOST:PORT, [IPV6]:PORT or unix:/PATH; port 0 lets the system choose.",
    )
    tls_certificate: Path | None = Field(default=None, description="PEM file of the server's certificate chain.")
    tls_key: Path | None = Field(default=None, description="PEM file of the certificate's private key.")
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file of the authority that must have signed a client's certificate."
    )
    insecure_public: bool = Field(
        default=False,
        description="Listen in plain text on an address that other machines can reach. Anyone there can then read "
        "every row and score.",
    )
    token_file: Path | None = Field(
        default=None,
        description="File with the token that every request must bring (authorization: Bearer TOKEN), health checks excepted.",
    )
    admin_token_file: Path | None = Field(
        default=None,
        description="File with the token of those who may load, choose and retire releases while the server runs; without it "
        "nobody may.",
    )
    admin_releases: Path | None = Field(
        default=None, description="Folder below which such releases must lie. A release is code in effect: keep it closed."
    )
    state_file: Path | None = Field(
        default=None,
        description="File that remembers the releases held. If it exists at the start, it is believed instead of `releases`.",
    )
    first_start: Literal["serve", "wait"] = Field(
        default="serve",
        description="What a server does whose state_file does not exist: serve `releases`, or hold them and say that it is not "
        "ready until the rollout says which version is the current one. A host whose disk was lost then serves no old version.",
    )
    tracing: Literal["off", "otlp"] = Field(
        default="off",
        description="Whether spans of requests are sent by OTLP (the extra `otel`), to where OpenTelemetry's environment "
        "variables say; logs then carry the ids of traces.",
    )
    workers: PositiveInt = Field(
        default=4,
        description="Threads that answer requests. A few are enough: the interpreter runs one at a time, the others "
        "wait for the network or compute outside its lock.",
    )
    max_queued_requests: Annotated[int, Field(ge=0)] = Field(
        default=256, description="Requests that may wait for a free worker; more are refused at once."
    )
    max_message_bytes: PositiveInt = Field(default=4 * 1024 * 1024, description="Largest request message accepted, in bytes.")
    message_timeout_s: PositiveFloat = Field(
        default=5.0, description="Seconds that the message of a call may take to come once its headers have."
    )
    idle_timeout_s: PositiveFloat = Field(
        default=600.0, description="Seconds after which a gRPC connection without calls is closed; its client opens another."
    )
    socket_mode: Annotated[int, Field(ge=0, le=0o777)] = Field(
        default=0o600,
        description="Permissions of Unix sockets, octal: 0660 lets the group in. Whoever may write to a socket may connect.",
    )
    drain_delay_s: NonNegativeFloat = Field(
        default=0.5,
        description="On SIGTERM: seconds between health's NOT_SERVING and the refusal of requests, so that load balancers see "
        "it. With drain_timeout_s it must stay below the time after which the supervisor kills.",
    )
    drain_timeout_s: PositiveFloat = Field(
        default=10.0, description="On SIGTERM: seconds that requests in flight may take to end before they are cut."
    )
    ready_file: Path | None = Field(
        default=None,
        description="File to write, in one step, once requests are accepted: JSON with address, pid and versions.",
    )
    metrics_listen: str | None = Field(
        default=None, description="HOST:PORT for Prometheus to scrape over HTTP; without it no metrics are served."
    )
    verify: bool = Field(
        default=True, description="Read every file of a release once and compare its checksum before serving it."
    )

    def read_token(self) -> str | None:
        """The token that clients must bring; None if they need none.

        Raises:
            OSError: The file cannot be read.
            ValueError: It holds no token.
        """
        return read_token(self.token_file)

    @field_validator("socket_mode", mode="before")
    @classmethod
    def _read_octal(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        try:
            return int(given, 8)
        except ValueError:
            raise ValueError(f"socket_mode {given!r} is no octal number, such as 0660") from None

    @model_validator(mode="after")
    def _refuse_open_doors(self) -> Self:
        address = Address.parse(self.listen)
        if self.first_start == "wait" and (self.state_file is None or self.admin_token_file is None):
            raise ValueError(
                "first_start=wait needs state_file, and admin_token_file with admin_releases: else nobody could say which "
                "version is the current one"
            )
        if (self.admin_token_file is None) != (self.admin_releases is None):
            raise ValueError("admin_token_file and admin_releases go together: give both, or neither")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: give both, or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        if not address.is_local and self.tls_certificate is None and not self.insecure_public:
            raise ValueError(
                f"{self.listen} can be reached from other machines: give tls_certificate and tls_key, listen on "
                "127.0.0.1 or unix:/PATH, or say insecure_public=True to serve in plain text all the same"
            )
        if self.metrics_listen is not None:
            metrics = Address.parse(self.metrics_listen)
            if metrics.unix_path is not None:
                raise ValueError(f"metrics_listen {self.metrics_listen} must be HOST:PORT: Prometheus scrapes TCP")
            if not metrics.is_local and not self.insecure_public:
                raise ValueError(
                    f"metrics_listen {self.metrics_listen} can be reached from other machines and has no TLS: "
                    "use 127.0.0.1, or say insecure_public=True"
                )
        return self


class LookupConfig(ListenConfig):
    """Configuration of a lookup server."""

    releases: tuple[Path, ...] = Field(
        min_length=1, description="Release directories to serve; each is asked for by its version."
    )
    shard: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="Which shard of releases that are split over lookup hosts to serve, from 0; without it the only one whose "
        "files are there.",
    )
    framed_listen: str | None = Field(
        default=None,
        description="Second address, for rankers on this host or rack: the same lookups in bare frames, at about half of "
        "gRPC's time. Plain text. Clients give it as framed:HOST:PORT or framed:unix:/PATH.",
    )
    processes: PositiveInt = Field(
        default=1,
        description="Processes that answer frames, one a core: the server passes connections on to them in turns, and they "
        "share the mapped files. 1: the server itself. It alone answers gRPC.",
    )
    max_connections: PositiveInt = Field(default=4096, description="Most framed connections that may be open at once.")
    stall_timeout_s: PositiveFloat = Field(
        default=10.0,
        description="Seconds after which a framed connection is closed that stopped in the middle of a request or an answer. "
        "One that is idle between requests may stay.",
    )
    max_ids_per_request: PositiveInt = Field(default=16384, description="Most ids in one request, all features together.")
    populate: bool = Field(
        default=True,
        description="Read the tables and id maps into memory before serving, so that no first request waits for the disk. Turn "
        "it off for tables larger than memory.",
    )
    memory_budget_bytes: PositiveInt | None = Field(
        default=None,
        description="Most bytes that the lookup halves of all releases held may have together; one that would go beyond is "
        "refused before it is read. Two versions are held during a rollout.",
    )
    huge_pages: bool = Field(
        default=False,
        description="Copy the tables into memory of this process that has huge pages (/sys/kernel/mm/transparent_hugepage must "
        "not say never): faster for tables of millions of rows, where the file system has none for files (ext4 has, from Linux "
        "6.16 on). Every process and version then takes memory for its own copy.",
    )

    @model_validator(mode="after")
    def _refuse_idle_processes(self) -> Self:
        if self.processes > 1 and self.framed_listen is None:
            raise ValueError("processes answer frames: give framed_listen as well, or leave processes out")
        return self

    @model_validator(mode="after")
    def _refuse_open_frames(self) -> Self:
        if self.framed_listen is not None and not (Address.parse(self.framed_listen).is_local or self.insecure_public):
            raise ValueError(
                f"framed_listen {self.framed_listen} can be reached from other machines and has no TLS: use 127.0.0.1 or "
                "unix:/PATH, or say insecure_public=True; rankers elsewhere can use gRPC over TLS"
            )
        return self


class RankerConfig(ListenConfig):
    """Configuration of a ranker."""

    releases: tuple[Path, ...] = Field(
        min_length=1,
        description="Release directories to serve. A request that names no version gets the last one.",
    )
    lookup: str = Field(
        description="Address of the lookup server; framed:ADDRESS for its framed one. A,B are two servers that hold the same, "
        "A|B two that hold the shards of a release that was split."
    )
    lookup_tls_ca: Path | None = Field(
        default=None, description="PEM file of the authority that signed the lookup server's certificate; turns TLS on."
    )
    lookup_tls_certificate: Path | None = Field(
        default=None, description="PEM file of the ranker's own certificate, for a lookup server that asks for one."
    )
    lookup_tls_key: Path | None = Field(default=None, description="PEM file of that certificate's private key.")
    lookup_token_file: Path | None = Field(default=None, description="File with the token that the lookup server asks for.")
    lookup_timeout_s: PositiveFloat = Field(default=0.5, description="Longest wait for one lookup, in seconds.")
    lookup_max_attempts: PositiveInt = Field(
        default=3, description="Most lookup servers that one lookup is sent to, if several hold the same."
    )
    lookup_retry_ratio: NonNegativeFloat = Field(
        default=0.1, description="Share of the lookups that may be sent to a second server, by a retry or a hedge."
    )
    lookup_hedge_after_s: PositiveFloat | None = Field(
        default=None, description="Seconds after which a second server is asked as well; the first answer counts."
    )
    lookup_hedge_quantile: Annotated[float, Field(ge=0.5, lt=1)] | None = Field(
        default=None,
        description="Instead of lookup_hedge_after_s: once a lookup takes longer than this share of the last ones did.",
    )
    lookup_fallback: Literal["fail", "without_tables"] = Field(
        default="fail",
        description="When rows are late or no lookup server can be reached: fail the request, or score it with zeros for every "
        "embedding and say so in the answer. Found and missing rows are never mixed.",
    )
    fallback_reserve_s: PositiveFloat = Field(
        default=0.01,
        description="With lookup_fallback=without_tables: seconds before its caller's deadline at which a request stops "
        "waiting for rows, to score without them.",
    )
    batch_max_candidates: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Most candidates that the upper model scores at once, of requests of one version that come together; 0 "
        "scores each by itself.",
    )
    batch_wait_us: Annotated[int, Field(ge=0)] = Field(
        default=500,
        description="With batch_max_candidates: microseconds that a request waits for others that are already in this ranker. "
        "One that is alone does not wait.",
    )
    startup_timeout_s: PositiveFloat = Field(
        default=60.0,
        description="Longest wait, in seconds, for the lookup server to come up with the same versions.",
    )
    max_candidates: PositiveInt = Field(default=4096, description="Most candidates in one request.")
    max_sequence_ids: PositiveInt = Field(
        default=1024,
        description="Most ids of one sequence (recent pins) in a request. A model reads as many of them as in training.",
    )
    intra_op_threads: PositiveInt = Field(
        default=1,
        description="torch's threads within one operator. More than one makes concurrent requests wait for each other.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where the upper model runs: cuda, cpu, or cuda if there is one."
    )

    @property
    def replica_policy(self) -> ReplicaPolicy:
        """How lookup servers that hold the same are asked."""
        return ReplicaPolicy(
            max_attempts=self.lookup_max_attempts,
            retry_ratio=self.lookup_retry_ratio,
            hedge_after_s=self.lookup_hedge_after_s,
            hedge_quantile=self.lookup_hedge_quantile,
        )

    @model_validator(mode="after")
    def _refuse_what_would_do_nothing(self) -> Self:
        for field, needs, is_there in (
            ("fallback_reserve_s", "lookup_fallback=without_tables", self.lookup_fallback == "without_tables"),
            ("batch_wait_us", "batch_max_candidates", self.batch_max_candidates > 0),
        ):
            # By value: a configuration that was printed whole names every field.
            if getattr(self, field) != type(self).model_fields[field].default and not is_there:
                raise ValueError(f"{field} does nothing without {needs}: give both, or neither")
        return self

    @model_validator(mode="after")
    def _refuse_a_fleet_that_cannot_be_asked(self) -> Self:
        Fleet.parse(self.lookup).check_hedging(hedges=self.replica_policy.hedges)
        return self
