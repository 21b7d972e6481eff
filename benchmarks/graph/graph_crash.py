"""Stores that are whole after their writer was killed (SIGKILL) at random moments of loading and of compacting.

A writer loads batches of edges, each with a time of its own, two a day, and compacts after every second one. It is killed at a
uniformly drawn moment of a load or of a compaction, 100 times over, each time the next writer of the same store. After every
kill the store is opened and must hold whole batches only: of every time all edges, the account of loads with a line for each,
no edge of another batch, and the clustered table in order. All batches that a writer had reported as loaded must be there.
Both storages are tried: edges in the store's file, and in a log of Parquet files, where the first batch of a day becomes a file
and the second waits in the delta.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, Literal, get_args

import numpy as np

from benchmarks.harness import HIGHER, Metric, Row
from multifacet.graphdb import GraphSchema, GraphStore, NodeType, Relation
from multifacet.graphdb.storage.edge_storage import EdgeStorage

WHOLE: Final = Metric(name="whole_share", unit="", better=HIGHER)
EDGES_PER_BATCH: Final = 3000
SCHEMA: Final = GraphSchema(
    nodes=(NodeType(name="user"), NodeType(name="pin")),
    relations=(Relation(src="user", name="clicks", dst="pin", out_clustered=True),),
)

Moment = Literal["loading", "compacting"]
MOMENTS: Final[tuple[Moment, ...]] = ("loading", "compacting")

# Imports once, then forks a writer for each line that it is sent.
_LAUNCHER: Final = f"""
import os, sys
import numpy as np, pyarrow as pa
from multifacet.graphdb import GraphStore

def say(*words):
    print(*words, flush=True)

def write():
    with GraphStore.open(sys.argv[1]) as store:
        batch = store.counts()["edges"]["clicks"] // {EDGES_PER_BATCH}
        while True:
            keys = np.arange({EDGES_PER_BATCH})
            time = np.full({EDGES_PER_BATCH}, 12 * batch).astype("datetime64[h]").astype("datetime64[us]")
            rows = pa.table({{"src": keys % 97 + batch, "dst": keys, "time": time}})
            say("loading", os.getpid())
            store.load_edges("clicks", rows)
            batch += 1
            say("loaded", batch)
            if batch % 2 == 0:
                say("compacting", os.getpid())
                store.compact()
                say("compacted")

for line in sys.stdin:
    writer = os.fork()
    if writer == 0:
        write()
    os.waitpid(writer, 0)
    say("ended")
"""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one kill left.

    Attributes:
        meant: The moment that the kill was meant for.
        hit: What the writer was at when it died; None if it had just finished.
        batches: Whole batches in the store afterwards.
        faults: What is wrong with the store; empty if it is whole.
    """

    meant: Moment
    hit: Moment | None
    batches: int
    faults: tuple[str, ...]


def run(quick: bool) -> Iterator[Row]:
    """12 kills of a storage when quick, else 100."""
    for edge_log in get_args(EdgeStorage):
        yield from _run(edge_log, 12 if quick else 100)


