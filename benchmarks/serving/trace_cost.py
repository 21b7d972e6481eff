"""Latency of ranking with OpenTelemetry's spans on every hop, beside the same servers without.

A client asks a ranker for the scores of 500 candidates (one user, 500 pins, 500 advertisers); the ranker asks a lookup server
over frames on a Unix socket. There are three pairs of servers: tracing is off; one request in a hundred is sampled, by the
client, whose choice the servers take; every request is. Spans go by OTLP to a collector that reads and drops them. A traced
pair is asked in turns with the one that is not, and all share the machine's cores with the client and the collector.
"""

from __future__ import annotations

import http.server
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, Literal

import numpy as np
from opentelemetry.sdk.trace import TracerProvider

from benchmarks.harness import LOWER, Metric, Peer, Row
from benchmarks.harness.releases import NUM_DENSE, write_release
from multifacet.serving import LookupConfig, RankerClient, RankerConfig, ServerProcess, start_tracing, stop_tracing
from multifacet.serving.tracing import start_exporting
from multifacet.tables import IdMap

CANDIDATES: Final = 500
P50 = Metric(name="p50_ms", unit="ms", better=LOWER)
P99 = Metric(name="p99_ms", unit="ms", better=LOWER)
_TURNS: Final = 40
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_SAMPLER: Final = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}
_WARM_UP: Final = 50
Kind = Literal["off", "one in 100", "every"]
_SHARES: Final[dict[Kind, float]] = {"off": 0.0, "one in 100": 0.01, "every": 1.0}


def run(quick: bool) -> Iterator[Row]:
    """50,000 pins and 160 requests of each kind when quick, else 500,000 and 2,000."""
    num_pins, num_requests = (50_000, 160) if quick else (500_000, 2_000)
    sizes = {"user": num_pins // 4, "pin": num_pins, "advertiser": num_pins // 40}
    kinds = tuple(_SHARES)
    latencies_ms: dict[tuple[Kind, Kind], list[float]] = {
        (traced, kind): [] for traced in kinds[1:] for kind in ("off", traced)
    }
    with tempfile.TemporaryDirectory(prefix="multifacet-bench-") as name, ExitStack() as running:
        folder = Path(name)
        id_maps = {feature: IdMap.exact(np.arange(size, dtype=np.int64) * 3) for feature, size in sizes.items()}
        release = write_release(folder / "release", id_maps)
        running.enter_context(_collector())
        clients, providers = {}, {}
        for number, kind in enumerate(kinds):
            own = folder / str(number)
            own.mkdir()
            frames = f"unix:{own}/frames"
            tracing: Literal["off", "otlp"] = "off" if kind == "off" else "otlp"
            lookup = LookupConfig(releases=(release.path,), listen=f"unix:{own}/lookup", framed_listen=frames, tracing=tracing)
            running.enter_context(ServerProcess("lookup", lookup, own))
            ranker = RankerConfig(
                releases=(release.path,), lookup=f"framed:{frames}", listen=f"unix:{own}/ranker", tracing=tracing
            )
            running.enter_context(ServerProcess("ranker", ranker, own))
            clients[kind] = running.enter_context(RankerClient(ranker.listen, timeout_s=30))
            _ask(clients[kind], sizes, _WARM_UP, seed=1)
            if kind != "off":
                providers[kind] = _provide(_SHARES[kind])
                running.callback(providers[kind].shutdown)
        for traced in kinds[1:]:  # one after the other, as spans are sent after their requests, beside whoever is asked then
            pair: tuple[Kind, Kind] = ("off", traced)
            for turn in range(_TURNS):
                for kind in pair if turn % 2 else pair[::-1]:
                    if kind in providers:
                        start_tracing(providers[kind])
                    latencies_ms[traced, kind] += _ask(clients[kind], sizes, num_requests // _TURNS, seed=turn)
                    stop_tracing()
    config = {"candidates": CANDIDATES, "requests": num_requests, "rows": sizes, "turns": _TURNS}
    for metric, percentile in ((P50, 50), (P99, 99)):
        values = {key: float(np.percentile(measured, percentile)) for key, measured in latencies_ms.items()}
        for kind in kinds[1:]:
            beside = Peer(name="off", value=values[kind, "off"])
            yield Row(case=kind, metric=metric, value=values[kind, kind], peer=beside, config=config)


def _provide(share: float) -> TracerProvider:
    """A provider that samples a share of the traces, as OpenTelemetry's variables say."""
    variables = _SAMPLER | {"OTEL_TRACES_SAMPLER_ARG": str(share)}
    os.environ.update(variables)
    try:
        return start_exporting("multifacet-benchmark")
    finally:
        stop_tracing()
        for name in variables:
            del os.environ[name]


def _ask(client: RankerClient, sizes: dict[str, int], num_requests: int, seed: int) -> list[float]:
    """Milliseconds of each request."""
    generator = np.random.default_rng(seed)
    dense = generator.standard_normal((CANDIDATES, NUM_DENSE), dtype=np.float32)
    measured = []
    for _ in range(num_requests):
        user = int(generator.integers(sizes["user"])) * 3
        candidates = {feature: generator.integers(0, sizes[feature], CANDIDATES) * 3 for feature in ("pin", "advertiser")}
        started = time.perf_counter()
        client.rank({"user": user}, candidates, dense=dense)
        measured.append((time.perf_counter() - started) * 1e3)
    return measured


@contextmanager
def _collector() -> Iterator[None]:
    """A process that takes spans; the environment of whoever starts within says where it is."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_collect, args=(theirs,), daemon=True)
    process.start()
    before = os.environ.get(_ENDPOINT)
    os.environ[_ENDPOINT] = f"http://127.0.0.1:{ours.recv()}"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ENDPOINT]
        else:
            os.environ[_ENDPOINT] = before
        process.terminate()
        process.join()


class _Sink(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Read and drop."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


def _collect(told: Connection) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    told.send(server.server_port)
    server.serve_forever()
