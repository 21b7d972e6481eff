"""Seconds from a store's window to torch: triples and CSC, whole and a tenth of the time, beside torch's own sort.

The peer torch_sort takes the same columns out of the same store in time's order, and sorts them with torch. Each figure is the
best of some rounds, from opening the view to tensors; the sides take turns.
"""

from __future__ import annotations

import datetime as dt
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import torch
from torch import Tensor

from benchmarks.harness import LOWER, Metric, Peer, Row
from benchmarks.harness.edge_log import FIRST_DAY, NUM_DAYS, create_store, write_edge_log
from multifacet.graphdb import GraphStore

SECONDS = Metric(name="seconds", unit="s", better=LOWER)


def run(quick: bool) -> Iterator[Row]:
    """1M edges when quick, else 20M."""
    num_edges, num_rounds = (1_000_000, 3) if quick else (20_000_000, 3)
    tenth = FIRST_DAY + dt.timedelta(days=NUM_DAYS * 0.4), FIRST_DAY + dt.timedelta(days=NUM_DAYS * 0.5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with create_store(folder / "store.duckdb") as store:
            store.load_edges("clicks", write_edge_log(folder, num_edges))
            with duckdb.connect(str(folder / "unsorted.duckdb")) as unsorted:
                _write_unsorted(store, unsorted)
                for window, bounds in (("whole", None), ("a tenth", tenth)):
                    for case in ("triples", "csc"):
                        own, peer = _contest(_export(store, case, bounds), _sort(store, unsorted, case, bounds), num_rounds)
                        yield Row(
                            case=f"{case}, {window}, {num_edges // 1_000_000}M edges",
                            metric=SECONDS,
                            value=own,
                            peer=Peer(name="torch_sort", value=peer),
                            config={
                                "edges": num_edges,
                                "rounds": num_rounds,
                                "window": window,
                                "threads": torch.get_num_threads(),
                            },
                        )


Bounds = tuple[dt.datetime, dt.datetime] | None


def _write_unsorted(store: GraphStore, unsorted: duckdb.DuckDBPyConnection) -> None:
    edges = store.sql("SELECT src_idx AS src, dst_idx AS dst, time FROM edges_clicks ORDER BY time")
    unsorted.register("edges", edges)
    unsorted.execute("CREATE TABLE clicks AS FROM edges")
    unsorted.unregister("edges")


def _export(store: GraphStore, case: str, bounds: Bounds) -> Callable[[], int]:
    def export() -> int:
        view = store.view() if bounds is None else store.view(since=bounds[0], as_of=bounds[1])
        edges = len(view.triples()) if case == "triples" else len(view.csc("clicks").row)
        view.close()
        return edges

    return export


def _sort(store: GraphStore, unsorted: duckdb.DuckDBPyConnection, case: str, bounds: Bounds) -> Callable[[], int]:
    num_pins = store.counts()["nodes"]["pin"]
    where = "" if bounds is None else f"WHERE time >= TIMESTAMP '{bounds[0]}' AND time < TIMESTAMP '{bounds[1]}'"

    def sort() -> int:
        columns = unsorted.sql(f"SELECT src, dst, epoch_us(time) AS time FROM clicks {where}").torch()
        order: Tensor = torch.argsort(columns["dst"], stable=True)
        src, dst = columns["src"][order], columns["dst"][order]
        if case == "csc":
            pointers = torch.zeros(num_pins + 1, dtype=torch.int64)
            torch.cumsum(torch.bincount(dst, minlength=num_pins), 0, out=pointers[1:])
            columns["time"] = columns["time"][order]
        return len(src)

    return sort


def _contest(own: Callable[[], int], peer: Callable[[], int], num_rounds: int) -> tuple[float, float]:
    seconds: dict[Callable[[], int], list[float]] = {own: [], peer: []}
    if own() != peer():
        raise RuntimeError("the two sides export different numbers of edges")
    for _ in range(num_rounds):
        for side, times in seconds.items():
            started = time.perf_counter()
            side()
            times.append(time.perf_counter() - started)
    return min(seconds[own]), min(seconds[peer])
