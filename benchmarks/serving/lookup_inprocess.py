"""Rows per second and core that are gathered from an INT4 table in memory, ids uniform, beside FBGEMM's own kernel.

The peer fbgemm is its INT4 table-batched embedding on the same rows, one id a row (no pooling); it wants each row's scale and
bias in front, so it has a copy of the table. It decodes to float32 as it goes, so two of ours are shown: rows as they are
stored, which is what a lookup server sends, and rows decoded, which is the same work.

Rows by their ids stand beside bare gathers, which know where each row is: prefetch and copy, nothing else. bare reads the same
rows from the same memory; bare_lines reads, for each id, a pilot too, from as large an array and at as random a place, so
that it waits for as many cache lines as a placed id does. Times are seconds of this process's CPU, on one thread; each figure
is the median of five passes, and all cases of a kind of pages take turns.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen

from benchmarks.harness import HIGHER, Metric, Peer, Row
from benchmarks.harness.releases import DIM, ROW_BYTES, drawn_chunks
from multifacet.kernels.memory import copy_bytes, prefetch
from multifacet.serving.lookup.placed_rows import gather_placed
from multifacet.serving.lookup.rows import MappedRows, Memory, SendBuffer, huge_copy, prefetch_row
from multifacet.serving.release.manifest import KEY_BYTES
from multifacet.serving.release.placing.perfect_hash import PerfectHash
from multifacet.serving.release.placing.placed_ids import PlacedIds, slot_bytes
from multifacet.serving.release.release import keys_of
from multifacet.tables import IdMap, decode

BATCH = 2000
_PASSES = 5
ROWS_PER_S = Metric(name="rows_per_s", unit="1/s", better=HIGHER)

Rows = npt.NDArray[np.int32]


def run(quick: bool) -> Iterator[Row]:
    """1M rows when quick, else 8M."""
    num_rows = 1_000_000 if quick else 8_000_000
    generator = np.random.default_rng(0)
    ids = generator.integers(0, num_rows, 1_000_000).astype(np.int32)
    config = {"rows": num_rows, "dim": DIM, "row_bytes": ROW_BYTES, "batch": BATCH, "ids": len(ids), "threads": 1}
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
            rates = _rows_per_s(
                {
                    "fbgemm": peer,
                    "as stored": partial(_as_stored, table, memory),
                    "decoded to float32": partial(_decoded, table, send),
                },
                ids,
            )
            fbgemm = Peer(name="fbgemm", value=rates.pop("fbgemm"))
            where = f"{num_rows // 1_000_000}M rows, {pages}"
            for case, rate in rates.items():
                yield Row(case=f"{where}, {case}", metric=ROWS_PER_S, value=rate, peer=fbgemm, config=config)
            del peer, table
            rates = _by_id(plain, ids, memory, huge=pages == "huge pages")
            for case in ("placed ids", "indexed ids", "hashed ids"):
                for name in ("bare", "bare_lines") if case == "placed ids" else ("bare",):
                    beside = Peer(name=name, value=rates[name if case == "placed ids" else "bare, plain rows"])
                    yield Row(case=f"{where}, {case}", metric=ROWS_PER_S, value=rates[case], peer=beside, config=config)
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


def _by_id(plain: npt.NDArray[np.uint8], ids: Rows, memory: Memory, *, huge: bool) -> dict[str, float]:
    """Rows a second by id, and of gathers that know where the rows are."""
    num_ids = len(plain) - 1
    known = np.arange(num_ids, dtype=np.int64) * 7 + 13
    places = PerfectHash.build(known)
    numbers = places.numbers(known)
    table = MappedRows(plain, huge_pages=huge)
    slots = np.frombuffer(mmap.mmap(-1, len(plain) * slot_bytes(ROW_BYTES)), np.uint8).reshape(len(plain), -1)
    slots[numbers, KEY_BYTES : KEY_BYTES + ROW_BYTES] = plain[:-1]
    slots[numbers, :KEY_BYTES] = known.view(np.uint8).reshape(-1, KEY_BYTES)
    slots[-1, KEY_BYTES : KEY_BYTES + ROW_BYTES] = plain[-1]
    placed_table = MappedRows(slots, ROW_BYTES, KEY_BYTES, huge_pages=huge)
    del slots
    placed = PlacedIds(places, keys_of(placed_table.stored))
    indexed, hashed = IdMap.exact(known), IdMap.hashed(len(plain), id_type="int64")
    rows = np.empty(BATCH, np.int32)
    asked = np.minimum(ids, num_ids - 1).astype(np.int64) * 7 + 13
    chosen = dict(
        zip(range(0, len(ids), BATCH), np.split(numbers[np.minimum(ids, num_ids - 1)], len(ids) // BATCH), strict=True)
    )

    def by_map(id_map: IdMap, start: int) -> None:
        id_map.find(asked[start : start + BATCH], rows)
        table.gather(rows, memory, 0)

    gather_placed(placed, placed_table, asked[:BATCH], rows, memory, 0)
    if not np.array_equal(
        memory[1][: BATCH * ROW_BYTES].reshape(BATCH, ROW_BYTES), plain[np.minimum(ids[:BATCH], num_ids - 1)]
    ):
        raise RuntimeError("placed ids have other rows than they were given")
    asked.flags.writeable = False
    return _rows_per_s(
        {
            "bare": lambda start: placed_table.gather(chosen[start], memory, 0),
            "bare_lines": lambda start: _bare(places.pilots, *placed_table.layout, chosen[start], memory[1]),
            "bare, plain rows": lambda start: table.gather(chosen[start], memory, 0),
            "placed ids": lambda start: gather_placed(placed, placed_table, asked[start : start + BATCH], rows, memory, 0),
            "indexed ids": partial(by_map, indexed),
            "hashed ids": partial(by_map, hashed),
        },
        range(0, len(ids), BATCH),
    )


@numba.njit(nogil=True, cache=True)
def _bare(pilots: Any, address: Any, stride: Any, row_bytes: Any, rows: Any, memory: Any) -> Any:
    """Copy rows that are known, and read as many pilots, both with prefetches: what waiting for them takes."""
    out, total = np.uintp(memory.ctypes.data), np.uint16(0)
    num_pilots, num_rows = len(pilots), len(rows)
    for position in range(-32, num_rows):
        ahead = position + 32
        if ahead < num_rows:
            prefetch(pilots, np.intp((rows[ahead] * 2_654_435_761) % num_pilots) * 2)
            prefetch_row(address + np.uintp(rows[ahead]) * stride - np.uintp(KEY_BYTES), row_bytes)
        if position >= 0:
            total ^= pilots[(rows[position] * 2_654_435_761) % num_pilots]
            copy_bytes(out, address + np.uintp(rows[position]) * stride, row_bytes)
            out += row_bytes
    return total


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


def _rows_per_s(works: Mapping[str, Callable[[Any], object]], ids: Rows | range) -> dict[str, float]:
    """Rows a second of each kind of work, in turns; ids are given in batches, or as the numbers at which batches begin."""
    batches = list(ids) if isinstance(ids, range) else [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
    seconds: dict[str, list[float]] = {case: [] for case in works}
    for work in works.values():
        work(batches[0])
    for _ in range(_PASSES):
        for case, work in works.items():
            started = time.process_time()
            for batch in batches:
                work(batch)
            seconds[case].append(time.process_time() - started)
    return {case: len(batches) * BATCH / float(np.median(taken)) for case, taken in seconds.items()}
