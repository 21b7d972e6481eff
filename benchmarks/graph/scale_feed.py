"""Writing a feed as the window grows from 2M to 20M edges: its rate, and the peak memory under a limit of 1 GiB for DuckDB.

Each size is a synthetic world in a store; the feed has 64 shards and holds 10,000 pairs out. A process of its own writes it, so
that its peak memory is its own, torch and the kernels included. The peer of a size is the smallest one. Other sizes:
`MULTIFACET_SCALE_EDGES=1000000,3000000 python -m benchmarks scale_feed`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.graph.graph_scale import EDGES_PER_S, PEAK, SIZES_VARIABLE, generate, load, run_alone
from benchmarks.harness import Peer, Row
from multifacet.graphdb import GraphStore, write_feed

_SIZES: Final = (2_000_000, 20_000_000)
_QUICK_SIZES: Final = (100_000, 500_000)
_MEMORY_LIMIT: Final = "1GiB"
_SHARDS: Final = 64
_HOLD_OUT: Final = 10_000


def run(quick: bool) -> Iterator[Row]:
    """0.1M and 0.5M edges when quick, else 2M and 20M."""
    given = os.environ.get(SIZES_VARIABLE)
    sizes = [int(float(size)) for size in given.split(",")] if given else _QUICK_SIZES if quick else _SIZES
    first: tuple[float, float] | None = None
    for num_edges in sizes:
        with tempfile.TemporaryDirectory() as name:
            for step in (generate, load):
                run_alone(step, Path(name), num_edges)
            made, seconds, peak_bytes = run_alone(feed, Path(name), num_edges)
            num_bytes = sum(path.stat().st_size for path in (Path(name) / "feed").rglob("*") if path.is_file())
        config: dict[str, Any] = {"edges": num_edges, "counted": made, "seconds": seconds, "feed_bytes": num_bytes}
        config |= {"memory_limit": _MEMORY_LIMIT, "shards": _SHARDS, "hold_out": _HOLD_OUT}
        case, found = f"{num_edges / 1e6:g}M edges", (made / seconds, float(peak_bytes))
        first = first or found
        for metric, value, least in zip((EDGES_PER_S, PEAK), found, first, strict=True):
            peer = None if first is found else Peer(name=f"{sizes[0] / 1e6:g}M edges", value=least)
            yield Row(case=case, metric=metric, value=value, peer=peer, config=config)


def feed(folder: Path, num_edges: int) -> tuple[int, float]:
    """The feed of the whole store, the window's fingerprint included; the kernels are loaded beforehand."""
    del num_edges
    with GraphStore.open(folder / "store.duckdb", read_only=True, memory_limit=_MEMORY_LIMIT) as store:
        small = store.view(relations=[store.schema.relations[-1].name])
        write_feed(small, folder / "warm", num_shards=2, hold_out=10)
        view = store.view()
        num_read = sum(view.num_edges.values())
        started = time.perf_counter()
        write_feed(view, folder / "feed", num_shards=_SHARDS, hold_out=_HOLD_OUT)
        return num_read, time.perf_counter() - started
