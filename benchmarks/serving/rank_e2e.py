"""Latency of ranking with INT4 tables on another server, beside the same ranker with its tables in its own process.

A client asks a ranker over gRPC for the scores of 500 candidates (one user, 500 pins, 500 advertisers). The ranker does 2 ms of
other work in each request, a matrix product as a dense tower would: remote does it while the lookup is under way, over frames
on a Unix socket. in_process fetches the same INT4 rows from its own memory; in_process_fp32 has them decoded to float32, as a
ranker without quantisation would. sequence_attention and sequence_transformer are remote with a model that also reads the
user's 20 recent pins, from the table of the pins; their peer is the model that reads none. The rankers run one at a time, in
turns, and share the machine's cores with the client.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.harness import LOWER, Metric, Peer, Row
from benchmarks.harness.releases import DIM, NUM_DENSE, write_release
from multifacet.ranking.model.sequence import Pooling, SequencePooling
from multifacet.serving import LookupConfig, RankerClient, RankerConfig, RankerServer, Release, ServerProcess
from multifacet.serving.client.lookups import LookupConnection
from multifacet.serving.lookup.mapped_release import LookupHalf
from multifacet.serving.lookup.rows import SendBuffer
from multifacet.serving.protocol import lookup_pb2
from multifacet.serving.ranker.request_ids import RequestIds
from multifacet.serving.ranker.scorer import Scorer
from multifacet.serving.wire.answers import LookupAnswer, TableRows
from multifacet.tables import IdMap, decode

Tables = Literal["remote", "in_process", "in_process_fp32", "sequence_attention", "sequence_transformer"]
CANDIDATES = 500
RECENT_PINS = 20
OTHER_WORK_MS = 2.0
P50 = Metric(name="p50_ms", unit="ms", better=LOWER)
P99 = Metric(name="p99_ms", unit="ms", better=LOWER)
_TURNS = 10
_SEQUENCES: dict[Pooling, Tables] = {"attention": "sequence_attention", "transformer": "sequence_transformer"}
_WIDTH = 128


def run(quick: bool) -> Iterator[Row]:
    """200,000 pins and 300 requests a ranker when quick, else 2M and 2,000."""
    num_pins, num_requests = (200_000, 300) if quick else (2_000_000, 2_000)
    repeats = _count_repeats()
    sizes = {"user": num_pins // 4, "pin": num_pins, "advertiser": num_pins // 40}
    with tempfile.TemporaryDirectory(prefix="multifacet-bench-") as name, ExitStack() as running:
        folder = Path(name)
        id_maps = {feature: IdMap.exact(np.arange(size, dtype=np.int64) * 3) for feature, size in sizes.items()}
        release = write_release(folder / "release", id_maps)
        releases: dict[Tables, Release] = dict.fromkeys(("remote", "in_process", "in_process_fp32"), release)
        for kind in get_args(Pooling):
            torch.manual_seed(0)
            pooling = SequencePooling(["kge"], dim=DIM, length=RECENT_PINS, kind=kind, num_heads=2)
            releases[_SEQUENCES[kind]] = write_release(folder / kind, id_maps, pooling=pooling)
        frames = f"unix:{folder / 'frames.sock'}"
        paths = tuple({version.path for version in releases.values()})
        lookup = LookupConfig(releases=paths, framed_listen=frames)
        running.enter_context(ServerProcess("lookup", lookup, folder))
        clients: dict[Tables, RankerClient] = {}
        rankers = []
        for tables, version in releases.items():
            config = RankerConfig(
                releases=(version.path,), lookup=f"framed:{frames}", listen=f"unix:{folder / tables}.sock", lookup_timeout_s=5
            )
            rankers.append(_RankerProcess(config, tables, repeats))
            clients[tables] = running.enter_context(RankerClient(config.listen, timeout_s=30))
        for ranker in rankers:  # they start at once
            running.enter_context(ranker)
        reading = set(_SEQUENCES.values())
        _check_alike({tables: client for tables, client in clients.items() if tables not in reading}, sizes)
        latencies_ms: dict[Tables, list[float]] = {tables: [] for tables in clients}
        for turn in range(_TURNS):
            for tables, client in clients.items():
                latencies_ms[tables] += _ask(client, sizes, num_requests // _TURNS, turn, reads_sequence=tables in reading)
    config_row = {"candidates": CANDIDATES, "other_work_ms": OTHER_WORK_MS, "requests": num_requests, "rows": sizes, "dim": DIM}
    for metric, percentile in ((P50, 50), (P99, 99)):
        values = {tables: float(np.percentile(measured, percentile)) for tables, measured in latencies_ms.items()}
        for peer in ("in_process", "in_process_fp32"):
            beside = Peer(name=peer, value=values[peer])
            yield Row(case="remote", metric=metric, value=values["remote"], peer=beside, config=config_row)
        without = Peer(name="remote", value=values["remote"])
        for case in _SEQUENCES.values():
            yield Row(case=case, metric=metric, value=values[case], peer=without, config={**config_row, "recent": RECENT_PINS})


def _request(sizes: Mapping[str, int], generator: np.random.Generator) -> tuple[Any, Any, Any, Any]:
    candidates = {name: generator.integers(0, sizes[name], CANDIDATES) * 3 for name in ("pin", "advertiser")}
    dense = generator.normal(size=(CANDIDATES, NUM_DENSE)).astype(np.float32)
    recent = generator.integers(0, sizes["pin"], RECENT_PINS) * 3
    return {"user": int(generator.integers(0, sizes["user"])) * 3}, candidates, dense, {"recent_pins": recent}


def _ask(client: RankerClient, sizes: Mapping[str, int], num: int, seed: int, *, reads_sequence: bool) -> list[float]:
    generator = np.random.default_rng(seed)
    latencies_ms = []
    for number in range(num + 20):
        user, candidates, dense, sequences = _request(sizes, generator)
        started = time.perf_counter()
        client.rank(user, candidates, dense=dense, sequences=sequences if reads_sequence else None)
        if number >= 20:  # what came before warms this ranker's turn up
            latencies_ms.append((time.perf_counter() - started) * 1e3)
    return latencies_ms


def _check_alike(clients: Mapping[Tables, RankerClient], sizes: Mapping[str, int]) -> None:
    user, candidates, dense, _ = _request(sizes, np.random.default_rng(99))
    scores = [client.rank(user, candidates, dense=dense).ctr for client in clients.values()]
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], rtol=1e-5)


class _InProcess(LookupConnection):
    """A lookup connection that needs no server: the rows are in this process."""

    address = "in process"
    timeout_s = 1.0
    server = "the ranker's own tables"

    def __init__(self, release: Release):
        self._release = release
        self._half = LookupHalf(release)
        self._send = SendBuffer()

    def start(
        self,
        version: str,
        ids: Mapping[str, npt.ArrayLike],
        *,
        timeout_s: float | None = None,  # noqa: ARG002
        request_id: str = "",  # noqa: ARG002
    ) -> _Fetch:
        """Nothing is started: the work is this process's own."""
        return _Fetch(self, version, ids)

    def fetch(self, version: str, ids: Mapping[str, npt.ArrayLike]) -> LookupAnswer:
        """The rows, now."""
        given = {feature: np.frombuffer(np.asarray(values, np.int64).tobytes(), np.int64) for feature, values in ids.items()}
        tables = {}
        for fetched in self._half.fetch(given, self._send):
            stored = np.frombuffer(self._send.read(fetched.start, fetched.start + fetched.num_bytes), np.uint8)
            table = fetched.table
            tables[table.name] = TableRows(
                rows=stored.reshape(fetched.num_rows, table.row_bytes),
                dim=table.dim,
                precision=table.precision,
                num_unknown_ids=fetched.num_unknown_ids,
            )
        return LookupAnswer(version=version, tables=tables, server_us=0)

    def describe(self, *, timeout_s: float | None = None) -> lookup_pb2.LookupDescription:  # noqa: ARG002
        """The one version that is there."""
        return lookup_pb2.LookupDescription(
            versions=[lookup_pb2.LookupVersion(version=self._release.version)], max_ids_per_request=1 << 20
        )

    def close(self) -> None:
        """Nothing is open."""


