"""What dynamic batching of a ranker's requests brings: processor time a request, and requests a second with a p99 of 50 ms.

An open loop asks for scores of 50 or 500 candidates, at rates that grow until the p99, counted from the moment at which a
request was due, is above 50 ms. Both rankers run all the time, and take turns at each rate, in an order that alternates: the
peer is the ranker that scores each request by itself. Rows come from a lookup server of its own process, over frames. The
processor time is that of the ranker's process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from benchmarks.harness.releases import write_release
from multifacet.serving import LookupConfig, RankerClient, RankerConfig, Release, ServerProcess
from multifacet.serving.load.open_loop import run_open_loop
from multifacet.serving.load.workload import rank_request
from multifacet.tables import IdMap

LIMIT_MS = 50.0
WORKERS = 8
BATCH = {"batch_max_candidates": 2000, "batch_wait_us": 500}
RATE = Metric(name="rate_per_s", unit="requests/s", better=HIGHER)
P99 = Metric(name="p99_ms", unit="ms", better=LOWER)
CPU = Metric(name="cpu_ms", unit="ms", better=LOWER)
_CLIENTS = 16
_NEVER_MS = 10_000.0  # a request failed
_GROWTH = 1.4
_FIRST_RATE = {50: 80.0, 500: 40.0}


def run(quick: bool) -> Iterator[Row]:
    """Loads of 1.5 s when quick, else 4 s."""
    seconds = 1.5 if quick else 4.0
    with tempfile.TemporaryDirectory(prefix="multifacet-bench-") as name, ExitStack() as running:
        folder = Path(name)
        sizes = {"user": 50_000, "pin": 200_000, "advertiser": 5_000}
        id_maps = {feature: IdMap.exact(np.arange(size, dtype=np.int64) * 3) for feature, size in sizes.items()}
        release = write_release(folder / "release", id_maps, hidden=256)
        frames = f"unix:{folder / 'frames.sock'}"
        running.enter_context(ServerProcess("lookup", LookupConfig(releases=(release.path,), framed_listen=frames), folder))
        rankers = {}
        for kind, batch in (("alone", {}), ("batched", BATCH)):
            own = folder / kind
            own.mkdir()
            config = RankerConfig.model_validate(
                {"releases": (release.path,), "lookup": f"framed:{frames}", "workers": WORKERS, "lookup_timeout_s": 5, **batch}
            )
            rankers[kind] = running.enter_context(ServerProcess("ranker", config, own))
        for candidates, first_rate in _FIRST_RATE.items():
            yield from _ladder(release, rankers, candidates, first_rate, seconds)


class _Load(NamedTuple):
    """What one load showed.

    Attributes:
        p99_ms: From the moment that a request was due.
        cpu_ms: Processor time of the ranker's process, a request.
    """

    p99_ms: float
    cpu_ms: float


def _ladder(
    release: Release, rankers: Mapping[str, ServerProcess], candidates: int, first_rate: float, seconds: float
) -> Iterator[Row]:
    config = {"candidates": candidates, "limit_ms": LIMIT_MS, "seconds": seconds, "workers": WORKERS, **BATCH}
    best: dict[str, float] = {}
    rate = first_rate
    kept = set(rankers)
    turn = 0
    while kept:
        loads = {
            kind: _load(release, rankers[kind], candidates, rate, seconds, turn)
            for kind in sorted(rankers, reverse=bool(turn % 2))
        }
        kept = {kind for kind in kept if loads[kind].p99_ms <= LIMIT_MS}
        best.update(dict.fromkeys(kept, rate))
        case = f"{candidates}_at_{rate:.0f}"
        for metric, place in ((P99, 0), (CPU, 1)):
            peer = Peer(name="alone", value=loads["alone"][place])
            yield Row(case=case, metric=metric, value=loads["batched"][place], peer=peer, config=config)
        rate *= _GROWTH
        turn += 1
    if len(best) == len(rankers):
        peer = Peer(name="alone", value=best["alone"])
        yield Row(case=f"{candidates}", metric=RATE, value=best["batched"], peer=peer, config=config)


def _load(release: Release, ranker: ServerProcess, candidates: int, rate: float, seconds: float, seed: int) -> _Load:
    with ExitStack() as connected:
        draws = [
            rank_request(
                release,
                connected.enter_context(RankerClient(ranker.address, timeout_s=10)),
                num_candidates=candidates,
                exponent=1.0,
                seed=100 * seed + number,
            )
            for number in range(_CLIENTS)
        ]
        for draw in draws:
            draw()()
        process = psutil.Process(ranker.pid)
        before = process.cpu_times()
        result = run_open_loop(draws, rate_per_s=rate, seconds=seconds, seed=seed)
        after = process.cpu_times()
    used_s = after.user + after.system - before.user - before.system
    num = max(1, result.latency.count)
    p99_ms = result.latency.quantile_us(0.99) / 1e3 if result.latency.count and not result.errors else _NEVER_MS
    return _Load(p99_ms, used_s * 1e3 / num)
