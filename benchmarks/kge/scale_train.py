"""Training from a feed: a rank's memory as edges grow, what all ranks read, speed and quality beside triples in memory.

memory: two gloo ranks on one host train an epoch of ComplEx of dimension 16 over 2M and over 10M draws of pairs of the same
nodes. A rank's bytes an edge are the difference of the larger rank's peaks by that of the edges. Peaks are of memory of its
own, within the training: pages of files, which the system may drop, differ between two equal ranks by more. The peer is what a
rank held of triples in memory, 49 bytes an edge. Bytes read are all ranks' reads of one epoch, as the kernel counts them, over
the bytes of the shards. speed: the fused step of one process, batches from the feed (read, shuffled and drawn) beside those of
the same triples in memory, in turns of a second. quality: filtered MRR on FB15k-237's validation part, of seeds from the feed
and of seeds in memory.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, Final

import numpy as np
import torch

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from benchmarks.harness.feeds import feed_of_split, power_law_feed, renamed
from benchmarks.harness.knowledge_graphs import load_split
from benchmarks.harness.memory import PeakMemory
from benchmarks.kge.kge_speed import BASE, EDGES_PER_S, Course, Ours, power_law_graph, run_race
from multifacet import kge
from multifacet.graphdb import Feed
from multifacet.kge import KgeConfig, TripleSplit
from multifacet.kge.batches.feed_source import FeedSource
from multifacet.kge.triples.feeds import FeedSplit
from multifacet.training import Position

BYTES_AN_EDGE: Final = Metric(name="rank_bytes_per_edge", unit="bytes", better=LOWER)
OWN: Final = Metric(name="rank_own_memory", unit="bytes", better=LOWER)
PEAK: Final = Metric(name="rank_peak_rss", unit="bytes", better=LOWER)
READ: Final = Metric(name="bytes_read_over_feed", unit="", better=LOWER)
MRR: Final = Metric(name="filtered_mrr", unit="", better=HIGHER)
MRR_APART: Final = Metric(name="mrr_apart_in_deviations", unit="", better=LOWER)

_RANKS: Final = 2
_SIZES: Final = (2_000_000, 10_000_000)
_QUICK_SIZES: Final = (50_000,)
_HELD_IN_MEMORY: Final = 49.0
_SHARDED: Final = {
    "model": "complex",
    "dim": 16,
    "epochs": 1,
    "batch_size": 32_768,
    "chunk_size": 128,
    "num_uniform": 32,
    "num_degree": 16,
}
_QUALITY: Final = {"model": "complex", "dim": 100, "epochs": 10, "reciprocal": True, "batch_size": 1000, "chunk_size": 100}
_SEEDS: Final = 8


def run(quick: bool) -> Iterator[Row]:
    """50,000 edges, and neither growth nor quality, when quick; else 2M and 10M edges, and 16 trainings on FB15k-237."""
    yield from _memory(_QUICK_SIZES if quick else _SIZES)
    yield from _speed(2 if quick else 9)
    split = None if quick else load_split("fb15k-237")
    if split is not None:
        yield from _quality(split)


def _memory(sizes: Sequence[int]) -> Iterator[Row]:
    peaks, counts = [], []
    for num_edges in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            feed = power_law_feed(folder, num_edges=num_edges, num_users=200_000, num_pins=50_000, num_shards=64)
            shard_bytes = feed.counts.sum() * feed.record.itemsize
            trained = run_ranks(train_epoch, folder)
            read = run_ranks(read_epoch, folder)
        peaks.append(max(rank["own_bytes"] for rank in trained))
        counts.append(int(feed.counts.sum()))
        case = f"{num_edges / 1e6:g}M draws"
        config = {"edges": counts[-1], "ranks": _RANKS, "shards": feed.num_shards, "trained": trained, "read": read, **_SHARDED}
        yield Row(case=case, metric=OWN, value=peaks[-1], config=config)
        yield Row(case=case, metric=PEAK, value=max(rank["peak_bytes"] for rank in trained), config=config)
        yield Row(case=case, metric=READ, value=sum(rank["bytes"] for rank in read) / shard_bytes, config=config)
        speed = trained[0]["edges_per_s"]
        yield Row(case=f"{case}, {_RANKS} gloo ranks", metric=EDGES_PER_S, value=speed, config=config)
    if len(sizes) == 1:
        return
    growth = max(0.0, (peaks[1] - peaks[0]) / (counts[1] - counts[0]))
    config = {"peaks": peaks, "edges": counts, **_SHARDED}
    # A growth below zero is the noise of the peaks; a ratio needs a number above it.
    peer = Peer(name="triples in memory", value=_HELD_IN_MEMORY)
    case = f"{sizes[0] / 1e6:g}M to {sizes[1] / 1e6:g}M draws"
    yield Row(case=case, metric=BYTES_AN_EDGE, value=max(growth, 1e-3), peer=peer, config=config)


def _speed(num_rounds: int) -> Iterator[Row]:
    graph = power_law_graph(num_nodes=14_541, num_relations=237, num_edges=272_115)
    config = KgeConfig.model_validate(BASE | {"model": "complex"})
    with tempfile.TemporaryDirectory() as name:
        feed = feed_of_split(Path(name), graph, num_shards=64)
        courses = [
            Course(FeedSplit.of(feed), config, Ours, source=FeedSource(feed, config)),
            Course(graph, config, Ours),
        ]
        race = run_race(courses, num_rounds)
    ours, peer = (median(rounds) for rounds in race.edges_per_s)
    described = {"threads": torch.get_num_threads(), "rounds": num_rounds, "edges": int(feed.counts.sum()), **BASE}
    described["rounds_edges_per_s"] = [[round(speed) for speed in course] for course in race.edges_per_s]
    case = "complex, one process, power law of fb15k-237's size"
    yield Row(case=case, metric=EDGES_PER_S, value=ours, peer=Peer(name="in memory", value=peer), config=described)


def _quality(split: TripleSplit) -> Iterator[Row]:
    parts = [renamed(part) for part in split]
    named = TripleSplit(train=parts[0], valid=parts[1], test=parts[2])
    known, found = kge.known_pairs(*parts), dict[str, list[float]]()
    nothing = TripleSplit(train=named.train, valid=named.valid.take(slice(0)), test=named.test)
    with tempfile.TemporaryDirectory() as name:
        feed = feed_of_split(Path(name), split, num_shards=64)
        for seed in range(_SEEDS):
            config = KgeConfig.model_validate(BASE | _QUALITY | {"seed": seed})
            for source, result in (("feed", kge.train(feed, config)), ("in memory", kge.train_triples(nothing, config))):
                ranked = kge.evaluate(result.predictor(), named.valid.edges(), known)
                found.setdefault(source, []).append(ranked["filtered_mrr"])
    described = {"seeds": _SEEDS, "found": found, **BASE, **_QUALITY}
    ours, peer = found["feed"], found["in memory"]
    yield Row(case="fb15k-237", metric=MRR, value=mean(ours), peer=Peer(name="in memory", value=mean(peer)), config=described)
    apart = abs(mean(ours) - mean(peer)) / stdev(peer)
    yield Row(case="fb15k-237", metric=MRR_APART, value=apart, config=described)


def train_epoch(rank: int, folder: Path) -> dict[str, Any]:
    """One epoch of this rank's shards."""
    del rank
    feed = Feed.open(folder / "feed", verify=False)
    with PeakMemory() as memory:
        result = kge.train(feed, KgeConfig.model_validate(_SHARDED))
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    if peak is None:
        raise RuntimeError("/proc/self/status has no VmHWM, the peak of resident memory; run this on Linux")
    return {"own_bytes": memory.growth, "peak_bytes": int(peak[1]) * 1024, "edges_per_s": result.history[-1]["edges_per_s"]}


