"""Latency and throughput of lookups of 2,000 unique ids over the wire, beside Redis MGET and gRPC with lists of floats.

One INT4 table of 64 values, 36 bytes a row, ids drawn uniformly: exact ids by an index; placed, exact ids that stand with
their rows; hashed ones. The case local asks over frames on a Unix socket, grpc over gRPC on loopback TCP; both by the
library's Python clients, as are the peers: redis over a Unix socket (left out where there is no redis-server), and
grpc_floats, a service that sends decoded rows as a repeated float. Two peers say what the wire alone costs: echo sends as
many bytes there and back over a bare Unix socket, and grpc_empty over a gRPC method that does nothing. p50_ms and p99_ms are
of one client that asks without a pause; rows_per_s is of two client processes at once. All servers are up at once, and all
cases are measured in turns; each figure is the median of the turns. A server of two processes is asked by two clients at
once: four processes then share the cores. Everything shares the machine's cores.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from benchmarks.harness.bare_services import BareService, GrpcClient, SocketClient
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
REQUEST_BYTES = 8 * NUM_IDS + 128
ANSWER_BYTES = ROW_BYTES * NUM_IDS + 160
"""Of the frames of such a lookup, rounded up: what the bare peers send."""
_BYTES_PER_ROW = Metric(name="bytes_per_row", unit="bytes", better=LOWER)
_POOL = 128
_WARM = 30
_SHARE_OF_REQUESTS = {"redis": 10, "grpc_floats": 20}
"""Slow peers are asked less often."""
_TWO = "local, placed ids, 2 processes"
_OF_GRPC = ("grpc_empty",)
_OF_FRAMES = ("echo", "redis", "grpc_floats")


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
        if self.kind == "echo":
            echo = SocketClient(self.address, REQUEST_BYTES, ANSWER_BYTES)
            return lambda _: echo.ask(), echo.close
        if self.kind == "grpc_empty":
            empty = GrpcClient(self.address, REQUEST_BYTES)
            return lambda _: empty.ask(), empty.close
        client = connect_lookup(self.address, timeout_s=30)
        return lambda ids: client.lookup(self.version, {"pin": ids}), client.close


def run(quick: bool) -> Iterator[Row]:
    """100,000 rows when quick, else 1M; 300 and 1,500 requests in each of 2 and 5 turns."""
    num_rows, num_requests, seconds, turns = (100_000, 300, 0.5, 2) if quick else (1_000_000, 1_500, 1.5, 5)
    config = {"rows": num_rows, "ids": NUM_IDS, "requests": num_requests, "turns": turns, "dim": DIM, "clients": CLIENTS}
    with tempfile.TemporaryDirectory(prefix="multifacet-bench-") as name, _Clients() as clients, ExitStack() as opened:
        releases = _releases(Path(name), num_rows)
        targets, bytes_per_row = _start_peers(releases["exact ids"], _ids(num_rows - 1), opened)
        cases = _start_servers(Path(name), releases, num_rows, opened)
        targets |= cases
        measured: dict[str, list[list[float]]] = {case: [] for case in targets}
        for _ in range(turns):
            for case, target in targets.items():
                measured[case].append(
                    clients.measure(target, max(20, num_requests // _SHARE_OF_REQUESTS.get(case, 1)), seconds)
                )
        values = {case: np.median(found, axis=0).tolist() for case, found in measured.items()}
        for case in cases:
            for position, metric in enumerate(METRICS):
                for peer in _OF_GRPC + _OF_FRAMES[1:] if case.startswith("grpc") else _OF_FRAMES:
                    if peer in values:
                        beside = Peer(name=peer, value=values[peer][position])
                        yield Row(case=case, metric=metric, value=values[case][position], peer=beside, config=config)
        beside = Peer(name="1 process", value=values["local, placed ids"][2])
        yield Row(case=_TWO, metric=METRICS[2], value=values[_TWO][2], peer=beside, config=config)
        for case, other in (("local, exact ids", "local, hashed"), ("local, placed ids", "local, hashed")):
            beside = Peer(name="local, hashed", value=values[other][0])
            yield Row(case=case, metric=METRICS[0], value=values[case][0], peer=beside, config=config)
        for case in ("exact ids", "placed ids") if "redis" in bytes_per_row else ():
            beside = Peer(name="redis", value=bytes_per_row["redis"])
            yield Row(case=case, metric=_BYTES_PER_ROW, value=_lookup_bytes(releases[case]), peer=beside, config=config)


def _releases(folder: Path, num_rows: int) -> dict[str, Release]:
    exact = IdMap.exact(_ids(num_rows - 1))
    return {
        "exact ids": write_release(folder / "exact", {"pin": exact}),
        "placed ids": write_release(folder / "placed", {"pin": exact}, layout="placed"),
        "hashed": write_release(folder / "hashed", {"pin": IdMap.hashed(num_rows, id_type="int64")}),
    }


def _lookup_bytes(release: Release) -> float:
    return release.lookup_bytes / (release.tables[0].rows - 1)


def _start_servers(folder: Path, releases: dict[str, Release], num_rows: int, opened: ExitStack) -> dict[str, Target]:
    cases: dict[str, Target] = {}
    for number, (case, release) in enumerate(releases.items()):
        directory = folder / f"server-{number}"
        directory.mkdir()
        frames = directory / "frames.sock"
        config = LookupConfig(releases=(release.path,), framed_listen=f"unix:{frames}")
        server = opened.enter_context(ServerProcess("lookup", config, directory))
        cases[f"local, {case}"] = Target("local", f"framed:unix:{frames}", release.version, num_rows)
        cases[f"grpc, {case}"] = Target("grpc", server.address, release.version, num_rows)
    release, directory = releases["placed ids"], folder / "two"
    directory.mkdir()
    config = LookupConfig(releases=(release.path,), framed_listen=f"unix:{directory / 'frames.sock'}", processes=2)
    opened.enter_context(ServerProcess("lookup", config, directory))
    cases[_TWO] = Target("local", f"framed:{config.framed_listen}", release.version, num_rows)
    return cases


def _start_peers(release: Release, ids: npt.NDArray[np.int64], opened: ExitStack) -> tuple[dict[str, Target], dict[str, float]]:
    """How each peer is asked, and the bytes that a row takes there, where that is known."""
    (table,) = release.tables
    rows = release.map_rows(table)[release.id_map(table.id_map).rows(ids)]
    bytes_per_row: dict[str, float] = {}
    targets = {
        "echo": Target("echo", opened.enter_context(BareService("socket", ANSWER_BYTES)).address, "", table.rows),
        "grpc_empty": Target("grpc_empty", opened.enter_context(BareService("grpc", ANSWER_BYTES)).address, "", table.rows),
        "grpc_floats": Target("grpc_floats", opened.enter_context(FloatService(release.path)).address, "", table.rows),
    }
    if shutil.which("redis-server") is None:
        print("redis is left out: there is no redis-server on the PATH", file=sys.stderr)
        return targets, bytes_per_row
    redis = opened.enter_context(RedisRows(ids, rows))
    client = RedisClient(redis.address)
    if not np.array_equal(client.lookup(ids[-NUM_IDS:], ROW_BYTES), rows[-NUM_IDS:]):
        raise RuntimeError("Redis gives other rows than were put in")
    client.close()
    bytes_per_row["redis"] = redis.bytes_per_row
    return targets | {"redis": Target("redis", redis.address, "", table.rows)}, bytes_per_row


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
