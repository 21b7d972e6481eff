"""Bytes a second that init_tables fills of an embedding table from a snapshot, beside a plain memory copy.

The table is a TorchRec EmbeddingBagCollection's, FP16, 64 values a row, and so is the snapshot, whose pages are in memory.
The peer memcpy is the fastest of some copies of as many bytes from memory to memory, by torch, with the same threads.
Cases: `in order` (the model's rows are the snapshot's positions), `exact` (an exact id map in another order than the
snapshot) and `hashed` (into as many rows as ids). Bytes are those of the rows filled, per second of the clock, and per second
of processor time (of all threads), which other work on the machine changes less.
"""

from __future__ import annotations

import json
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.modules.embedding_configs import DataType

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from multifacet.artifacts import ArtifactWriter
from multifacet.ranking import TableSource, init_tables
from multifacet.tables import IdMap, Snapshot

BYTES_PER_S = Metric(name="bytes_per_s", unit="bytes", better=HIGHER)
CPU_BYTES_PER_S = Metric(name="bytes_per_cpu_s", unit="bytes", better=HIGHER)
EXTRA_BYTES = Metric(name="extra_memory", unit="bytes", better=LOWER)
DIM = 64
_BLOCK_ROWS = 1 << 20
_ROUNDS = 3


def run(quick: bool) -> Iterator[Row]:
    """1M rows when quick, else 50M in order and 10M by id."""
    sizes = {"in order": 1_000_000 if quick else 50_000_000, "exact": 500_000 if quick else 10_000_000}
    sizes["hashed"] = sizes["exact"]
    with tempfile.TemporaryDirectory() as name:
        for case, num_rows in sizes.items():
            path = Path(name) / str(num_rows)
            if not path.exists():
                _write_snapshot(path, num_rows)
            yield from _measure(case, Snapshot.load(path, verify=False), num_rows)


def _measure(case: str, snapshot: Snapshot, num_rows: int) -> Iterator[Row]:
    id_map = None
    if case == "exact":
        ids = snapshot.ids("pin").to_numpy()
        id_map = IdMap.exact(np.random.default_rng(0).permutation(ids))
    elif case == "hashed":
        id_map = IdMap.hashed(num_rows, id_type="int64")
    table_rows = num_rows if id_map is None else id_map.num_rows
    config = EmbeddingBagConfig(
        name="t_pin", embedding_dim=DIM, num_embeddings=table_rows, feature_names=["pin"], data_type=DataType.FP16
    )
    # Not drawn at random first: 3.2 billion draws take longer than all the rest.
    model = EmbeddingBagCollection(tables=[config], device=torch.device("meta")).to_empty(device=torch.device("cpu"))
    weights: Tensor = model.embedding_bags["t_pin"].weight.detach().zero_()
    source = TableSource(snapshot=snapshot, node_type="pin", id_map=id_map, rows="position" if id_map is None else None)
    init_tables(model, {"t_pin": source})  # compiles kernels, and reads the file into memory
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    extra = filled = 0
    for _ in range(_ROUNDS):
        with _AnonymousMemory() as memory:
            started, cpu_started = time.perf_counter(), time.process_time()
            report = init_tables(model, {"t_pin": source})
            seconds.append(time.perf_counter() - started)
            cpu_seconds.append(time.process_time() - cpu_started)
        extra, filled = max(extra, memory.extra), report[0].num_filled
    vectors = snapshot.vectors("pin")
    if id_map is None and not torch.equal(weights[:_BLOCK_ROWS], vectors[:_BLOCK_ROWS]):
        raise RuntimeError("the table does not hold the snapshot's rows")
    row = {"rows": num_rows, "dim": DIM, "precision": "fp16", "threads": torch.get_num_threads(), "rounds": _ROUNDS}
    case = f"{case}, {num_rows / 1e6:g}M rows"
    num_bytes, (peer, cpu_peer) = filled * DIM * 2, _memcpy_bytes_per_s(weights)
    for metric, taken, beside in ((BYTES_PER_S, seconds, peer), (CPU_BYTES_PER_S, cpu_seconds, cpu_peer)):
        yield Row(case=case, metric=metric, value=num_bytes / min(taken), peer=Peer(name="memcpy", value=beside), config=row)
    yield Row(case=case, metric=EXTRA_BYTES, value=max(extra, 0), config=row)


def _memcpy_bytes_per_s(weights: Tensor) -> tuple[float, float]:
    """Copy the table's second half over its first: large, in memory, touched before. By the clock, and by the processor."""
    half = len(weights) // 2
    num_bytes, seconds, cpu_seconds = half * DIM * 2, [], []
    for _ in range(_ROUNDS + 1):
        started, cpu_started = time.perf_counter(), time.process_time()
        weights[:half].copy_(weights[half : 2 * half])
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
    return num_bytes / min(seconds), num_bytes / min(cpu_seconds)


class _AnonymousMemory:
    """Samples how far this process's own memory (not that of mapped files) rises."""

    def __enter__(self) -> _AnonymousMemory:
        self.extra = 0
        self._before = _anonymous_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(0.05):
            self.extra = max(self.extra, _anonymous_bytes() - self._before)


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def _write_snapshot(path: Path, num_rows: int) -> None:
    """Write block by block what Snapshot.write would: its argument is FP32, twice the memory of the table."""
    block = torch.randn(min(_BLOCK_ROWS, num_rows), DIM, generator=torch.Generator().manual_seed(0)).half().numpy()
    header = json.dumps({"vectors": {"dtype": "F16", "shape": [num_rows, DIM], "data_offsets": [0, num_rows * DIM * 2]}})
    padded = header.encode() + b" " * (-len(header) % 8)
    with ArtifactWriter(path, kind="snapshot") as writer:
        (writer.directory / "vectors").mkdir()
        (writer.directory / "ids").mkdir()
        with (writer.directory / "vectors" / "pin.safetensors").open("wb") as stream:
            stream.write(struct.pack("<Q", len(padded)) + padded)
            for start in range(0, num_rows, len(block)):
                stream.write(block[: num_rows - start].data)
        ids = np.arange(num_rows) * 7 + 3
        pq.write_table(pa.table({"id": ids}), writer.directory / "ids" / "pin.parquet", compression="zstd")
        writer.manifest |= {
            "facet": "kge",
            "tables": {
                "pin": {
                    "rows": num_rows,
                    "dim": DIM,
                    "precision": "fp16",
                    "id_type": "int64",
                    "vectors": "vectors/pin.safetensors",
                    "ids": "ids/pin.parquet",
                }
            },
            "parents": [],
            "window": {},
            "metrics": {},
            "config": {},
        }