def _run(edge_log: EdgeStorage, num_kills: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        outcomes = list(kill_writers(Path(folder) / "store.duckdb", num_kills, seed=0, edge_log=edge_log))
    for moment in (*MOMENTS, None):
        found = [outcome for outcome in outcomes if outcome.hit == moment]
        if not found:
            continue
        yield Row(
            case=f"{edge_log}, {len(found)} kills {f'while {moment}' if moment else 'just after either'}",
            metric=WHOLE,
            value=sum(not outcome.faults for outcome in found) / len(found),
            config={
                "kills": num_kills,
                "edges_per_batch": EDGES_PER_BATCH,
                "batches_at_the_end": outcomes[-1].batches,
                "faults": [fault for outcome in found for fault in outcome.faults],
            },
        )


def kill_writers(path: Path, num_kills: int, *, seed: int, edge_log: EdgeStorage) -> Iterator[Outcome]:
    """Kills one writer after the other, loads and compactions in turn, and says what each left of the store at `path`."""
    GraphStore.create(path, SCHEMA, edge_log=edge_log).close()
    generator = np.random.default_rng(seed)
    seconds: dict[Moment, list[float]] = {moment: [0.05] for moment in MOMENTS}
    with _launcher(path) as (commands, reports):
        for number in range(num_kills):
            commands.write("write\n")
            commands.flush()
            writer = _Writer(reports)
            meant = MOMENTS[number % 2]
            writer.wait_for(meant, seconds)
            time.sleep(float(generator.uniform(0, 1)) * statistics.median(seconds[meant]))
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait_for_end()
            batches, faults = examine(path, writer.loaded)
            yield Outcome(meant=meant, hit=writer.doing, batches=batches, faults=faults)


def examine(path: Path, loaded: int) -> tuple[int, tuple[str, ...]]:
    """Whole batches in a store, and what is wrong with it, knowing that `loaded` batches were reported as loaded."""
    faults = []
    with GraphStore.open(path) as store:
        days = store.sql(
            "SELECT time, count(*) AS edges, count(DISTINCT dst_id) AS pins, min(src_id) AS src FROM edges_clicks "
            "GROUP BY time ORDER BY time"
        ).to_pylist()
        for batch, day in enumerate(days):
            if not (day["edges"] == day["pins"] == EDGES_PER_BATCH and day["src"] == batch):
                faults.append(f"batch {batch} is {day}")
        if len(days) < loaded:
            faults.append(f"{loaded} batches were loaded, {len(days)} are there")
        num_loads = store.sql("SELECT count(*) AS n FROM loads").to_pylist()[0]["n"]
        if num_loads != len(days):
            faults.append(f"the account has {num_loads} loads, the store has {len(days)} batches")
        edges = store.view().edges("clicks")
        dst, time_us = edges.dst.numpy().astype(np.int64), edges.time.numpy() if edges.time is not None else np.empty(0)
        if (
            len(dst) != len(days) * EDGES_PER_BATCH
            or (np.diff(dst) < 0).any()
            or (np.diff(time_us)[np.diff(dst) == 0] <= 0).any()
        ):
            faults.append("the export is not whole, or not in order")
        out = store.neighbors("user", 5, direction="out", limit=10**6).num_rows
        own = store.sql("SELECT count(*) AS n FROM edges_clicks WHERE src_id = 5").to_pylist()[0]["n"] if days else 0
        if out != own:
            faults.append(f"the copy by src has {out} edges of a user, the table has {own}")
    return len(days), tuple(faults)


class _Writer:
    """A forked writer, as its reports tell of it."""

    def __init__(self, reports: IO[str]) -> None:
        self._reports = reports
        self.pid = 0
        self.loaded = 0
        self.doing: Moment | None = None

    def wait_for(self, moment: Moment, seconds: dict[Moment, list[float]]) -> None:
        """Reads reports until a moment begins; notes how long the ones before took."""
        started = time.perf_counter()
        while True:
            before = self.doing
            self._read(self._reports.readline())
            if self.doing is None and before is not None:
                seconds[before].append(time.perf_counter() - started)
            started = time.perf_counter()
            if self.doing == moment:
                return

    def wait_for_end(self) -> None:
        """Reads reports until the launcher has seen the writer die."""
        while (line := self._reports.readline()) != "ended\n":
            self._read(line)

    def _read(self, line: str) -> None:
        if not line:
            raise RuntimeError("the writer's launcher ended; its error is above")
        word, *rest = line.split()
        if word in MOMENTS:
            self.doing, self.pid = ("loading" if word == "loading" else "compacting"), int(rest[0])
        else:
            self.doing = None
            self.loaded = int(rest[0]) if rest else self.loaded


@contextlib.contextmanager
def _launcher(path: Path) -> Iterator[tuple[IO[str], IO[str]]]:
    command = [sys.executable, "-c", _LAUNCHER, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the launcher has no pipes")
        yield process.stdin, process.stdout
        process.stdin.close()
