"""Edges a second and peak memory of a load larger than its `memory_limit`, beside DuckDB's sorted copy under the same limit.

Each side runs in a process of its own, whose peak resident set is what the kernel counted: DuckDB's buffers, Python, Arrow and
the store's own arrays together. The limit binds DuckDB's buffers only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from benchmarks.harness.edge_log import write_edge_log

EDGES_PER_S = Metric(name="edges_per_s", unit="1/s", better=HIGHER)
PEAK_BYTES = Metric(name="peak_rss_bytes", unit="B", better=LOWER)

_MEASURED = """
import json, resource, sys, time
from pathlib import Path
import duckdb
from benchmarks.harness.edge_log import create_store
side, files, path, limit = sys.argv[1:]
started = time.perf_counter()
if side == "store":
    with create_store(Path(path), memory_limit=limit) as store:
        edges = store.load_edges("clicks", files).loaded
else:
    with duckdb.connect(path, config={"memory_limit": limit}) as connection:
        edges = connection.execute(
            f"CREATE TABLE edges AS SELECT src, dst, time FROM '{files}' ORDER BY dst, time"
        ).fetchall()[0][0]
seconds = time.perf_counter() - started
print(json.dumps([edges, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def run(quick: bool) -> Iterator[Row]:
    """5M edges within 256 MB when quick, else 100M within 4 GB."""
    num_edges, limit = (5_000_000, "256MB") if quick else (100_000_000, "4GB")
    config = {"edges": num_edges, "memory_limit": limit, "files": 4}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_edge_log(folder, num_edges)
        own, peer = (_measure(side, files, folder / f"{side}.duckdb", limit) for side in ("store", "duckdb_ctas"))
        case = f"int64 ids, {num_edges // 1_000_000}M edges within {limit}"
        for metric, value, other in (
            (EDGES_PER_S, own[0] / own[1], peer[0] / peer[1]),
            (PEAK_BYTES, own[2], peer[2]),
        ):
            yield Row(case=case, metric=metric, value=value, peer=Peer(name="duckdb_ctas", value=other), config=config)


def _measure(side: str, files: str, path: Path, limit: str) -> tuple[float, float, float]:
    """Edges, seconds and peak bytes of one side."""
    command = [sys.executable, "-c", _MEASURED, side, files, str(path), limit]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    path.unlink()
    edges, seconds, peak = json.loads(output)
    if edges == 0:
        raise RuntimeError(f"{side} loaded nothing")
    return edges, seconds, peak
