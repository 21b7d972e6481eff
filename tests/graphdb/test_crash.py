"""A writer that is killed at any moment leaves only whole batches."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from graphdb import GraphSchema, GraphStore, NodeType, Relation

NUM_ROWS = 3000
WRITER = f"""
import sys
import numpy as np, pyarrow as pa
from graphdb import GraphStore
with GraphStore.open(sys.argv[1]) as store:
    batch = store.counts()["edges"]["clicks"] // {NUM_ROWS}
    while True:
        keys = np.arange({NUM_ROWS})
        time = np.full({NUM_ROWS}, batch).astype("datetime64[D]").astype("datetime64[us]")
        store.load_edges("clicks", pa.table({{"src": keys % 97 + batch, "dst": keys, "time": time}}))
        batch += 1
        print("loaded", flush=True)
        if batch % 3 == 0:
            store.compact()
"""


def test_kill_leaves_whole_batches(tmp_path: Path) -> None:
    path = tmp_path / "g.duckdb"
    schema = GraphSchema(
        nodes=(NodeType(name="user"), NodeType(name="pin")), relations=(Relation(src="user", name="clicks", dst="pin"),)
    )
    GraphStore.create(path, schema).close()
    generator = np.random.default_rng(0)
    batches = 0
    for _ in range(2):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."}
        )
        try:
            assert writer.stdout is not None
            # One batch is there; the kill hits the next ones, or a compaction, wherever they are.
            assert writer.stdout.readline() == b"loaded\n"
            time.sleep(float(generator.uniform(0.05, 1.0)))
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            writer.stdout.close()
        with GraphStore.open(path) as store:
            edges = store.counts()["edges"]["clicks"]
            assert edges % NUM_ROWS == 0
            assert edges // NUM_ROWS > batches
            batches = edges // NUM_ROWS
            times = store.sql(
                "SELECT time, count(*) AS n, count(DISTINCT dst_id) AS pins FROM edges_clicks GROUP BY time"
            ).to_pylist()
            assert len(times) == batches
            assert all(row["n"] == row["pins"] == NUM_ROWS for row in times)
            assert store.sql("SELECT count(*) AS n FROM loads").to_pylist() == [{"n": batches}]
            assert len(store.view().edges("clicks")) == edges
    assert batches > 0
