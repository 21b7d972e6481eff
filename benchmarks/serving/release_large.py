"""A table of 450M rows of 64 values in INT4, 16.2 GB: published block by block, opened, asked over the wire warm and cold.

The id map is hashed. The first million rows are drawn floats that go through the codec; the others are drawn codes with a
scale and a bias that decode to values of the same size, as drawing 28.8 billion floats would take longer than all else does.
publish covers drawing, writing, syncing and the checksum; own_memory is the most anonymous memory that the process had
more than before. Ids are uniform, 2,000 a request, and fresh in each one, so that no processor's cache holds their rows from
the last time. One client asks without a pause, over frames on a Unix socket and over gRPC on loopback. The peer of warm
requests is NumPy's gather of as many rows of the same file in the client's process: what remains is finding rows and carrying
them. server_p50_ms is the time within the server. on_huge_pages is the share of the table that the server's mapping has on
pages of 2 MiB. cold: every page of the table was dropped from the page cache, and comes from the disk when a row is asked for.
warm_up: seconds that a server with `populate` (the default) takes from there until it is ready; and then its first requests.

MULTIFACET_LARGE_RELEASE names a folder that keeps the release for another run, which then reports how it was published;
without it nothing is left. Needs the table's size free on the disk and in memory, and refuses to start otherwise.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from benchmarks.harness.memory import PeakMemory, own_bytes
from benchmarks.harness.releases import DIM, ROW_BYTES, drawn_chunks, write_release
from multifacet.serving import LookupConfig, LookupServer, Release, ServerProcess, connect_lookup
from multifacet.tables import IdMap, encode

NUM_IDS = 2000
CODEC_ROWS = 1_000_000
_CODEC_CHUNK = 100_000
_SECONDS = Metric(name="seconds", unit="s", better=LOWER)
_OWN_MEMORY = Metric(name="own_memory", unit="bytes", better=LOWER)
_P50 = Metric(name="p50_ms", unit="ms", better=LOWER)
_P99 = Metric(name="p99_ms", unit="ms", better=LOWER)
_SERVER_P50 = Metric(name="server_p50_ms", unit="ms", better=LOWER)
_HUGE = Metric(name="on_huge_pages", unit="", better=HIGHER)
_ROOM_BYTES = 3 << 30
_KEPT = "MULTIFACET_LARGE_RELEASE"
_PUBLISHED = "published.json"


def run(quick: bool) -> Iterator[Row]:
    """5M rows when quick, else 450M."""
    num_rows = 5_000_000 if quick else 450_000_000
    num_requests = 500 if quick else 3000
    config = {"rows": num_rows, "dim": DIM, "ids": NUM_IDS, "requests": num_requests, "codec_rows": CODEC_ROWS}
    with ExitStack() as held:
        folder = large_folder(num_rows, held)
        worker = held.enter_context(spawned_worker())
        published = publish_large(folder, num_rows, worker)
        path = folder / "release"
        case = f"{num_rows // 1_000_000}M rows"
        yield Row(case=f"{case}, publish", metric=_SECONDS, value=published["seconds"], config=config)
        yield Row(case=f"{case}, publish", metric=_OWN_MEMORY, value=published["own_memory"], config=config)
        for verify in (True, False):  # the checksum reads the file: the second time it is in the page cache for certain
            opened = f"{case}, open" + (", verified" if verify else "")
            seconds, own = worker.submit(_open, folder / "small", path, verify).result()
            yield Row(case=opened, metric=_SECONDS, value=seconds, config=config)
            yield Row(case=opened, metric=_OWN_MEMORY, value=own, config=config)
        bare = np.percentile(worker.submit(_gather, path, num_requests).result(), [50, 99])
        worker.shutdown()  # and nothing of the table stays mapped
        client = held.enter_context(spawned_worker())
        sockets = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="multifacet-bench-")))
        with serve_large(path, sockets, populate=True) as server:
            for transport, address in (("frames", f"framed:unix:{sockets / 'frames.sock'}"), ("grpc", server.address)):
                latencies_ms, server_ms = client.submit(_ask, address, path, num_requests, 200, 1).result()
                for metric, quantile, peer in ((_P50, 50, bare[0]), (_P99, 99, bare[1])):
                    beside = Peer(name="numpy gather", value=float(peer))
                    value = float(np.percentile(latencies_ms, quantile))
                    yield Row(case=f"{case}, {transport}, warm", metric=metric, value=value, peer=beside, config=config)
                value = float(np.median(server_ms))
                yield Row(case=f"{case}, {transport}, warm", metric=_SERVER_P50, value=value, config=config)
            yield Row(case=f"{case}, serving", metric=_OWN_MEMORY, value=own_bytes(server.pid), config=config)
            yield Row(case=f"{case}, serving", metric=_HUGE, value=_huge_share(server.pid, path), config=config)
        yield from _cold(case, path, sockets, client, config)


def _cold(case: str, path: Path, sockets: Path, client: ProcessPoolExecutor, config: dict[str, Any]) -> Iterator[Row]:
    """Requests of a table that is on the disk only, and what warming it up takes and gives."""
    address = f"framed:unix:{sockets / 'frames.sock'}"
    _drop(path)
    with serve_large(path, sockets, populate=False):
        latencies_ms, _ = client.submit(_ask, address, path, 30, 0, 2).result()
    for metric, quantile in ((_P50, 50), (_P99, 99)):
        value = float(np.percentile(latencies_ms, quantile))
        yield Row(case=f"{case}, frames, cold", metric=metric, value=value, config={**config, "requests": 30})
    _drop(path)
    started = time.perf_counter()
    with serve_large(path, sockets, populate=True):
        yield Row(case=f"{case}, warm-up and start", metric=_SECONDS, value=time.perf_counter() - started, config=config)
        latencies_ms, _ = client.submit(_ask, address, path, 300, 0, 3).result()
    for metric, quantile in ((_P50, 50), (_P99, 99)):
        value = float(np.percentile(latencies_ms, quantile))
        yield Row(case=f"{case}, frames, first after warm-up", metric=metric, value=value, config={**config, "requests": 300})


def large_folder(num_rows: int, held: ExitStack) -> Path:
    """Where the release lies or will lie.

    Raises:
        RuntimeError: There is too little room for it on the disk or in memory.
    """
    kept = os.environ.get(_KEPT)
    name = kept or held.enter_context(tempfile.TemporaryDirectory(prefix="multifacet-bench-"))
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    needed = num_rows * ROW_BYTES + _ROOM_BYTES
    rooms = {"memory": _available_bytes()}
    if not (folder / _PUBLISHED).exists():
        rooms["disk"] = shutil.disk_usage(folder).free
    for what, room in rooms.items():
        if room < needed:
            raise RuntimeError(
                f"{num_rows} rows need {needed} bytes of {what}, there are {room}: give --quick, or another machine"
            )
    return folder


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def publish_large(folder: Path, num_rows: int, worker: ProcessPoolExecutor) -> dict[str, float]:
    """How the release was published, now or by an earlier run."""
    document = folder / _PUBLISHED
    if not document.exists():
        seconds, own = worker.submit(_publish, folder / "release", num_rows).result()
        document.write_text(json.dumps({"rows": num_rows, "seconds": seconds, "own_memory": own}))
    published: dict[str, float] = json.loads(document.read_text())
    if published["rows"] != num_rows:
        raise RuntimeError(f"{folder} keeps a release of {published['rows']} rows, {num_rows} are wanted: name another folder")
    return published


def spawned_worker() -> ProcessPoolExecutor:
    """A process to measure in: it holds nothing else, and starts with no memory of this one's."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _publish(path: Path, num_rows: int) -> tuple[float, float]:
    """Seconds, and the most own memory more than before."""
    write_release(path.with_name("small"), {"pin": IdMap.hashed(10, id_type="int64")}, replace=True)  # imports, compiles
    encode(torch.zeros(1000, DIM), "int4")
    with PeakMemory() as peak:
        started = time.perf_counter()
        write_release(path, {"pin": IdMap.hashed(num_rows, id_type="int64")}, chunks=_chunks)
        seconds = time.perf_counter() - started
    return seconds, float(max(1, peak.growth))


