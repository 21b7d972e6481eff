"""The ranker: fetches rows while it reads the features, and scores with both halves of one version."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc
import numpy as np
import numpy.typing as npt

from multifacet.serving.client.connect import connect_lookup
from multifacet.serving.config import RankerConfig
from multifacet.serving.core import readiness
from multifacet.serving.errors import ServingError, UnavailableError, VersionNotLoadedError
from multifacet.serving.protocol import admin_pb2, ranker_pb2, ranker_pb2_grpc
from multifacet.serving.ranker.freshness import Freshness
from multifacet.serving.ranker.outcomes import Outcomes
from multifacet.serving.ranker.request import RequestRanker
from multifacet.serving.ranker.scorer import Scorer
from multifacet.serving.ranker.shadow import Shadow
from multifacet.serving.release.release import Release
from multifacet.serving.server.deployed import Deployed, Identity
from multifacet.serving.server.listener import Listener
from multifacet.serving.server.metrics import ServerMetrics, Status
from multifacet.serving.server.shell import ServerShell
from multifacet.serving.server.versions import LoadedVersions
from multifacet.serving.tracing import current, tell_rank

if TYPE_CHECKING:
    from multifacet.serving.release.manifest import ReleaseManifest

logger = logging.getLogger(__name__)

_START_POLL_S = 0.05
_WATCH_S = 1.0

SERVICE = "multifacet.serving.v1.Ranker"
_PHASES = tuple(field.name.removesuffix("_us") for field in ranker_pb2.Phases.DESCRIPTOR.fields)


class RankerServer(ServerShell[Scorer]):
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
        self._freshness = Freshness()
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
        self._deployed = Deployed(
            self._loaded,
            self._open,
            identify=_identify,
            check=self._check_lookup_has,
            shadow=self._shadow.set,
            state_file=config.state_file,
            administered=config.admin_releases is not None,
            waits=config.first_start == "wait",
        )
        try:
            # Before releases are read: what is wrong with tokens and certificates is told at once.
            self._listener = Listener(config, role="ranker", service=SERVICE, register=self._register, metrics=self.metrics)
        except BaseException:
            self._lookup.close()
            raise
        try:
            self._deployed.open(config.releases)
        except BaseException:
            self._listener.discard()
            self._lookup.close()
            raise
        self._process = uuid.uuid4().hex
        self.metrics.report_status(self._measure)
        self._readiness = readiness.Readiness(
            lookup=f"lookup server {config.lookup}", answers_without=config.lookup_fallback == "without_tables"
        )
        self._readying = threading.Lock()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch_lookup, name="lookup-watch", daemon=True)
        self._announced = False

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
        return self._deployed.load(Path(path), current=current)

    def shadow(self, version: str, share: float) -> None:
        """Score a share of the requests with another version as well, and count how far apart the scores are.

        Args:
            version: A loaded version; empty ends it.
            share: Of the requests that name no version, 0 to 1.

        Raises:
            VersionNotLoadedError: It is not loaded here, or not there.
            ValueError: The share is none.
        """
        self._deployed.shadow(version, share)

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
                    refused=self._outcomes.refused[version],
                )
                for version in self.versions
            ],
            shadow=self._shadow.report(),
            process=self._process,
            remembers=self._deployed.state.known,
            ready=self._readiness.said.ready,
            not_ready_because=self._readiness.said.reason,
            faults=self._deployed.state.faults,
        )

    def _measure(self) -> Status:
        shadow = self._shadow.report()
        gauges = {
            **self._listener.gauges(),
            "shadow_compared": ("Candidates that shadow traffic compared, since it was set.", shadow.compared),
            "shadow_failed": ("Requests that the shadow could not score.", shadow.failed),
            "shadow_mean_abs_difference": ("Mean distance of the probabilities.", shadow.mean_abs_difference),
            "shadow_mean_difference": ("Mean of shadow less current.", shadow.mean_difference),
            **self._freshness.gauges(self.current_version, self._knows_until()),
        }
        outcomes = {
            version: {
                "answered": self._outcomes.answered[version],
                "failed": self._outcomes.failed[version],
                "refused": self._outcomes.refused[version],
            }
            for version in self.versions
        }
        ready = self._listener.is_serving
        return Status(versions=self.versions, current=self.current_version, ready=ready, outcomes=outcomes, gauges=gauges)

    def start(self, *, stopped: Callable[[], bool] = lambda: False) -> str:
        """Bind, and wait until the lookup server holds the current version.

        Health says NOT_SERVING until then; admin, if there is one, is up at once.

        Args:
            stopped: Ends the wait early when it says so.

        Returns:
            The bound address; empty if `stopped`.

        Raises:
            UnavailableError: The lookup server is not up in time, or lacks the version; not if there is an admin, who can
                mend it.
            ValueError: It accepts fewer ids a request than `max_candidates` needs, or holds one shard only.
            OSError: The address cannot be bound.
        """
        self._listener.open()
        began = time.monotonic()
        while not stopped():
            self._look_at_lookup()
            said = self._readiness.said
            if said.ready:
                break
            if time.monotonic() - began >= self.config.startup_timeout_s or self._never(said.reason):
                if self.config.admin_releases is None:
                    raise self._not_ready(said.reason)
                break
            self._stopping.wait(_START_POLL_S)
        else:
            return ""
        self._watcher.start()
        return self.address

    def _never(self, reason: str) -> bool:
        """Whether waiting will not help: a configuration is wrong."""
        described = self._readiness.described
        return described is not None and bool(reason) and "is not loaded by" not in reason and not self._readiness.misses

    def _not_ready(self, reason: str) -> Exception:
        if self._never(reason):
            return ValueError(reason)
        return UnavailableError(
            f"lookup server {self.config.lookup} was not ready within {self.config.startup_timeout_s:g} s: {reason}. Start it "
            "with the same release, or mend the address."
        )

    def _watch_lookup(self) -> None:
        """Look at the lookup servers until the server stops; a thread's work."""
        while not self._stopping.wait(_WATCH_S):
            self._look_at_lookup()

    def _look_at_lookup(self) -> None:
        self._advance_readiness(self._holds())
        try:
            event: readiness.Event = readiness.Described.of(
                self._lookup.describe(timeout_s=min(1.0, self.config.startup_timeout_s))
            )
        except ServingError as error:
            event = readiness.Unreachable(str(error))
        self._advance_readiness(event)

    def _holds(self) -> readiness.Holds:
        held = self._loaded.items()
        state = self._deployed.state
        needs = tuple(readiness.Need(version, self._most_ids(scorer.manifest)) for version, scorer in held)
        return readiness.Holds(state.current, state.fault, remembers=state.known, needs=needs)

    def _most_ids(self, manifest: ReleaseManifest) -> int:
        # Lists are not counted: how full they are, and how often their ids repeat, is seen in requests alone. One that has too
        # many distinct ids is refused by the lookup server.
        num_single = len(manifest.id_features) - len(manifest.list_lengths)
        return self.config.max_candidates * num_single + (manifest.sequence.length if manifest.sequence else 0)

    def _advance_readiness(self, event: readiness.Event) -> None:
        with self._readying:
            self._readiness, said = readiness.step(self._readiness, event)
            for say in said:
                self._listener.set_health(serving=say.ready)
                if not say.ready:
                    logger.warning("not ready: %s", say.reason)
                elif self._announced:
                    logger.info("ready again")
                else:
                    self._announced = True
                    self._listener.announce({"versions": list(self.versions), "lookup": self.config.lookup})

    def say_stopping(self) -> None:
        """Say by health that no more requests should come, and answer those that do until `stop`."""
        self._listener.say_stopping()
        self._advance_readiness(readiness.Draining())

    def reload(self) -> None:
        """Read tokens and certificates again."""
        self._listener.reload()

    def stop(self, drain_timeout_s: float | None = None) -> None:
        """Drain and stop; see `Listener.stop`."""
        self._stopping.set()
        self.say_stopping()
        self._listener.stop(drain_timeout_s)
        if self._watcher.is_alive():
            self._watcher.join()
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

    def _knows_until(self) -> str | None:
        """The time until which the current version knows of events."""
        held = dict(self._loaded.items())
        scorer = held.get(self.current_version)
        return None if scorer is None else scorer.manifest.knows_until

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
        described = readiness.Described.of(self._lookup.describe())
        need = readiness.Need(version, self._most_ids(self._loaded.get(version).manifest))
        fault = readiness.check(described, version, f"lookup server {self.config.lookup}", need)
        if fault:
            raise VersionNotLoadedError(fault, loaded=[entry.version for entry in described.versions])

    def _register(self, server: grpc.Server) -> None:
        ranker_pb2_grpc.add_RankerServicer_to_server(_Servicer(self), server)  # type: ignore[no-untyped-call]
        self._register_admin(self, server, self.config)

    def _rank(self, request: ranker_pb2.RankRequest, context: grpc.ServicerContext) -> ranker_pb2.RankAnswer:
        with self._loaded.lease(request.version) as (version, scorer), self._outcomes.count(version) as outcome:
            answer, scores = self._requests.rank(request, version, scorer, context)
            outcome.degraded = answer.without_tables
        tell_rank(current(), answer)
        self._freshness.scored(version)
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


def _identify(path: Path) -> Identity:
    return Identity(Release.open(path, verify=False, half="ranker").version)


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