class _Fetch:
    """A lookup that is done when its result is asked for."""

    elapsed_us = 0

    def __init__(self, tables: _InProcess, version: str, ids: Mapping[str, npt.ArrayLike]):
        self._call = tables, version, ids

    def cancel(self) -> None:
        """There is nothing to cancel."""

    def result(self) -> LookupAnswer:
        """The rows."""
        tables, version, ids = self._call
        return tables.fetch(version, ids)


class _Float32Tables(_InProcess):
    """Float32 rows of this process."""

    def __init__(self, release: Release):
        self._release = release
        self._tables_of = {
            table.feature: (
                table.name,
                release.id_map(table.id_map),
                decode(torch.from_numpy(release.map_rows(table).copy()), table.dim, table.precision),
            )
            for table in release.tables
        }

    def fetch(self, version: str, ids: Mapping[str, npt.ArrayLike]) -> LookupAnswer:
        """Rows of four bytes a value."""
        tables = {}
        for feature, values in ids.items():
            name, id_map, vectors = self._tables_of[feature]
            rows = vectors.index_select(0, torch.from_numpy(id_map.rows(np.asarray(values, np.int64))))
            tables[name] = TableRows(rows=rows.view(torch.uint8).numpy(), dim=DIM, precision="fp32", num_unknown_ids=0)
        return LookupAnswer(version=version, tables=tables, server_us=0)