def _chunks(generator: np.random.Generator, num_rows: int) -> Iterator[torch.Tensor]:
    for start in range(0, min(CODEC_ROWS, num_rows), _CODEC_CHUNK):
        size = min(_CODEC_CHUNK, num_rows - start)
        yield encode(torch.from_numpy(generator.standard_normal((size, DIM), np.float32) * 0.03), "int4")
    yield from drawn_chunks(generator, max(0, num_rows - CODEC_ROWS))


def _open(small: Path, path: Path, verify: bool) -> tuple[float, float]:
    """Seconds, and the most own memory more than before; a small release was opened before."""
    LookupServer(LookupConfig(releases=(small,))).stop(0)
    with PeakMemory() as peak:
        started = time.perf_counter()
        server = LookupServer(LookupConfig(releases=(path,), verify=verify))
        server.start()
        seconds = time.perf_counter() - started
    server.stop(0)
    return seconds, float(max(1, peak.growth))


def serve_large(path: Path, folder: Path, *, populate: bool, **options: Any) -> ServerProcess:
    """A server of a release, in a process of its own, with a socket in the folder.

    Args:
        path: The release; it is not verified.
        folder: Where the socket lies.
        populate: As `LookupConfig.populate`.
        **options: Further fields of `LookupConfig`.
    """
    config = LookupConfig(
        releases=(path,),
        verify=False,
        populate=populate,
        framed_listen=f"unix:{folder / 'frames.sock'}",
        listen="127.0.0.1:0",
        **options,
    )
    return ServerProcess("lookup", config, folder, startup_timeout_s=300)


