"""How generating, loading, exporting and sampling a graph scale from 1M to 100M edges: rates and peak memory.

Each step runs in a process of its own, so that its peak memory is its own. A synthetic world of as many edges is generated
(a twentieth as many users, a fiftieth as many pins), loaded into a store with a memory limit of 4 GB, exported whole (every
relation in compressed columns), and sampled: 15 and 10 neighbours a relation around 1024 users a batch, all relations walked
both ways. Other sizes: `MULTIFACET_SCALE_EDGES=1000000,3000000 python -m benchmarks graph_scale`.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import HIGHER, LOWER, Metric, Row
from multifacet.graphdb import GraphStore

EDGES_PER_S: Final = Metric(name="edges_per_s", unit="1/s", better=HIGHER)
PEAK: Final = Metric(name="peak_rss", unit="bytes", better=LOWER)
SIZES: Final = (1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000)
QUICK_SIZES: Final = (100_000, 500_000)
SIZES_VARIABLE: Final = "MULTIFACET_SCALE_EDGES"
MEMORY_LIMIT: Final = "4GB"
FANOUTS: Final = [15, 10]
BATCH_SIZE: Final = 1024
NUM_BATCHES: Final = 20

#: A step: folder and edges -> what it made (edges) and the seconds that count.
Step = Callable[[Path, int], tuple[int, float]]


def run(quick: bool) -> Iterator[Row]:
    """0.1M and 0.5M edges when quick, else 1M to 100M."""
    given = os.environ.get(SIZES_VARIABLE)
    sizes = [int(float(size)) for size in given.split(",")] if given else QUICK_SIZES if quick else SIZES
    for num_edges in sizes:
        with tempfile.TemporaryDirectory() as name:
            for step in (generate, load, export, sample):
                made, seconds, peak_bytes = run_alone(step, Path(name), num_edges)
                config = {"edges": num_edges, "seconds": seconds, "counted": made, "memory_limit": MEMORY_LIMIT}
                case = f"{step.__name__}, {num_edges / 1e6:g}M edges"
                yield Row(case=case, metric=EDGES_PER_S, value=made / seconds, config=config)
                yield Row(case=case, metric=PEAK, value=peak_bytes, config=config)


def generate(folder: Path, num_edges: int) -> tuple[int, float]:
    """The world's files."""
    from multifacet.graphdb.world import World, WorldConfig  # noqa: PLC0415 - each step's process imports what it needs

    config = WorldConfig(num_edges=num_edges, num_users=num_edges // 20, num_pins=num_edges // 50, num_advertisers=5000)
    started = time.perf_counter()
    World.generate(config, folder / "world")
    return num_edges, time.perf_counter() - started


def load(folder: Path, num_edges: int) -> tuple[int, float]:
    """The store, with every id mapped, every row checked, and the edges clustered."""
    from multifacet.graphdb.world import World  # noqa: PLC0415

    del num_edges
    world = World.open(folder / "world")
    started = time.perf_counter()
    reports = world.build_store(folder / "store.duckdb", memory_limit=MEMORY_LIMIT)
    seconds = time.perf_counter() - started
    relations = {relation.name for relation in _relations(folder)}
    return sum(report.loaded for report in reports if report.target in relations), seconds


def export(folder: Path, num_edges: int) -> tuple[int, float]:
    """Every relation of the whole store in compressed columns, one after the other."""
    del num_edges
    with GraphStore.open(folder / "store.duckdb", read_only=True, memory_limit=MEMORY_LIMIT) as store:
        view = store.view()
        view.csc("in")  # loads the kernels
        started = time.perf_counter()
        made = sum(len(view.csc(relation.name).row) for relation in view.relations)
        return made, time.perf_counter() - started


def sample(folder: Path, num_edges: int) -> tuple[int, float]:
    """Edges of sampled subgraphs; the sampler is made beforehand."""
    import torch  # noqa: PLC0415
    from torch_geometric.sampler import HeteroSamplerOutput, NodeSamplerInput  # noqa: PLC0415

    del num_edges
    with GraphStore.open(folder / "store.duckdb", read_only=True, memory_limit=MEMORY_LIMIT) as store:
        sampler = store.view(relations=["clicks", "converts"]).sampler(FANOUTS, reverse=True, backend="numba")
    generator = torch.Generator().manual_seed(0)
    num_users = sampler.topology.num_nodes["user"]
    batches = [torch.randint(num_users, (BATCH_SIZE,), generator=generator) for _ in range(NUM_BATCHES + 1)]
    made, started = 0, 0.0
    for number, users in enumerate(batches):
        if number == 1:  # the first batch compiles the kernels
            made, started = 0, time.perf_counter()
        output = sampler.sample_from_nodes(NodeSamplerInput(None, users, None, "user"))
        if not isinstance(output, HeteroSamplerOutput):
            raise TypeError(f"a graph with types should give a HeteroSamplerOutput, not {type(output)}")
        made += sum(len(row) for row in output.row.values())
    return made, time.perf_counter() - started


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws rates and peak memory by size, a line for each step."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, (rates, memory) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    steps = list(dict.fromkeys(row["case"].partition(",")[0] for row in rows))
    for step in steps:
        for axes, metric, scale in ((rates, EDGES_PER_S, 1e6), (memory, PEAK, 2**30)):
            found = [row for row in rows if row["metric"] == metric.name and row["case"].startswith(f"{step},")]
            axes.plot([row["config"]["edges"] for row in found], [row["value"] / scale for row in found], "o-", label=step)
    for axes, title in ((rates, "million edges a second"), (memory, "peak resident memory, GiB")):
        axes.set(xscale="log", title=title, xlabel="edges in the graph")
        axes.grid(alpha=0.3)
    rates.set(yscale="log")
    memory.set(ylim=(0, None))
    rates.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _relations(folder: Path) -> Sequence[Any]:
    with GraphStore.open(folder / "store.duckdb", read_only=True) as store:
        return store.schema.relations


def run_alone(step: Step, folder: Path, num_edges: int) -> tuple[int, float, int]:
    """Runs a step in a new process; returns also the process's peak resident memory in bytes."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, step, folder, num_edges).result()


def _measured(step: Step, folder: Path, num_edges: int) -> tuple[int, float, int]:
    made, seconds = step(folder, num_edges)
    # Not getrusage: its maximum goes back to the process that started this one.
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    if peak is None:
        raise RuntimeError("/proc/self/status has no VmHWM, the peak of resident memory; run this on Linux")
    return made, seconds, int(peak[1]) * 1024
