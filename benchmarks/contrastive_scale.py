"""How an epoch of contrastive training scales from 1M to 100M edges of the synthetic world: its cost and peak memory.

A world of as many edges is generated (a tenth as many users, a fiftieth as many pins) and loaded into a store, as in the
benchmark graph_scale. Then a process of its own reads the positives of both relations and trains tables of dimension 64 for one
epoch of as many draws as there are distinct pairs. CPU seconds stand beside the rates, as they hold on a busy machine too.
Other sizes: `MULTIFACET_SCALE_EDGES=1000000,3000000 python -m benchmarks contrastive_scale`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.graph_scale import MEMORY_LIMIT, PEAK, QUICK_SIZES, SIZES, SIZES_VARIABLE, load, run_alone
from benchmarks.harness import HIGHER, LOWER, Metric, Row
from graphdb import GraphStore
from tables.lanes import Lanes

PAIRS_PER_S: Final = Metric(name="pairs_per_s", unit="1/s", better=HIGHER)
CPU_SECONDS: Final = Metric(name="cpu_seconds_per_million_pairs", unit="s", better=LOWER)
_SETTINGS: Final[dict[str, Any]] = {
    "batch_size": 8192,
    "positives_per_query": 8,
    "num_uniform": 2048,
    "num_degree": 0,
    "epochs": 1,
    "validation": {"num_queries": 0},
}


def run(quick: bool) -> Iterator[Row]:
    """0.1M and 0.5M edges when quick, else 1M to 100M."""
    given = os.environ.get(SIZES_VARIABLE)
    sizes = [int(float(size)) for size in given.split(",")] if given else QUICK_SIZES if quick else SIZES
    for num_edges in sizes:
        with tempfile.TemporaryDirectory() as name:
            for step in (generate, load):
                run_alone(step, Path(name), num_edges)
            num_pairs, seconds, peak_bytes = run_alone(train, Path(name), num_edges)
            cpu_seconds = float((Path(name) / "cpu_seconds").read_text())
        config = {
            "edges": num_edges,
            "pairs": num_pairs,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "contrastive": _SETTINGS,
            "memory_limit": MEMORY_LIMIT,
        }
        case = f"one epoch, {num_edges / 1e6:g}M edges"
        yield Row(case=case, metric=PAIRS_PER_S, value=num_pairs / seconds, config=config)
        yield Row(case=case, metric=CPU_SECONDS, value=cpu_seconds / num_pairs * 1e6, config=config)
        yield Row(case=case, metric=PEAK, value=peak_bytes, config=config)


def generate(folder: Path, num_edges: int) -> tuple[int, float]:
    """The world's files: of 100M edges, for 10M users and 2M pins."""
    from graphdb.world import World, WorldConfig  # noqa: PLC0415 - each step's process imports what it needs

    config = WorldConfig(num_edges=num_edges, num_users=num_edges // 10, num_pins=num_edges // 50, num_advertisers=5000)
    started = time.perf_counter()
    World.generate(config, folder / "world")
    return num_edges, time.perf_counter() - started


def train(folder: Path, num_edges: int) -> tuple[int, float]:
    """One epoch, from the store; the seconds, and the CPU seconds that it leaves in a file, are the epoch's."""
    import numpy as np  # noqa: PLC0415

    from contrastive import ContrastiveConfig  # noqa: PLC0415
    from contrastive.positives import read_positives  # noqa: PLC0415
    from contrastive.towers import Tower  # noqa: PLC0415
    from contrastive.trainer import Trainer  # noqa: PLC0415

    del num_edges
    config = ContrastiveConfig.model_validate(_SETTINGS)
    with GraphStore.open(folder / "store.duckdb", read_only=True, memory_limit=MEMORY_LIMIT) as store:
        positives = read_positives(store.view(relations=["clicks", "converts"]), config)
    tower = Tower(config.item_type, positives, config, share=1.0)
    trainer = Trainer([tower], config, np.random.default_rng(0))
    with Lanes() as lanes:  # loads the kernels
        trainer.step(tower, tower.draw(np.random.default_rng(1)), lanes)
    before = time.process_time()
    row = trainer.run_epoch()
    (folder / "cpu_seconds").write_text(str(time.process_time() - before))
    return len(positives), row["seconds"]


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws an epoch's CPU seconds and peak memory by its pairs, beside lines of the first size's proportion."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, (cost, memory) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axes, metric, unit in ((cost, CPU_SECONDS, "CPU seconds of an epoch"), (memory, PEAK, "peak resident memory, GiB")):
        found = [row for row in rows if row["metric"] == metric.name]
        pairs = [row["config"]["pairs"] / 1e6 for row in found]
        values = [row["config"]["cpu_seconds"] if metric is CPU_SECONDS else row["value"] / 2**30 for row in found]
        axes.plot(pairs, values, "o-")
        if metric is CPU_SECONDS:
            axes.plot(pairs, [values[0] * count / pairs[0] for count in pairs], "--", label="in proportion to the first")
            axes.legend()
        axes.set(xscale="log", yscale="log", title=unit, xlabel="million distinct pairs")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