def _huge_share(pid: int, path: Path) -> float:
    """The share of the table that the server sees through pages of 2 MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    mapped = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("FilePmdMapped:")), 0)
    return mapped / Release.open(path, verify=False).lookup_bytes


def _ask(address: str, path: Path, num_requests: int, num_before: int, seed: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each request, and of each within the server."""
    version = Release.open(path, verify=False).version
    generator = np.random.default_rng(seed)
    latencies_ms, server_ms = [], []
    with connect_lookup(address, timeout_s=60) as client:
        client.describe()
        for _ in range(num_before + num_requests):
            ids = drawn_ids(generator)
            started = time.perf_counter()
            answer = client.lookup(version, {"pin": ids})
            latencies_ms.append((time.perf_counter() - started) * 1e3)
            server_ms.append(answer.server_us / 1e3)
    return latencies_ms[num_before:], server_ms[num_before:]


def _gather(path: Path, num_requests: int) -> list[float]:
    """Milliseconds of NumPy's gather of as many rows, in this process."""
    release = Release.open(path, verify=False)
    rows = release.map_rows(release.tables[0], populate=True)
    generator = np.random.default_rng(4)
    latencies_ms = []
    for _ in range(200 + num_requests):
        chosen = generator.integers(0, len(rows), NUM_IDS)
        started = time.perf_counter()
        rows[chosen]
        latencies_ms.append((time.perf_counter() - started) * 1e3)
    return latencies_ms[200:]


def drawn_ids(generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Ids of one request, uniform over all int64."""
    return generator.integers(-(2**63), 2**63 - 1, NUM_IDS)


def _drop(path: Path) -> None:
    """Take the table out of the page cache.

    Raises:
        RuntimeError: Some of it is still there.
    """
    release = Release.open(path, verify=False)
    file = release.path / release.tables[0].file()
    with file.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(stream.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as mapped:
            view = np.frombuffer(mapped, np.uint8)
            pages = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
            address, length = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(view))
            failed = ctypes.CDLL(None).mincore(address, length, ctypes.c_void_p(pages.ctypes.data))
            del view
    resident = float((pages & 1).mean())
    if failed or resident > 0.01:
        raise RuntimeError(f"{resident:.0%} of {file} is still in the page cache after it was dropped: does somebody map it?")
