"""The ranker: fetches rows while it reads the features, and scores with both halves of one version."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import grpc
import numpy as np

from serving.client import connect_lookup
from serving.config import RankerConfig
from serving.errors import InvalidRequestError, VersionNotLoadedError
from serving.listener import Listener
from serving.metrics import ServerMetrics
from serving.packing import IdArray, check_features, check_id_type, count_ids, unpack_ids
from serving.protocol import ids_pb2, ranker_pb2, ranker_pb2_grpc
from serving.release import Release
from serving.scorer import Scorer
from serving.versions import LoadedVersions

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
        for path in config.releases:
            self.load(path, current=True)
        self._lookup = connect_lookup(
            config.lookup,
            timeout_s=config.lookup_timeout_s,
            tls_ca=config.lookup_tls_ca,
            tls_certificate=config.lookup_tls_certificate,
            tls_key=config.lookup_tls_key,
            token_file=config.lookup_token_file,
            max_answer_bytes=-1,  # every length is checked against the release
        )
        self._listener = Listener(
            config,
            role="ranker",
            service=SERVICE,
            register=lambda server: ranker_pb2_grpc.add_RankerServicer_to_server(  # type: ignore[no-untyped-call]
                _Servicer(self), server
            ),
            metrics=self.metrics,
        )

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
        release = Release.open(path, verify=self.config.verify, half="ranker")
        self._loaded.add(release.version, Scorer(release, device=self.config.device), current=current)
        logger.info("loaded %r", release)
        return release.version

    def choose(self, version: str) -> None:
        """Answer requests without a version with this one, once the lookup server is seen to have it.

        Raises:
            VersionNotLoadedError: It is not loaded here, or not there; the current version stays.
            UnavailableError: The lookup server cannot be reached; the current version stays.
        """
        self._loaded.get(version)
        there = [entry.version for entry in self._lookup.describe().versions]
        if version not in there:
            raise VersionNotLoadedError(
                f"version {version} is not loaded by lookup server {self.config.lookup}; loaded: {', '.join(there)}",
                loaded=there,
            )
        self._loaded.choose(version)

    def retire(self, version: str) -> None:
        """Forget a version; requests under way still end with it.

        Raises:
            VersionNotLoadedError: It is not loaded.
            ValueError: It is the current one: choose another first.
        """
        self._loaded.retire(version)

    def start(self, *, stopped: Callable[[], bool] = lambda: False) -> str:
        """Wait for the lookup server, then accept requests.

        Args:
            stopped: Ends the wait early when it says so; nothing is bound then.

        Returns:
            The bound address; empty if `stopped`.

        Raises:
            UnavailableError: The lookup server is not up in time, or lacks a version.
            ValueError: It accepts fewer ids a request than `max_candidates` needs.
        """
        description = self._lookup.wait_for_versions(self.versions, timeout_s=self.config.startup_timeout_s, stopped=stopped)
        if description is None:
            return ""
        for version, scorer in self._loaded.items():
            most_ids = self.config.max_candidates * len(scorer.id_types)
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

    def _rank(self, request: ranker_pb2.RankRequest, context: grpc.ServicerContext) -> ranker_pb2.RankAnswer:
        started_ns = time.perf_counter_ns()
        version, scorer = self._loaded.resolve(request.version)
        ids = self._read_ids(request, scorer)
        answer = ranker_pb2.RankAnswer(version=version, request_id=request.request_id)
        if not request.num_candidates:
            scorer.read_dense(request.dense, 0)
            answer.phases.total_us = _since_us(started_ns)
            return answer

        # An id of the request has one row, whatever the number of candidates; a candidate's id that repeats, too.
        distinct = {feature: np.unique(given, return_inverse=True) for feature, given in ids.items()}
        remaining_s = context.time_remaining()
        timeout_s = self.config.lookup_timeout_s
        pending = self._lookup.start(
            version,
            {feature: values for feature, (values, _) in distinct.items()},
            timeout_s=timeout_s if remaining_s is None else min(timeout_s, remaining_s),
            request_id=request.request_id,
        )
        sent_ns = time.perf_counter_ns()
        try:
            dense = scorer.read_dense(request.dense, request.num_candidates)
            positions = {
                feature: np.broadcast_to(inverse.astype(np.intp, copy=False), request.num_candidates)
                for feature, (_, inverse) in distinct.items()
            }
            context.add_callback(pending.cancel)  # its caller may give up before
        except BaseException:
            pending.cancel()
            raise
        assembled_ns = time.perf_counter_ns()
        rows = pending.result()
        fetched_ns = time.perf_counter_ns()
        embeddings = scorer.embeddings(rows, positions, {feature: len(values) for feature, (values, _) in distinct.items()})
        decoded_ns = time.perf_counter_ns()
        scores, upper_us = scorer.score(dense, embeddings)
        answer.ctr.extend(scores[:, 0].tolist())
        answer.cvr.extend(scores[:, 1].tolist())
        for name, table in rows.tables.items():
            self.metrics.count_rows(name, len(table.rows), table.num_unknown_ids)
            answer.num_unknown_ids += table.num_unknown_ids
        phases = {
            "prepare_us": (sent_ns - started_ns) // 1000,
            "assemble_us": (assembled_ns - sent_ns) // 1000,
            "lookup_wait_us": (fetched_ns - assembled_ns) // 1000,
            "decode_us": (decoded_ns - fetched_ns) // 1000,
            "upper_us": upper_us,
            "total_us": _since_us(started_ns),
            "lookup_us": pending.elapsed_us,
            "lookup_server_us": rows.server_us,
        }
        self.metrics.observe_us({name.removesuffix("_us"): value for name, value in phases.items()})
        answer.phases.CopyFrom(ranker_pb2.Phases(**phases))
        return answer

    def _read_ids(self, request: ranker_pb2.RankRequest, scorer: Scorer) -> dict[str, IdArray]:
        if request.num_candidates > self.config.max_candidates:
            raise InvalidRequestError(
                f"{request.num_candidates} candidates in one request: at most {self.config.max_candidates} are "
                "accepted; split it"
            )
        messages = [*request.request_features, *request.candidate_features]
        where = f"version {scorer.version}"
        check_features([message.feature for message in messages], list(scorer.id_types), where, every=True)
        lengths = [1] * len(request.request_features) + [request.num_candidates] * len(request.candidate_features)
        return {
            message.feature: _read_feature(message, scorer, length, where)
            for message, length in zip(messages, lengths, strict=True)
        }

    def _describe(self) -> ranker_pb2.RankerDescription:
        return ranker_pb2.RankerDescription(
            versions=[
                ranker_pb2.RankerVersion(
                    version=version,
                    id_features=[
                        ranker_pb2.FeatureDescription(feature=feature, id_type=id_type)
                        for feature, id_type in scorer.id_types.items()
                    ],
                    dense_features=scorer.dense_features,
                )
                for version, scorer in self._loaded.items()
            ],
            current_version=self.current_version,
            max_candidates=self.config.max_candidates,
        )


def _read_feature(message: ids_pb2.FeatureIds, scorer: Scorer, length: int, where: str) -> IdArray:
    ids = unpack_ids(message)
    if len(ids) != length:
        raise InvalidRequestError(
            f"feature {message.feature!r} has {count_ids(message)} ids: expected {length}, "
            "one of a request feature and num_candidates of a candidate feature"
        )
    check_id_type(message.feature, ids, scorer.id_types[message.feature], where)
    return ids


def _since_us(started_ns: int) -> int:
    return (time.perf_counter_ns() - started_ns) // 1000


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
