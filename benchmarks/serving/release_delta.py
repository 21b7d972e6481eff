"""A delta of one row in a hundred over a table of 450M rows of 64 values in INT4: written, opened, and asked beside its base.

The id map is hashed, and the changed rows are drawn uniformly, so that two pages in three of the base hold one. publish covers
writing, syncing and the checksums of the delta; written is what its files hold. open: a server that serves the base loads the
delta beside it. memory is what the server's own memory grew by, and its peer the base's bytes. Then one client asks for 2,000
ids a request over frames on a Unix socket, of the whole release and of the delta by turns, both served by the one server; an id
is changed as often as a row is. The peer of the delta's requests are those of the whole release.

MULTIFACET_LARGE_RELEASE names a folder that keeps the base for another run, as `release_large` does.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.harness import LOWER, Metric, Peer, Row
from benchmarks.harness.memory import own_bytes
from benchmarks.harness.releases import DIM, drawn_chunks, write_release
from benchmarks.serving.release_large import NUM_IDS, drawn_ids, large_folder, publish_large, serve_large, spawned_worker
from multifacet.serving import AdminClient, DeltaWriter, Release, connect_lookup
from multifacet.tables import IdMap

_SECONDS = Metric(name="seconds", unit="s", better=LOWER)
_BYTES = Metric(name="bytes", unit="bytes", better=LOWER)
_P50 = Metric(name="p50_ms", unit="ms", better=LOWER)
_P99 = Metric(name="p99_ms", unit="ms", better=LOWER)
_BLOCK = 100


def run(quick: bool) -> Iterator[Row]:
    """5M rows when quick, else 450M."""
    num_rows = 5_000_000 if quick else 450_000_000
    num_blocks = 6 if quick else 30
    config = {"rows": num_rows, "dim": DIM, "ids": NUM_IDS, "requests": num_blocks * _BLOCK, "changed": num_rows // 100}
    case = f"{num_rows // 1_000_000}M rows, 1% changed"
    with ExitStack() as held:
        folder = large_folder(num_rows, held)
        worker = held.enter_context(spawned_worker())
        publish_large(folder, num_rows, worker)
        base, delta = folder / "release", folder / "delta"
        held.callback(shutil.rmtree, delta, ignore_errors=True)
        shutil.rmtree(delta, ignore_errors=True)
        seconds = worker.submit(_write, delta, base, num_rows).result()
        written = sum(path.stat().st_size for path in delta.rglob("*") if path.is_file())
        whole_bytes = Release.open(base, verify=False).lookup_bytes
        yield Row(case=f"{case}, publish", metric=_SECONDS, value=seconds, config=config)
        yield Row(case=f"{case}, written", metric=_BYTES, value=written, peer=_whole(whole_bytes), config=config)
        worker.shutdown()
        sockets = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="multifacet-bench-")))
        token = sockets / "token"
        token.write_text("benchmark")
        server = held.enter_context(serve_large(base, sockets, populate=True, admin_releases=folder, admin_token_file=token))
        before = own_bytes(server.pid)
        with AdminClient(server.address, token_file=token, timeout_s=300) as admin:
            started = time.perf_counter()
            admin.load(delta)
            seconds = time.perf_counter() - started
        yield Row(case=f"{case}, open", metric=_SECONDS, value=seconds, config=config)
        grown = max(1, own_bytes(server.pid) - before)
        yield Row(case=f"{case}, memory", metric=_BYTES, value=grown, peer=_whole(whole_bytes), config=config)
        client = held.enter_context(spawned_worker())
        address = f"framed:unix:{sockets / 'frames.sock'}"
        whole_ms, delta_ms = client.submit(_ask, address, base, delta, num_blocks).result()
        for metric, quantile in ((_P50, 50), (_P99, 99)):
            peer = Peer(name="the whole release", value=float(np.percentile(whole_ms, quantile)))
            value = float(np.percentile(delta_ms, quantile))
            yield Row(case=f"{case}, frames", metric=metric, value=value, peer=peer, config=config)


def _whole(num_bytes: int) -> Peer:
    return Peer(name="the whole release", value=float(num_bytes))


def _write(path: Path, base: Path, num_rows: int) -> float:
    """Seconds, the rows drawn and a small delta written before: it imports and compiles."""
    with tempfile.TemporaryDirectory(prefix="multifacet-bench-") as name:
        small = Path(name)
        write_release(small / "base", {"pin": IdMap.hashed(100, id_type="int64")})
        with DeltaWriter(small / "delta", small / "base", parents=("0" * 64,)):
            pass
    generator = np.random.default_rng(7)
    rows = np.unique(generator.integers(0, num_rows, num_rows // 100, np.int32))
    content = np.concatenate([chunk.numpy() for chunk in drawn_chunks(generator, len(rows))])
    started = time.perf_counter()
    with DeltaWriter(path, base, parents=("0" * 64,)) as writer:
        writer.change_rows("pin", rows, content)
    return time.perf_counter() - started


def _ask(address: str, base: Path, delta: Path, num_blocks: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each request: of the whole release, and of the delta."""
    versions = [Release.open(path, verify=False).version for path in (base, delta)]
    generator = np.random.default_rng(1)
    latencies: tuple[list[float], list[float]] = ([], [])
    with connect_lookup(address, timeout_s=60) as client:
        for block in range(2 * num_blocks + 2):
            for _ in range(_BLOCK):
                ids = drawn_ids(generator)
                started = time.perf_counter()
                client.lookup(versions[block % 2], {"pin": ids})
                if block >= 2:  # the first ones warm up
                    latencies[block % 2].append((time.perf_counter() - started) * 1e3)
    return latencies
