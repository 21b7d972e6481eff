"""Time to score 5,000 candidates of one user by one request, beside ten requests of 500, one after the other.

One client asks a ranker over gRPC; its tables are on a lookup server on the same machine, over frames. Both ways score the same
candidates (one user, pins and advertisers, uniform ids of exact INT4 tables). They take turns; each figure is the median of
all turns. cpu_ms is processor time of ranker and lookup server together.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from benchmarks.harness import LOWER, Metric, Peer, Row
from benchmarks.harness.releases import DIM, NUM_DENSE, write_release
from multifacet.serving import LookupConfig, RankerClient, RankerConfig, ServerProcess
from multifacet.tables import IdMap

CANDIDATES, PART = 5000, 500
P50 = Metric(name="p50_ms", unit="ms", better=LOWER)
CPU = Metric(name="cpu_ms", unit="ms", better=LOWER)


def run(quick: bool) -> Iterator[Row]:
    """200,000 pins and 10 turns when quick, else 2M and 60."""
    num_pins, turns = (200_000, 10) if quick else (2_000_000, 60)
    sizes = {"user": num_pins // 4, "pin": num_pins, "advertiser": num_pins // 40}
    with tempfile.TemporaryDirectory(prefix="multifacet-bench-") as name:
        folder = Path(name)
        id_maps = {feature: IdMap.exact(np.arange(size, dtype=np.int64) * 3) for feature, size in sizes.items()}
        release = write_release(folder / "release", id_maps, layout="placed")
        frames = f"unix:{folder / 'frames.sock'}"
        lookup = LookupConfig(releases=(release.path,), framed_listen=frames)
        ranker = RankerConfig(
            releases=(release.path,),
            lookup=f"framed:{frames}",
            listen=f"unix:{folder / 'ranker.sock'}",
            lookup_timeout_s=5,
            max_candidates=CANDIDATES,
        )
        with (
            ServerProcess("lookup", lookup, folder) as rows,
            ServerProcess("ranker", ranker, folder) as scores,
            RankerClient(ranker.listen, timeout_s=30) as client,
        ):
            processes = [psutil.Process(process.pid) for process in (rows, scores)]
            one, ten = _measure(client, processes, sizes, turns)
    config = {"candidates": CANDIDATES, "part": PART, "turns": turns, "rows": sizes, "dim": DIM, "layout": "placed"}
    for place, metric in enumerate((P50, CPU)):
        beside = Peer(name="ten of 500", value=ten[place])
        yield Row(case="5,000 candidates in one request", metric=metric, value=one[place], peer=beside, config=config)


def _measure(
    client: RankerClient, processes: list[psutil.Process], sizes: dict[str, int], turns: int
) -> tuple[list[float], list[float]]:
    """Wall and processor time in ms, medians: of one request, and of ten."""
    generator = np.random.default_rng(0)
    measured: dict[int, list[tuple[float, float]]] = {CANDIDATES: [], PART: []}
    for turn in range(turns + 3):
        user = {"user": int(generator.integers(0, sizes["user"])) * 3}
        ids = {feature: generator.integers(0, sizes[feature], CANDIDATES) * 3 for feature in ("pin", "advertiser")}
        dense = generator.normal(size=(CANDIDATES, NUM_DENSE)).astype(np.float32)
        scores = []
        for part in (CANDIDATES, PART) if turn % 2 else (PART, CANDIDATES):
            before, started = _cpu_s(processes), time.perf_counter()
            answers = [
                client.rank(
                    user, {key: given[start : start + part] for key, given in ids.items()}, dense=dense[start : start + part]
                )
                for start in range(0, CANDIDATES, part)
            ]
            taken = time.perf_counter() - started, _cpu_s(processes) - before
            scores.append(np.concatenate([answer.ctr for answer in answers]))
            if turn >= 3:  # what came before warmed up
                measured[part].append((taken[0] * 1e3, taken[1] * 1e3))
        np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4)
    one, ten = (np.median(measured[part], axis=0).tolist() for part in (CANDIDATES, PART))
    return one, ten


def _cpu_s(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return float(sum(each.user + each.system for each in times))
