"""The ranker: fetches rows while it reads the features, and scores with both halves of one version."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import numpy as np
import numpy.typing as npt

from multifacet.serving.admin import AdminServicer
from multifacet.serving.config import RankerConfig
from multifacet.serving.connect import connect_lookup
from multifacet.serving.deployed import Deployed
from multifacet.serving.errors import VersionNotLoadedError
from multifacet.serving.listener import Listener
from multifacet.serving.metrics import ServerMetrics
from multifacet.serving.outcomes import Outcomes
from multifacet.serving.protocol import admin_pb2, admin_pb2_grpc, ranker_pb2, ranker_pb2_grpc
from multifacet.serving.release import Release
from multifacet.serving.request_ranker import RequestRanker
from multifacet.serving.scorer import Scorer
from multifacet.serving.shadow import Shadow
from multifacet.serving.versions import LoadedVersions

logger = logging.getLogger(__name__)

SERVICE = "multifacet.serving.v1.Ranker"
_PHASES = tuple(field.name.removesuffix("_us") for field in ranker_pb2.Phases.DESCRIPTOR.fields)


class RankerServer:
    """Serves the scores of one or several releases, with rows from one lookup server.

    A process that serves should give torch one thread a worker (``torch.set_num_threads(1)``), as `serve_ranker`
    does: several threads a request make the workers wait for one another.

    Args:
        config: Releases, addresses and limits.

    Raises:
        ArtifactError: A release is damaged; the file is named.
        UnavailableError: From `start`: the lookup server is not up in time, or lacks a version.
        OSError: From `start`: the address cannot be bound.
    """

    def __init__(self, config: RankerConfig):
        self.config = config
        self._loaded: LoadedVersions[Scorer] = LoadedVersions("ranker")
        self.metrics = ServerMetrics("ranker", _PHASES)
        self._shadow = Shadow()
        self._outcomes = Outcomes()
        self._lookup = connect_lookup(
            config.lookup,
            timeout_s=config.lookup_timeout_s,
            tls_ca=config.lookup_tls_ca,
            tls_certificate=config.lookup_tls_certificate,
            tls_key=config.lookup_tls_key,
            token_file=config.lookup_token_file,
            max_answer_bytes=-1,  # every length is checked against the release
            policy=config.replica_policy,
        )
        self._requests = RequestRanker(self._lookup, config, self.metrics)
        self.metrics.add_events(lambda: {f"lookup_{event}": count for event, count in self._lookup.counters().items()})
        self._deployed = Deployed(self._loaded, self._open, check=self._check_lookup_has, state_file=config.state_file)
        try:
            self._deployed.open(config.releases)
        except BaseException:
            self._lookup.close()
            raise
        self._listener = Listener(config, role="ranker", service=SERVICE, register=self._register, metrics=self.metrics)

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

    @property
    def current_version(self) -> str:
        """What a request without a version gets."""
        return self._loaded.current

    def load(self, path: str | os.PathLike[str], *, current: bool = False) -> str:
        """Load a release beside those that are there; while it fails or runs, the others are served as before.

        Args:
            path: The release.
            current: Whether requests without a version get it from now on, unchecked; see `choose`.

        Returns:
            Its version.

        Raises:
            ArtifactError: The release is damaged, or its upper model does not run; the file is named.
        """
        return self._deployed.load(Path(path).absolute(), current=current)

    def choose(self, version: str) -> None:
        """Answer requests without a version with this one, once the lookup server is seen to have it.

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
            ValueError: It is the current one: choose another first.
            OverloadedError: It still has readers after that time; it stays.
        """
        if version == self._shadow.version:
            self._shadow.set("", 0.0)
        self._deployed.retire(version, timeout_s)

    def shadow(self, version: str, share: float) -> None:
        """Score a share of the requests with another version as well, and count how far apart the scores are.

        Args:
            version: A loaded version; empty ends it.
            share: Of the requests that name no version, 0 to 1.

        Raises:
            VersionNotLoadedError: It is not loaded here, or not there.
            ValueError: The share is none.
        """
        if version:
            self._loaded.get(version)
            self._check_lookup_has(version)
        self._shadow.set(version, share)

    def status(self) -> admin_pb2.ServerStatus:
        """What is loaded, who reads it, how requests ended, and what the shadow showed."""
        return admin_pb2.ServerStatus(
            role="ranker",
            current_version=self.current_version,
            versions=[
                admin_pb2.VersionStatus(
                    version=version,
                    path=str(self._deployed.path(version) or ""),
                    readers=self._loaded.num_readers(version),
                    answered=self._outcomes.answered[version],
                    failed=self._outcomes.failed[version],
                )
                for version in self.versions
            ],
            shadow=self._shadow.report(),
        )

    def start(self, *, stopped: Callable[[], bool] = lambda: False) -> str:
        """Wait for the lookup server, then accept requests.

        Args:
            stopped: Ends the wait early when it says so; nothing is bound then.

        Returns:
            The bound address; empty if `stopped`.

        Raises:
            UnavailableError: The lookup server is not up in time, or lacks a version.
            ValueError: It accepts fewer ids a request than `max_candidates` needs, or holds one shard only.
        """
        description = self._lookup.wait_for_versions(self.versions, timeout_s=self.config.startup_timeout_s, stopped=stopped)
        if description is None:
            return ""
        for entry in description.versions:
            if entry.version in self.versions and entry.num_shards > 1:
                raise ValueError(
                    f"lookup server {self.config.lookup} holds shard {entry.shard_index} of {entry.num_shards} of version "
                    f"{entry.version}: list all of its shards, with a | between their addresses"
                )
        for version, scorer in self._loaded.items():
            manifest = scorer.manifest
            # Lists are not counted: how full they are, and how often their ids repeat, is seen in requests alone. One that
            # has too many distinct ids is refused by the lookup server.
            num_single = len(manifest.id_features) - len(manifest.list_lengths)
            most_ids = self.config.max_candidates * num_single + (manifest.sequence.length if manifest.sequence else 0)
            if most_ids > description.max_ids_per_request:
                raise ValueError(
                    f"max_candidates {self.config.max_candidates} needs lookups of up to {most_ids} ids for version "
                    f"{version}, lookup server {self.config.lookup} accepts {description.max_ids_per_request}: lower "
                    "max_candidates, or raise its max_ids_per_request"
                )
        return self._listener.start({"versions": list(self.versions), "lookup": self.config.lookup})

    def stop(self, drain_timeout_s: float | None = None) -> None:
        """Drain and stop; see `Listener.stop`."""
        self._listener.stop(drain_timeout_s)
        self._shadow.close()
        self._lookup.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop(0)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _open(self, path: Path) -> tuple[str, Scorer]:
        release = Release.open(path, verify=self.config.verify, half="ranker")
        config = self.config
        scorer = Scorer(
            release,
            device=config.device,
            batch_max_candidates=config.batch_max_candidates,
            batch_wait_us=config.batch_wait_us,
        )
        logger.info("loaded %r", release)
        return release.version, scorer

    def _check_lookup_has(self, version: str) -> None:
        there = [entry.version for entry in self._lookup.describe().versions]
        if version not in there:
            raise VersionNotLoadedError(
                f"version {version} is not loaded by lookup server {self.config.lookup}; loaded: {', '.join(there)}",
                loaded=there,
            )

    def _register(self, server: grpc.Server) -> None:
        ranker_pb2_grpc.add_RankerServicer_to_server(_Servicer(self), server)  # type: ignore[no-untyped-call]
        config = self.config
        if config.admin_releases is not None:
            servicer = AdminServicer(self, config.admin_releases, config.drain_timeout_s, lambda: self._listener)
            admin_pb2_grpc.add_AdminServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]

    def _rank(self, request: ranker_pb2.RankRequest, context: grpc.ServicerContext) -> ranker_pb2.RankAnswer:
        with self._loaded.lease(request.version) as (version, scorer), self._outcomes.count(version) as outcome:
            answer, scores = self._requests.rank(request, version, scorer, context)
            outcome.degraded = answer.without_tables
        if not request.version and request.num_candidates and not answer.without_tables:
            self._shadow.offer(scores, lambda: self._score_as(request, self._shadow.version))
        return answer

    def _score_as(self, request: ranker_pb2.RankRequest, version: str) -> npt.NDArray[np.float32]:
        with self._loaded.lease(version) as (held, scorer):
            return self._requests.rank(request, held, scorer, None).scores

    def _describe(self) -> ranker_pb2.RankerDescription:
        return ranker_pb2.RankerDescription(
            versions=[scorer.describe() for _, scorer in self._loaded.items()],
            current_version=self.current_version,
            max_candidates=self.config.max_candidates,
            max_sequence_ids=self.config.max_sequence_ids,
        )


class _Servicer(ranker_pb2_grpc.RankerServicer):
    def __init__(self, server: RankerServer):
        self._server = server

    def Rank(  # noqa: N802
        self, request: ranker_pb2.RankRequest, context: grpc.ServicerContext
    ) -> ranker_pb2.RankAnswer:
        return self._server._listener.answer(lambda: self._server._rank(request, context), context, request.request_id)

    def Describe(  # noqa: N802
        self,
        request: ranker_pb2.RankerDescribeRequest,  # noqa: ARG002
        context: grpc.ServicerContext,
    ) -> ranker_pb2.RankerDescription:
        return self._server._listener.answer(self._server._describe, context)