def read_epoch(rank: int, folder: Path) -> dict[str, Any]:
    """What the kernel has read for this process while it drew one epoch's batches, steps left out."""
    feed = Feed.open(folder / "feed", verify=False)
    config = KgeConfig.model_validate(_SHARDED)
    source = FeedSource(feed, config, rank=rank, world_size=_RANKS, tells_places=False)
    before, edges = _bytes_read(), 0
    key = Position(generator=np.random.default_rng(0)).begin_epoch(lambda generator: int(generator.integers(1 << 62)))
    for planned in source.plan(key):
        edges += len(planned.positions)
    return {"bytes": _bytes_read() - before, "edges": edges}


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split("\n")[0])


def run_ranks(program: Callable[[int, Path], dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Run a program as gloo ranks on this host; gives what each has returned."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = int(bound.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_enter, args=(program, rank, port, folder)) for rank in range(_RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a rank ended with exit code {process.exitcode}; its error stands above")
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(_RANKS)]


def _enter(program: Callable[[int, Path], dict[str, Any]], rank: int, port: int, folder: Path) -> None:
    import torch.distributed as dist  # noqa: PLC0415

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=_RANKS)
    (folder / f"rank-{rank}.json").write_text(json.dumps(program(rank, folder)))
    dist.destroy_process_group()
