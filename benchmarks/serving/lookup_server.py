"""Latency and throughput of lookups of 2,000 unique ids over the wire, beside Redis MGET and gRPC with lists of floats.

One INT4 table of 64 values, 36 bytes a row, ids drawn uniformly, an exact id map unless the case says hashed. The case local
asks over frames on a Unix socket, grpc over gRPC on loopback TCP; both by the library's Python clients, as are the peers:
redis over a Unix socket, and grpc_floats, a service that sends decoded rows as a repeated float. p50_ms and p99_ms are of one
client that asks without a pause; rows_per_s is of two client processes at once. Everything shares the machine's cores.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from benchmarks.harness.float_service import FloatClient, FloatService
from benchmarks.harness.redis_rows import RedisClient, RedisRows
from benchmarks.harness.releases import DIM, ROW_BYTES, write_release
from multifacet.serving import LookupConfig, Release, ServerProcess, connect_lookup
from multifacet.tables import IdMap

NUM_IDS = 2000
CLIENTS = 2
METRICS = (
    Metric(name="p50_ms", unit="ms", better=LOWER),
    Metric(name="p99_ms", unit="ms", better=LOWER),
    Metric(name="rows_per_s", unit="1/s", better=HIGHER),
)
_BYTES_PER_ROW = Metric(name="bytes_per_row", unit="bytes", better=LOWER)
_POOL = 128
_WARM = 30


@dataclass(frozen=True)
class Target:
    """What a client process asks: a kind of client, an address, a version where there are versions, and known ids."""

    kind: str
    address: str
    version: str
    num_rows: int

    def open(self) -> tuple[Callable[[npt.NDArray[np.int64]], object], Callable[[], None]]:
        """How to ask, and how to end."""
        if self.kind == "redis":
            redis = RedisClient(self.address)
            return lambda ids: redis.lookup(ids, ROW_BYTES), redis.close
        if self.kind == "grpc_floats":
            floats = FloatClient(self.address)
            return lambda ids: floats.lookup(ids, DIM), floats.close
        client = connect_lookup(self.address, timeout_s=30)
        return lambda ids: client.lookup(self.version, {"pin": ids}), client.close


def run(quick: bool) -> Iterator[Row]:
    """100,000 rows when quick, else 1M; 300 and 3,000 requests."""
    num_rows, num_requests, seconds = (100_000, 300, 0.5) if quick else (1_000_000, 3_000, 3.0)
    config = {"rows": num_rows, "ids": NUM_IDS, "requests": num_requests, "dim": DIM, "clients": CLIENTS}
    with tempfile.TemporaryDirectory(prefix="multifacet-bench-") as name, _Clients() as clients:
        folder = Path(name)
        ids = _ids(num_rows - 1)
        exact = write_release(folder / "exact", {"pin": IdMap.exact(ids)})
        peers, bytes_per_row = _measure_peers(exact, ids, clients, num_requests, seconds)
        ours = bytes_per_row.pop("multifacet")
        hashed = write_release(folder / "hashed", {"pin": IdMap.hashed(num_rows, id_type="int64")})
        measured: dict[str, list[float]] = {}
        for release, suffix in ((exact, ""), (hashed, ", hashed")):
            lookup = LookupConfig(releases=(release.path,), framed_listen=f"unix:{folder / 'frames.sock'}")
            with ServerProcess("lookup", lookup, folder) as server:
                for case, address in (("local", f"framed:unix:{folder / 'frames.sock'}"), ("grpc", server.address)):
                    target = Target(case, address, release.version, num_rows)
                    measured[case + suffix] = clients.measure(target, num_requests, seconds)
        for case, values in measured.items():
            for position, metric in enumerate(METRICS):
                for peer, peer_values in peers.items():
                    beside = Peer(name=peer, value=peer_values[position])
                    yield Row(case=case, metric=metric, value=values[position], peer=beside, config=config)
        for peer, peer_bytes in bytes_per_row.items():
            beside = Peer(name=peer, value=peer_bytes)
            yield Row(case="memory", metric=_BYTES_PER_ROW, value=ours, peer=beside, config=config)


def _measure_peers(
    release: Release, ids: npt.NDArray[np.int64], clients: _Clients, num_requests: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Each peer's measurements, and the bytes that a row takes here and there, id map included."""
    (table,) = release.tables
    rows = release.map_rows(table)[: len(ids)]
    measured = {}
    files: dict[str, Any] = {path.name: path.stat().st_size for path in (release.path / "lookup").rglob("*") if path.is_file()}
    bytes_per_row = {"multifacet": sum(files.values()) / len(ids)}
    with RedisRows(ids, rows) as redis:
        target = Target("redis", redis.address, "", table.rows)
        client = RedisClient(redis.address)
        if not np.array_equal(client.lookup(ids[-NUM_IDS:], ROW_BYTES), rows[-NUM_IDS:]):
            raise RuntimeError("Redis gives other rows than were put in")
        client.close()
        measured["redis"] = clients.measure(target, num_requests // 10, seconds)
        bytes_per_row["redis"] = redis.bytes_per_row
    with FloatService(release.path) as service:
        target = Target("grpc_floats", service.address, "", table.rows)
        measured["grpc_floats"] = clients.measure(target, num_requests // 20, seconds)
    return measured, bytes_per_row


def _ids(num: int) -> npt.NDArray[np.int64]:
    """Ids that are no row numbers."""
    return np.arange(num, dtype=np.int64) * 7 + 13


def _draw(target: Target, seed: int) -> list[npt.NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    known = _ids(target.num_rows - 1)
    return [generator.choice(known, NUM_IDS, replace=False) for _ in range(_POOL)]


class _Clients:
    """The client processes, started once."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(CLIENTS, mp_context=multiprocessing.get_context("spawn"))

    def __enter__(self) -> _Clients:
        list(self._pool.map(_import, range(CLIENTS)))
        return self

    def __exit__(self, *unused: object) -> None:
        self._pool.shutdown()

    def measure(self, target: Target, num_requests: int, seconds: float) -> list[float]:
        """p50 and p99 in ms of one client, and rows a second of all."""
        latencies_ms = self._pool.submit(_ask_in_turn, target, num_requests).result()
        p50, p99 = np.percentile(latencies_ms, [50, 99])
        begin = time.time() + 0.2
        rates = self._pool.map(_drive, [target] * CLIENTS, range(1, CLIENTS + 1), [begin] * CLIENTS, [seconds] * CLIENTS)
        return [float(p50), float(p99), float(sum(rates))]


def _ask_in_turn(target: Target, num_requests: int) -> list[float]:
    ask, close = target.open()
    batches = _draw(target, 0)
    latencies_ms = []
    for number in range(num_requests + _WARM):
        started = time.perf_counter()
        ask(batches[number % _POOL])
        latencies_ms.append((time.perf_counter() - started) * 1e3)
    close()
    return latencies_ms[_WARM:]


def _import(number: int) -> int:
    time.sleep(0.2)  # so that each process takes one
    return number


def _drive(target: Target, seed: int, begin: float, seconds: float) -> float:
    """Rows a second that one client process gets, in the same seconds as the others."""
    ask, close = target.open()
    batches = _draw(target, seed)
    ask(batches[0])
    time.sleep(max(0.0, begin - time.time()))
    started = time.perf_counter()
    num_asked = 0
    while time.perf_counter() - started < seconds:
        ask(batches[num_asked % _POOL])
        num_asked += 1
    elapsed = time.perf_counter() - started
    close()
    return num_asked * NUM_IDS / elapsed
