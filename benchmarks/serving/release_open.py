"""Seconds from a release on disk to a lookup server that is ready, beside reading the same table with torch.load.

The table has 64 values a row in INT4 and an exact id map; its files are in the page cache, in a process that has imported
everything. Verified compares every file's checksum first. own_memory is the anonymous memory that the process takes more than
before: mapped files are not in it, which all processes of a host share and the system may drop.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import LOWER, Metric, Peer, Row
from benchmarks.harness.memory import own_bytes
from benchmarks.harness.releases import DIM, write_release
from multifacet.serving import LookupConfig, LookupServer
from multifacet.tables import IdMap

SECONDS = Metric(name="seconds", unit="s", better=LOWER)
OWN_MEMORY = Metric(name="own_memory", unit="bytes", better=LOWER)


def run(quick: bool) -> Iterator[Row]:
    """1M rows when quick, else 8M."""
    num_rows = 1_000_000 if quick else 8_000_000
    with tempfile.TemporaryDirectory(prefix="multifacet-bench-") as name:
        folder = Path(name)
        release = write_release(folder / "release", {"pin": IdMap.exact(np.arange(num_rows - 1, dtype=np.int64) * 7 + 13)})
        small = write_release(folder / "small", {"pin": IdMap.exact([1, 2])})
        (table,) = release.tables
        id_map = release.id_map("pin")
        known = id_map.rows(np.arange(num_rows - 1, dtype=np.int64) * 7 + 13)
        torch.save(
            {"rows": torch.from_numpy(release.map_rows(table).copy()), "row_of_id": torch.from_numpy(known)},
            folder / "table.pt",
        )
        seconds, own = _in_child(_load, folder / "table.pt", folder / "table.pt")
        for case, verify in (("mapped", False), ("mapped, verified", True)):
            config = LookupConfig(releases=(release.path,), verify=verify)
            warm = LookupConfig(releases=(small.path,), verify=verify)
            measured = _in_child(_open, warm, config)
            rows = {"rows": num_rows, "dim": DIM, "precision": "int4", "verify": verify}
            for metric, value, peer in zip((SECONDS, OWN_MEMORY), measured, (seconds, own), strict=True):
                yield Row(
                    case=f"{num_rows // 1_000_000}M rows, {case}",
                    metric=metric,
                    value=value,
                    peer=Peer(name="torch.load", value=peer),
                    config=rows,
                )


def _in_child(work: Callable[[Any], object], warm: object, given: object) -> tuple[float, float]:
    """Seconds and own bytes of `work(given)` in a process that did `work(warm)` before."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, work, warm, given).result()


def _measure(work: Callable[[Any], object], warm: object, given: object) -> tuple[float, float]:
    work(warm)
    gc.collect()
    before = own_bytes(os.getpid())
    started = time.perf_counter()
    held = work(given)
    seconds = time.perf_counter() - started
    own = own_bytes(os.getpid()) - before
    del held
    return seconds, float(max(1, own))


def _open(config: LookupConfig) -> LookupServer:
    server = LookupServer(config)
    server.start()
    return server


def _load(path: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(path)
    return loaded