def _concatenate(scorer: Scorer, answer: LookupAnswer, ids: RequestIds) -> tuple[torch.Tensor, int]:
    """As `Scorer.embeddings`, of float32 rows: no decoding."""
    offsets, blocks, start = [], [], 0
    for table in scorer.manifest.tables:
        blocks.append(torch.from_numpy(answer.tables[table.name].rows).view(torch.float32))
        offsets.append(ids.positions[table.feature] + start)
        start += len(ids.distinct[table.feature])
    slots = torch.from_numpy(np.stack(offsets, axis=1).ravel())
    return torch.cat(blocks).index_select(0, slots).view(-1, len(blocks), scorer.dim), 0


def _serve(config: RankerConfig, tables: Tables, repeats: int, ready: Connection) -> None:
    torch.set_num_threads(1)
    server = RankerServer(config)
    (version,) = server.versions
    scorer = server._loaded.get(version)
    release = Release.open(config.releases[0], verify=False)
    if tables == "in_process":
        server._requests._lookup = _InProcess(release)
    elif tables == "in_process_fp32":
        server._requests._lookup = _Float32Tables(release)
        scorer.embeddings = lambda *given: _concatenate(scorer, *given)  # type: ignore[method-assign]
    read_dense, left = scorer.read_dense, torch.rand(_WIDTH, _WIDTH)

    def read_dense_and_more(packed: bytes, num_candidates: int) -> torch.Tensor:
        for _ in range(repeats):
            torch.mm(left, left)
        return read_dense(packed, num_candidates)

    scorer.read_dense = read_dense_and_more  # type: ignore[method-assign]
    with server:
        ready.send(server.address)
        ready.poll(None)  # until the parent closes its end, or dies


def _count_repeats() -> int:
    """How many products take `OTHER_WORK_MS`; counted once, so that every ranker does the same work."""
    torch.set_num_threads(1)
    left = torch.rand(_WIDTH, _WIDTH)
    times = []
    for _ in range(2000):
        started = time.perf_counter()
        torch.mm(left, left)
        times.append(time.perf_counter() - started)
    return max(1, round(OTHER_WORK_MS * 1e-3 / float(np.percentile(times, 20))))


class _RankerProcess:
    """A ranker's process, within a ``with`` block."""

    def __init__(self, config: RankerConfig, tables: Tables, repeats: int):
        context = multiprocessing.get_context("spawn")
        self._end, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(config, tables, repeats, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> _RankerProcess:
        self._end.recv()  # it is ready
        return self

    def __exit__(self, *unused: object) -> None:
        self._end.close()
        self._process.join(15)
        self._process.kill()
