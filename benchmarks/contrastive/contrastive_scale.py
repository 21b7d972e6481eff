"""How an epoch of contrastive training scales from 1M to 100M edges of the synthetic world: its cost and peak memory.

A world of as many edges is generated (a tenth as many users, a fiftieth as many pins) and loaded into a store, as in the
benchmark graph_scale. Then a process of its own reads the positives of both relations and trains tables of dimension 64 for one
epoch of as many draws as there are distinct pairs, or for the first 20M draws of it: peak memory has been reached by then, and
one step costs what another does. CPU seconds stand beside the rates, as they hold on a busy machine too. Other sizes:
`MULTIFACET_SCALE_EDGES=1000000,3000000 python -m benchmarks contrastive_scale`; with `MULTIFACET_SCALE_STORES=folder` the
stores are kept there, and taken from there.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.graph.graph_scale import MEMORY_LIMIT, PEAK, QUICK_SIZES, SIZES, SIZES_VARIABLE, load, run_alone
from benchmarks.harness import HIGHER, LOWER, Metric, Row
from multifacet.graphdb import GraphStore
from multifacet.training import Lanes, Lifecycle, StepProgress, TrainingRun

PAIRS_PER_S: Final = Metric(name="pairs_per_s", unit="1/s", better=HIGHER)
CPU_SECONDS: Final = Metric(name="cpu_seconds_per_million_pairs", unit="s", better=LOWER)
_SETTINGS: Final[dict[str, Any]] = {
    "batch_size": 2048,
    "positives_per_query": 8,
    "num_uniform": 2048,
    "num_degree": 0,
    "epochs": 1,
    "validation": {"num_queries": 0},
}


_MAX_DRAWS: Final = 20_000_000
_STORES_VARIABLE: Final = "MULTIFACET_SCALE_STORES"


def run(quick: bool) -> Iterator[Row]:
    """0.1M and 0.5M edges when quick, else 1M to 100M."""
    given = os.environ.get(SIZES_VARIABLE)
    sizes = [int(float(size)) for size in given.split(",")] if given else QUICK_SIZES if quick else SIZES
    for num_edges in sizes:
        with _store_folder(num_edges) as folder:
            if not (folder / "store.duckdb").exists():
                for step in (generate, load):
                    run_alone(step, folder, num_edges)
            num_draws, seconds, peak_bytes = run_alone(train, folder, num_edges)
            found = json.loads((folder / "trained.json").read_text())
        config = {
            "edges": num_edges,
            "draws": num_draws,
            "seconds": seconds,
            **found,
            "contrastive": _SETTINGS,
            "memory_limit": MEMORY_LIMIT,
        }
        whole = num_draws >= found["pairs"]
        case = f"{'one epoch' if whole else f'{num_draws / 1e6:.0f}M draws of an epoch'}, {num_edges / 1e6:g}M edges"
        yield Row(case=case, metric=PAIRS_PER_S, value=num_draws / seconds, config=config)
        yield Row(case=case, metric=CPU_SECONDS, value=found["cpu_seconds"] / num_draws * 1e6, config=config)
        yield Row(case=case, metric=PEAK, value=peak_bytes, config=config)


@contextmanager
def _store_folder(num_edges: int) -> Iterator[Path]:
    kept = os.environ.get(_STORES_VARIABLE)
    if kept:
        folder = Path(kept) / str(num_edges)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def generate(folder: Path, num_edges: int) -> tuple[int, float]:
    """The world's files: of 100M edges, for 10M users and 2M pins."""
    from multifacet.graphdb.world import World, WorldConfig  # noqa: PLC0415 - each step's process imports what it needs

    config = WorldConfig(num_edges=num_edges, num_users=num_edges // 10, num_pins=num_edges // 50, num_advertisers=5000)
    started = time.perf_counter()
    World.generate(config, folder / "world")
    return num_edges, time.perf_counter() - started


def train(folder: Path, num_edges: int) -> tuple[int, float]:
    """Draws and seconds of an epoch, or of its first part; what else is of interest is left in a file."""
    import numpy as np  # noqa: PLC0415

    from multifacet.contrastive import ContrastiveConfig  # noqa: PLC0415
    from multifacet.contrastive.positives.positives import read_positives  # noqa: PLC0415
    from multifacet.contrastive.trainer.towers import Tower  # noqa: PLC0415
    from multifacet.contrastive.trainer.trainer import Trainer  # noqa: PLC0415

    del num_edges
    config = ContrastiveConfig.model_validate(_SETTINGS)
    started = time.perf_counter()
    with GraphStore.open(folder / "store.duckdb", read_only=True, memory_limit=MEMORY_LIMIT) as store:
        positives = read_positives(store.view(relations=["clicks", "converts"]), config)
    tower = Tower(config.item_type, positives, config, share=1.0)
    trainer = Trainer([tower], config, np.random.default_rng(0))
    reading_seconds = time.perf_counter() - started
    with Lanes() as lanes:  # loads the kernels
        batch = tower.draw(np.random.default_rng(1))
        trainer.step(tower, batch, lanes)
    stop = threading.Event()

    def stop_in_time(progress: StepProgress) -> None:
        if progress.examples >= _MAX_DRAWS:
            stop.set()

    run = TrainingRun(Lifecycle(on_step=stop_in_time, stop=stop))
    before = time.process_time()
    with contextlib.suppress(KeyboardInterrupt):  # that is how a training stops between two steps
        trainer.run_epoch(run)
    found = {
        "cpu_seconds": time.process_time() - before,
        "pairs": len(positives),
        "candidates_a_batch": len(batch.candidates.rows),
        "reading_seconds": reading_seconds,
    }
    seconds = run.epoch_seconds(trainer.state.position)
    (folder / "trained.json").write_text(json.dumps(found))
    num_steps = trainer.state.position.step or math.ceil(len(positives) / config.batch_size)
    return num_steps * config.batch_size, seconds


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws an epoch's CPU seconds and peak memory by its pairs, beside lines of the first size's proportion."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, (cost, memory) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axes, metric, unit in ((cost, CPU_SECONDS, "CPU seconds of an epoch"), (memory, PEAK, "peak resident memory, GiB")):
        found = [row for row in rows if row["metric"] == metric.name]
        pairs = [row["config"]["pairs"] / 1e6 for row in found]
        # Of a whole epoch, where only a part was run.
        epochs = [row["value"] * count for row, count in zip(found, pairs, strict=True)]
        values = epochs if metric is CPU_SECONDS else [row["value"] / 2**30 for row in found]
        axes.plot(pairs, values, "o-")
        if metric is CPU_SECONDS:
            axes.plot(pairs, [values[0] * count / pairs[0] for count in pairs], "--", label="in proportion to the first")
            axes.legend()
        axes.set(xscale="log", yscale="log", title=unit, xlabel="million distinct pairs")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
