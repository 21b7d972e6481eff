"""What test_sharded.py runs in one process, and as a gloo rank of several."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingCollection, EmbeddingConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.modules.embedding_configs import DataType

from multifacet.ranking import (
    Examples,
    RankingResult,
    RecentPins,
    TableSource,
    arm_config,
    export_model,
    init_tables,
    train,
)
from multifacet.ranking.config import Arm
from multifacet.ranking.shards import find_tables
from multifacet.tables import IdMap, Lifecycle, Snapshot, StepProgress

SMALL: dict[str, Any] = {
    "dim": 8,
    "hidden": (8, 4),
    "projected": 4,
    "cross_rank": 4,
    "dropout": 0.0,
    "upper_lr": 1e-3,
    "batch_size": 128,
}
EVERYTHING: dict[str, Any] = {
    "facets": ("kge", "other"),
    "pretrained_facets": ("kge",),
    "facet_lrs": {"other": 0.1},
    "row_lr_power": 0.5,
    "thaw_after_steps": 3,
    "reinit_tables": True,
    "max_epochs": 2,
    "patience": 9,
}
# All that a run does beside plain steps, in few runs.
TRAINED: dict[str, tuple[Arm, dict[str, Any]]] = {
    "default": ("pretrained", EVERYTHING),
    "half": ("pretrained", EVERYTHING | {"table_dtype": "fp16"}),
    "half_sequence": (
        "scratch",
        {
            "facets": ("a",),
            "sequence": "attention",
            "sequence_table": "separate",
            "table_dtype": "fp16",
            "hash_rows": {"user": {"rows": 90, "num_hashes": 2}, "pin": {"rows": 151}},
            "max_epochs": 1,
        },
    ),
    "sequence": (
        "scratch",
        {"facets": ("a", "b"), "sequence": "attention", "combination": "gating", "heads": "esmm", "max_epochs": 1},
    ),
    "stopped": ("pretrained", {"facets": ("kge",), "pretrained_facets": ("kge",), "table_lr": 2.0, "patience": 1}),
    "frozen": (
        "scratch",
        {"facets": ("a", "b"), "combination": "attention", "heads": "mmoe", "freeze_tables": True, "max_epochs": 1},
    ),
    "no_ids": ("no_ids", {"max_epochs": 1}),
}


class Model(nn.Module):
    def __init__(self, num_rows: int, dim: int, data_type: DataType) -> None:
        super().__init__()
        config = EmbeddingConfig(
            name="t_pin", embedding_dim=dim, num_embeddings=num_rows, feature_names=["pin"], data_type=data_type
        )
        self.pins = EmbeddingCollection(tables=[config], device=torch.device("cpu"))


def fill_cases(folder: Path, *, sharded: bool) -> dict[str, Any]:
    """Fill one table a case, and return this process's rows and reports."""
    snapshot = Snapshot.load(folder / "snapshot", verify=False)
    exact = IdMap.exact([*range(0, 1000, 2), 3, 5])
    cases: dict[str, tuple[int, int, DataType, dict[str, Any]]] = {
        "exact": (exact.num_rows, 8, DataType.FP32, {"id_map": exact}),
        "hashed": (301, 8, DataType.FP16, {"id_map": IdMap.hashed(301, id_type="int64"), "norm": 0.5}),
        "in_order": (501, 8, DataType.FP16, {"rows": "position", "missing": "normal", "seed": 3}),
        "projected": (exact.num_rows, 4, DataType.FP32, {"id_map": exact, "projection": "pca", "missing": "zero"}),
    }
    saved: dict[str, Any] = {}
    for case, (num_rows, dim, data_type, rules) in cases.items():
        model: nn.Module = Model(num_rows, dim, data_type)
        if sharded:
            model = DistributedModelParallel(model, device=torch.device("cpu"))
        (table,) = find_tables(model)
        assert table.path == "pins.t_pin"
        assert (sum(len(shard.weights) for shard in table.shards) < num_rows) == sharded
        report = init_tables(model, {"t_pin": TableSource(snapshot=snapshot, node_type="pin", **rules)})
        saved[case] = torch.cat([shard.weights.clone() for shard in table.shards])
        saved[f"{case}_report"] = report[0].to_dict()
    return saved


def train_case(
    folder: Path, case: str, on_step: Callable[[StepProgress], None] | None = None, **life: Any
) -> tuple[dict[str, Any], RankingResult]:
    """Train a whole model, and return its weights, its history and itself."""
    arm, fields = TRAINED[case]
    examples = [with_recent(Examples.load(folder / f"{part}.parquet")) for part in ("train", "valid")]
    snapshots = [Snapshot.load(folder / "planted", verify=False)]
    lifecycle = Lifecycle(checkpoint=folder / f"{case}.checkpoint", on_step=on_step, **life)
    result = train(*examples, arm_config(arm, **SMALL, **fields), snapshots=snapshots, lifecycle=lifecycle)
    rows = [{name: row[name] for name in row if name not in ("seconds", "examples_per_s")} for row in result.history]
    return {"history": rows, "weights": {n: w.clone() for n, w in result.model.state_dict().items()}}, result


def with_recent(examples: Examples) -> Examples:
    """Add recent pins, of which some users have none."""
    generator = np.random.default_rng(len(examples))
    pins = 1000 + generator.integers(0, 600, (len(examples), 2))
    return replace(examples, recent=RecentPins(pin_ids=pins, num_recent=(examples.user_id % 3).astype(np.int32)))


def run_killed(rank: int, folder: Path) -> None:
    """Train until one rank is killed in its second epoch; there is a checkpoint from before each step."""

    def kill(progress: StepProgress) -> None:
        if rank == 1 and (progress.epoch, progress.step) == (1, 2):
            os.kill(os.getpid(), signal.SIGKILL)

    train_case(folder, "default", kill, every_seconds=0.0)


def stop_and_resume(folder: Path, case: str) -> dict[str, Any]:
    """Train until a stop is asked for in the second epoch, and from there to the end."""
    stop = threading.Event()

    def ask(progress: StepProgress) -> None:
        if (progress.epoch, progress.step) == (1, 2):
            stop.set()

    with contextlib.suppress(KeyboardInterrupt):
        train_case(folder, case, ask, stop=stop)
    assert stop.is_set()
    resumed, _ = train_case(folder, case, resume=True)
    dist.barrier()
    shutil.rmtree(folder / f"{case}.checkpoint", ignore_errors=True)
    dist.barrier()
    return resumed


def run_rest(rank: int, folder: Path) -> dict[str, Any]:
    """Go on with what was killed, fill tables, and train whole models, whose export the first rank writes."""
    saved = fill_cases(folder, sharded=True)
    saved["resumed"], _ = train_case(folder, "default", resume=True)
    shutil.rmtree(folder / "default.checkpoint", ignore_errors=True)
    dist.barrier()
    saved["half_resumed"] = stop_and_resume(folder, "half")
    for case in TRAINED:
        saved[case], result = train_case(folder, case)
        if rank == 0:
            export_model(folder / f"{case}.model", result)
    other = Examples.load(folder / "train.parquet").take(np.arange(100 + rank))
    try:
        train(other, other, arm_config("no_ids", **SMALL))
    except ValueError as error:
        saved["refused"] = str(error)
    return saved


def main(rank: int, num_ranks: int, rendezvous: str, folder: Path, *, is_killed: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=num_ranks, init_method=f"file://{rendezvous}")
    if is_killed:
        run_killed(rank, folder)
    torch.save(run_rest(rank, folder), folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), is_killed=sys.argv[5] == "killed")
