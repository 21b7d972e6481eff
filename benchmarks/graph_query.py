"""Milliseconds of a neighbour query on a freshly opened store, beside plain SQL over a table clustered alike.

The peer duckdb_sql is what one would write without a store: edges by external id in a DuckDB table ordered by (dst, time),
and one query. It need not look an idx up, nor translate one back. The first query of a store also reads the external ids of
the neighbours' type, which the others then have at hand.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np

from benchmarks.harness import LOWER, Metric, Peer, Row
from benchmarks.harness.edge_log import create_store, write_edge_log
from graphdb import GraphStore

P50_MS = Metric(name="p50_ms", unit="ms", better=LOWER)
FIRST_MS = Metric(name="first_ms", unit="ms", better=LOWER)
P99_MS = Metric(name="p99_ms", unit="ms", better=LOWER)


def run(quick: bool) -> Iterator[Row]:
    """1M edges and 200 queries when quick, else 20M and 1000."""
    num_edges, num_queries = (1_000_000, 200) if quick else (20_000_000, 1000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_edge_log(folder, num_edges)
        with create_store(folder / "store.duckdb") as store:
            store.load_edges("clicks", files)
            pins = store.view().node_ids("pin").to_numpy()
        chosen = np.random.default_rng(0).choice(pins, num_queries).tolist()
        with duckdb.connect(str(folder / "plain.duckdb")) as plain:
            plain.execute(f"CREATE TABLE edges AS SELECT dst, time, src FROM '{files}' ORDER BY dst, time")
        with (
            GraphStore.open(folder / "store.duckdb", read_only=True) as store,
            duckdb.connect(str(folder / "plain.duckdb")) as plain,
        ):
            query = "SELECT src, time FROM edges WHERE dst = ? ORDER BY time DESC LIMIT 100"
            own = _times_ms(lambda pin: store.neighbors("pin", pin, relation="clicks", limit=100), chosen)
            peer = _times_ms(lambda pin: plain.execute(query, [pin]).fetchall(), chosen)
        values = [(FIRST_MS, own[0], peer[0])]
        own_percentiles, peer_percentiles = (statistics.quantiles(times, n=100, method="inclusive") for times in (own, peer))
        values += [(metric, own_percentiles[at - 1], peer_percentiles[at - 1]) for metric, at in ((P50_MS, 50), (P99_MS, 99))]
        for metric, value, peer_value in values:
            yield Row(
                case=f"100 latest in-neighbours, {num_edges // 1_000_000}M edges",
                metric=metric,
                value=value,
                peer=Peer(name="duckdb_sql", value=peer_value),
                config={
                    "edges": num_edges,
                    "queries": num_queries,
                    "limit": 100,
                    "opened": "read-only, before the first query",
                },
            )


def _times_ms(ask: Callable[[int], object], ids: Sequence[int]) -> list[float]:
    times = []
    for one in ids:
        started = time.perf_counter()
        ask(one)
        times.append((time.perf_counter() - started) * 1e3)
    return times
