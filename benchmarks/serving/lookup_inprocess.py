"""Rows per second and core that are gathered from an INT4 table in memory, ids uniform, beside FBGEMM's own kernel.

The peer fbgemm is its INT4 table-batched embedding on the same rows, one id a row (no pooling); it wants each row's scale and
bias in front, so it has a copy of the table. It decodes to float32 as it goes, so two of ours are shown: rows as they are
stored, which is what a lookup server sends, and rows decoded, which is the same work. Times are seconds of this process's
CPU, on one thread.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen

from benchmarks.harness import HIGHER, Metric, Peer, Row
from benchmarks.harness.releases import DIM, ROW_BYTES, drawn_chunks
from multifacet.serving.lookup.rows import MappedRows, Memory, SendBuffer, huge_copy
from multifacet.tables import decode

BATCH = 2000
ROWS_PER_S = Metric(name="rows_per_s", unit="1/s", better=HIGHER)

Rows = npt.NDArray[np.int32]


def run(quick: bool) -> Iterator[Row]:
    """1M rows when quick, else 8M."""
    num_rows = 1_000_000 if quick else 8_000_000
    generator = np.random.default_rng(0)
    ids = generator.integers(0, num_rows, 1_000_000).astype(np.int32)
    send = SendBuffer()
    memory = send.take(BATCH * ROW_BYTES)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for pages in ("huge pages", "4 KiB pages"):
            plain = _drawn(np.random.default_rng(1), num_rows)
            peer = _fbgemm(plain, huge=pages == "huge pages")
            table = MappedRows(plain, huge_pages=pages == "huge pages")
            expected = decode(torch.from_numpy(plain[ids[:BATCH]]), DIM, "int4")
            if not torch.equal(peer(ids[:BATCH]), expected) or not torch.equal(_decoded(table, send, ids[:BATCH]), expected):
                raise RuntimeError("the kernels read different values from the rows: the comparison would say nothing")
            fbgemm = Peer(name="fbgemm", value=_rows_per_s(peer, ids))
            cases: dict[str, Callable[[Rows], object]] = {
                "as stored": partial(_as_stored, table, memory),
                "decoded to float32": partial(_decoded, table, send),
            }
            for case, work in cases.items():
                yield Row(
                    case=f"{num_rows // 1_000_000}M rows, {pages}, {case}",
                    metric=ROWS_PER_S,
                    value=_rows_per_s(work, ids),
                    peer=fbgemm,
                    config={
                        "rows": num_rows,
                        "dim": DIM,
                        "row_bytes": ROW_BYTES,
                        "batch": BATCH,
                        "ids": len(ids),
                        "threads": 1,
                    },
                )
    finally:
        torch.set_num_threads(threads)


def _drawn(generator: np.random.Generator, num_rows: int) -> npt.NDArray[np.uint8]:
    # Not np.empty: numpy asks for huge pages by itself.
    table = np.frombuffer(mmap.mmap(-1, num_rows * ROW_BYTES), np.uint8).reshape(num_rows, ROW_BYTES)
    start = 0
    for chunk in drawn_chunks(generator, num_rows):
        table[start : start + len(chunk)] = chunk.numpy()
        start += len(chunk)
    return table


def _as_stored(table: MappedRows, memory: Memory, rows: Rows) -> int:
    return table.gather(rows, memory, 0)


def _decoded(table: MappedRows, send: SendBuffer, rows: Rows) -> torch.Tensor:
    size = len(rows) * ROW_BYTES
    table.gather(rows, send.take(size), 0)
    return decode(torch.frombuffer(send.read(0, size), dtype=torch.uint8).view(len(rows), ROW_BYTES), DIM, "int4")


def _fbgemm(table: npt.NDArray[np.uint8], *, huge: bool) -> Callable[[Rows], torch.Tensor]:
    peer = IntNBitTableBatchedEmbeddingBagsCodegen(
        embedding_specs=[("table", len(table), DIM, SparseType.INT4, EmbeddingLocation.HOST)],
        device="cpu",
        pooling_mode=PoolingMode.NONE,
        output_dtype=SparseType.FP32,
        row_alignment=ROW_BYTES,
    )
    peer.fill_random_weights()
    in_front = np.frombuffer(mmap.mmap(-1, peer.weights_host.numel()), np.uint8)
    rows = in_front[: table.size].reshape(table.shape)
    rows[:, :4], rows[:, 4:] = table[:, -4:], table[:, :-4]
    if huge:
        in_front = huge_copy(in_front.reshape(1, -1)).reshape(-1)
        in_front.flags.writeable = True  # or torch warns
    peer.weights_host = torch.from_numpy(in_front)
    offsets = torch.arange(BATCH + 1, dtype=torch.int32)
    return lambda rows: peer(torch.from_numpy(rows), offsets)


def _rows_per_s(work: Callable[[Rows], object], ids: Rows) -> float:
    """The best of three passes: the others shared the machine with something."""
    work(ids[:BATCH])
    seconds = []
    for _ in range(3):
        started = time.process_time()
        for start in range(0, len(ids), BATCH):
            work(ids[start : start + BATCH])
        seconds.append(time.process_time() - started)
    return len(ids) / min(seconds)
