"""One ranking request: its ids are looked up while its features are read, and both are scored."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from multifacet.serving.errors import DeadlineExceededError, OverloadedError, UnavailableError
from multifacet.serving.protocol import ranker_pb2
from multifacet.serving.ranker.request_ids import distinct_ids, read_ids
from multifacet.serving.tracing import client_span, tell_lookup

if TYPE_CHECKING:
    import grpc
    import torch

    from multifacet.serving.client.lookups import LookupConnection, PendingLookup
    from multifacet.serving.config import RankerConfig
    from multifacet.serving.ranker.request_ids import GivenIds, RequestIds
    from multifacet.serving.ranker.scorer import Scorer
    from multifacet.serving.server.metrics import ServerMetrics
    from multifacet.serving.wire.answers import LookupAnswer

_LATE = (DeadlineExceededError, UnavailableError, OverloadedError)
"""What may happen to a lookup that is right; a version that is not there, or rows of another shape, are other faults."""


Score: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], tuple[npt.NDArray[np.float32], int]]"


class Scored(NamedTuple):
    """A scored request.

    Attributes:
        answer: What its caller gets.
        scores: float32 [num_candidates, 2], the same scores.
    """

    answer: ranker_pb2.RankAnswer
    scores: npt.NDArray[np.float32]


class _Fetched(NamedTuple):
    """Both inputs of the upper model, and when what was done; no rows if they are late and may be."""

    dense: torch.Tensor
    rows: LookupAnswer | None
    lookup_us: int
    sent_ns: int
    assembled_ns: int
    at_ns: int


class RequestRanker:
    """Scores requests, each with both halves of one version.

    Args:
        lookup: Where rows come from.
        config: Limits, and what to do when rows are late.
        metrics: Where to count.
    """

    def __init__(self, lookup: LookupConnection, config: RankerConfig, metrics: ServerMetrics):
        self._lookup = lookup
        self._config = config
        self._metrics = metrics

    def rank(
        self, request: ranker_pb2.RankRequest, version: str, scorer: Scorer, context: grpc.ServicerContext | None
    ) -> Scored:
        """Score a request, perhaps in one batch with others of its version.

        Args:
            request: The request.
            version: The version to score with.
            scorer: Its upper model.
            context: The call; None if nobody waits for it: it is not counted then, and scored with its rows or not at all.

        Raises:
            InvalidRequestError: Features, lengths or values are wrong.
            ServingError: The lookup failed, or its rows are not the version's.
        """
        if scorer.batcher is None:
            return self._rank(request, version, scorer, context, scorer.score)
        with scorer.batcher.expect() as arrival:
            return self._rank(request, version, scorer, context, arrival.score)

    def _rank(
        self,
        request: ranker_pb2.RankRequest,
        version: str,
        scorer: Scorer,
        context: grpc.ServicerContext | None,
        score: Score,
    ) -> Scored:
        started_ns = time.perf_counter_ns()
        given = self._read_ids(request, scorer, context)
        answer = ranker_pb2.RankAnswer(version=version, request_id=request.request_id)
        if not request.num_candidates:
            scorer.read_dense(request.dense, 0)
            answer.phases.total_us = _since_us(started_ns)
            return Scored(answer, np.empty((0, 2), np.float32))
        ids = distinct_ids(given, request.num_candidates)
        fetched = self._fetch(request, version, scorer, ids, context)
        rows = fetched.rows
        embeddings, pooling_us = _embeddings(scorer, ids, rows, request.num_candidates)
        decode_us = _since_us(fetched.at_ns) - pooling_us
        scores, upper_us = score(fetched.dense, embeddings)
        answer.ctr.extend(scores[:, 0].tolist())
        answer.cvr.extend(scores[:, 1].tolist())
        self._count(answer, rows, counted=context is not None)
        phases = {
            "prepare_us": (fetched.sent_ns - started_ns) // 1000,
            "assemble_us": (fetched.assembled_ns - fetched.sent_ns) // 1000,
            "lookup_wait_us": (fetched.at_ns - fetched.assembled_ns) // 1000,
            "decode_us": decode_us,
            "pooling_us": pooling_us,
            "upper_us": upper_us,
            "total_us": _since_us(started_ns),
            "lookup_us": fetched.lookup_us,
            "lookup_server_us": rows.server_us if rows is not None else 0,
        }
        if context is not None:
            self._metrics.observe_us({name.removesuffix("_us"): value for name, value in phases.items()})
        answer.phases.CopyFrom(ranker_pb2.Phases(**phases))
        return Scored(answer, scores)

    def _fetch(
        self,
        request: ranker_pb2.RankRequest,
        version: str,
        scorer: Scorer,
        ids: RequestIds,
        context: grpc.ServicerContext | None,
    ) -> _Fetched:
        """Look ids up, and read the dense features meanwhile."""
        falls_back = self._config.lookup_fallback == "without_tables" and context is not None
        pending: PendingLookup | None = None
        with client_span("lookup", request__id=request.request_id, version=version, server_address=self._lookup.address) as hop:
            try:
                pending = self._lookup.start(
                    version, ids.distinct, timeout_s=self._lookup_timeout_s(context), request_id=request.request_id
                )
            except _LATE as error:
                if not falls_back:
                    raise
                hop.fail(error)
            sent_ns = time.perf_counter_ns()
            try:
                dense = scorer.read_dense(request.dense, request.num_candidates)
                if context is not None and pending is not None:
                    context.add_callback(pending.cancel)  # its caller may give up before
            except BaseException:
                if pending is not None:
                    pending.cancel()
                raise
            assembled_ns = time.perf_counter_ns()
            rows: LookupAnswer | None = None
            try:
                rows = pending.result() if pending is not None else None
            except _LATE as error:
                if not falls_back:
                    raise
                hop.fail(error)
            if rows is not None:
                tell_lookup(hop, rows)
        at_ns = time.perf_counter_ns()
        lookup_us = pending.elapsed_us if pending is not None else 0
        return _Fetched(dense, rows, lookup_us, sent_ns, assembled_ns, at_ns)

    def _read_ids(self, request: ranker_pb2.RankRequest, scorer: Scorer, context: grpc.ServicerContext | None) -> GivenIds:
        given = read_ids(
            request,
            scorer.manifest,
            f"version {scorer.version}",
            max_candidates=self._config.max_candidates,
            max_sequence_ids=self._config.max_sequence_ids,
        )
        if request.sequences and scorer.manifest.sequence is None and context is not None:
            self._metrics.count_event("unread_sequences")
        return given

    def _lookup_timeout_s(self, context: grpc.ServicerContext | None) -> float:
        """How long the lookup may take: what the caller leaves, less what scoring without rows would need."""
        config = self._config
        remaining_s: float | None = context.time_remaining() if context is not None else None
        if remaining_s is None:
            return config.lookup_timeout_s
        kept_s = config.fallback_reserve_s if config.lookup_fallback == "without_tables" else 0.0
        return max(1e-3, min(config.lookup_timeout_s, remaining_s - kept_s))

    def _count(self, answer: ranker_pb2.RankAnswer, rows: LookupAnswer | None, *, counted: bool) -> None:
        if rows is None:
            answer.without_tables = True
            self._metrics.count_event("without_tables")
            return
        for name, table in rows.tables.items():
            answer.num_unknown_ids += table.num_unknown_ids
            if counted:
                self._metrics.count_rows(name, len(table.rows), table.num_unknown_ids)


def _embeddings(scorer: Scorer, ids: RequestIds, rows: LookupAnswer | None, num_candidates: int) -> tuple[torch.Tensor, int]:
    return scorer.embeddings(rows, ids) if rows is not None else (scorer.no_embeddings(num_candidates), 0)


def _since_us(started_ns: int) -> int:
    return (time.perf_counter_ns() - started_ns) // 1000
