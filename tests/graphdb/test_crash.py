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
NUM_KILLS = 4
# Imports once, then forks a writer for each line that it is sent.
LAUNCHER = f"""
import os, sys
import numpy as np, pyarrow as pa
from graphdb import GraphStore

def write():
    with GraphStore.open(sys.argv[1]) as store:
        batch = store.counts()["edges"]["clicks"] // {NUM_ROWS}
        while True:
            keys = np.arange({NUM_ROWS})
            time = np.full({NUM_ROWS}, batch).astype("datetime64[D]").astype("datetime64[us]")
            store.load_edges("clicks", pa.table({{"src": keys % 97 + batch, "dst": keys, "time": time}}))
            batch += 1
            print(f"loaded by {{os.getpid()}}", flush=True)
            if batch % 3 == 0:
                store.compact()

for line in sys.stdin:
    writer = os.fork()
    if writer == 0:
        write()
    os.waitpid(writer, 0)
    print("ended", flush=True)
"""


def test_kill_leaves_whole_batches(tmp_path: Path) -> None:
    path = tmp_path / "g.duckdb"
    schema = GraphSchema(
        nodes=(NodeType(name="user"), NodeType(name="pin")), relations=(Relation(src="user", name="clicks", dst="pin"),)
    )
    GraphStore.create(path, schema).close()
    generator = np.random.default_rng(0)
    batches = 0
    command = [sys.executable, "-c", LAUNCHER, str(path)]
    environment = {**os.environ, "PYTHONPATH": "."}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as launcher:
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        for _ in range(NUM_KILLS):
            launcher.stdin.write("write\n")
            launcher.stdin.flush()
            # One batch is there; the kill hits the next ones, or a compaction, wherever they are.
            writer = int(launcher.stdout.readline().removeprefix("loaded by "))
            time.sleep(float(generator.uniform(0.02, 0.5)))
            os.kill(writer, signal.SIGKILL)
            while launcher.stdout.readline() != "ended\n":
                assert launcher.poll() is None
            with GraphStore.open(path) as store:
                edges = store.counts()["edges"]["clicks"]
                assert edges % NUM_ROWS == 0
                assert edges // NUM_ROWS > batches
                batches = edges // NUM_ROWS
                query = "SELECT time, count(*) AS n, count(DISTINCT dst_id) AS pins FROM edges_clicks GROUP BY time"
                times = store.sql(query).to_pylist()
                assert len(times) == batches
                assert all(row["n"] == row["pins"] == NUM_ROWS for row in times)
                assert store.sql("SELECT count(*) AS n FROM loads").to_pylist() == [{"n": batches}]
                assert len(store.view().edges("clicks")) == edges
        launcher.stdin.close()
