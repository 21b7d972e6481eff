"""Edges a second from Parquet files into a store, mapped and clustered, beside DuckDB's sorted copy and LadybugDB.

The peer duckdb_ctas only copies the rows: `CREATE TABLE AS SELECT src, dst, time ORDER BY dst, time`. The store also gives
each external id its idx, checks every row and looks for duplicates. LadybugDB, where the package `ladybug` is installed,
copies the same edges between nodes from files of distinct ids that are made for it beforehand, outside the time; where that
takes more than three minutes, both load a quarter of the edges.
Strings are compared with the store's own load of int64 ids. Files are read once before anything is timed; DuckDB and the
store take turns, and the best of three rounds of each counts.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from benchmarks.harness.edge_log import IdType, create_store, write_edge_log

EDGES_PER_S = Metric(name="edges_per_s", unit="1/s", better=HIGHER)
SECONDS = Metric(name="seconds", unit="s", better=LOWER)
NUM_BATCHES = 30
NUM_ROUNDS = 3
NUM_WARM_EDGES = 200_000
LADYBUG_LIMIT_S = 180

_LADYBUG = """
import sys, time
import ladybug
database_folder, folder, files = sys.argv[1:]
started = time.perf_counter()
database = ladybug.Database(database_folder + "/graph")
connection = ladybug.Connection(database)
connection.execute("CREATE NODE TABLE user(id INT64 PRIMARY KEY)")
connection.execute("CREATE NODE TABLE pin(id INT64 PRIMARY KEY)")
connection.execute("CREATE REL TABLE clicks(FROM user TO pin, time TIMESTAMP)")
connection.execute(f"COPY user FROM '{folder}/src.parquet'")
connection.execute(f"COPY pin FROM '{folder}/dst.parquet'")
connection.execute(f"COPY clicks FROM '{files}'")
print(time.perf_counter() - started)
"""


def run(quick: bool) -> Iterator[Row]:
    """1M edges when quick, else 20M."""
    num_edges = 1_000_000 if quick else 20_000_000
    size = f"{num_edges // 1_000_000}M edges"
    config = {"edges": num_edges, "users": num_edges // 20, "pins": num_edges // 50, "files": 4}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The first load of a process compiles kernels.
        _load(folder, write_edge_log(folder, NUM_WARM_EDGES), "int64")
        files = write_edge_log(folder, num_edges)
        _read(files)
        rounds = [(_copy(folder, files), _load(folder, files, "int64")) for _ in range(NUM_ROUNDS)]
        copied, loaded = map(min, zip(*rounds, strict=True))
        yield Row(
            case=f"int64 ids, {size}",
            metric=EDGES_PER_S,
            value=num_edges / loaded,
            peer=Peer(name="duckdb_ctas", value=num_edges / copied),
            config=config,
        )
        yield Row(
            case=f"int64 ids, {size}", metric=SECONDS, value=loaded, peer=Peer(name="duckdb_ctas", value=copied), config=config
        )
        texts = write_edge_log(folder, num_edges, id_type="string")
        _read(texts)
        yield Row(
            case=f"string ids, {size}",
            metric=EDGES_PER_S,
            value=num_edges / min(_load(folder, texts, "string") for _ in range(NUM_ROUNDS)),
            peer=Peer(name="int64 ids", value=num_edges / loaded),
            config=config,
        )
        batches = 5 if quick else NUM_BATCHES
        yield Row(
            case=f"{batches} batches, then compacted, {size}",
            metric=EDGES_PER_S,
            value=num_edges / _load_batches(folder, files, num_edges, batches),
            peer=Peer(name="one batch", value=num_edges / loaded),
            config={**config, "batches": batches},
        )
        yield from _beside_ladybug(folder, files, num_edges, loaded)


def _beside_ladybug(folder: Path, files: str, num_edges: int, loaded: float) -> Iterator[Row]:
    """The same graph, or where LadybugDB takes too long for it the first of its files alone."""
    if importlib.util.find_spec("ladybug") is None:
        return
    seconds = _load_ladybug(folder, files)
    if seconds is None:
        files, num_edges = files.replace("*", "0"), num_edges // 4
        loaded, seconds = _load(folder, files, "int64"), _load_ladybug(folder, files)
    if seconds is None:
        raise RuntimeError(f"LadybugDB did not copy {num_edges:,} edges within {LADYBUG_LIMIT_S} s")
    yield Row(
        case=f"int64 ids, {num_edges / 1e6:g}M edges",
        metric=EDGES_PER_S,
        value=num_edges / loaded,
        peer=Peer(name="ladybug", value=num_edges / seconds),
        config={"edges": num_edges, "limit_s": LADYBUG_LIMIT_S},
    )


def _read(files: str) -> None:
    with duckdb.connect() as connection:
        connection.execute(f"SELECT count(src), count(dst), count(time) FROM '{files}'").fetchall()


def _copy(folder: Path, files: str) -> float:
    path = folder / "copy.duckdb"
    started = time.perf_counter()
    with duckdb.connect(str(path)) as connection:
        connection.execute(f"CREATE TABLE edges AS SELECT src, dst, time FROM '{files}' ORDER BY dst, time")
    seconds = time.perf_counter() - started
    path.unlink()
    return seconds


def _load(folder: Path, files: str, id_type: IdType) -> float:
    path = folder / "store.duckdb"
    started = time.perf_counter()
    with create_store(path, id_type=id_type) as store:
        store.load_edges("clicks", files)
    seconds = time.perf_counter() - started
    path.unlink()
    return seconds


def _load_batches(folder: Path, files: str, num_edges: int, num_batches: int) -> float:
    parts = []
    with duckdb.connect() as connection:
        for part in range(num_batches):
            bounds = num_edges * part // num_batches, num_edges // num_batches
            parts.append(folder / f"part-{part}.parquet")
            connection.execute(f"COPY (FROM '{files}' OFFSET {bounds[0]} LIMIT {bounds[1]}) TO '{parts[-1]}' (FORMAT parquet)")
    path = folder / "batches.duckdb"
    started = time.perf_counter()
    with create_store(path) as store:
        for part_file in parts:
            store.load_edges("clicks", part_file)
        store.compact()
    return time.perf_counter() - started


def _load_ladybug(folder: Path, files: str) -> float | None:
    """Seconds of LadybugDB's COPY, in a process of its own; None where it takes longer than its limit."""
    with duckdb.connect() as connection:
        for end in ("src", "dst"):
            connection.execute(
                f"COPY (SELECT DISTINCT {end} AS id FROM '{files}') TO '{folder / f'{end}.parquet'}' (FORMAT parquet)"
            )
    with tempfile.TemporaryDirectory(dir=folder) as database:
        command = [sys.executable, "-c", _LADYBUG, database, str(folder), files]
        try:
            output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=LADYBUG_LIMIT_S).stdout
        except subprocess.TimeoutExpired:
            return None
    return float(output)
