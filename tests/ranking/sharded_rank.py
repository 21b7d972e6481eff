"""What test_sharded.py runs in one process, and as a gloo rank of several."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingCollection, EmbeddingConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.modules.embedding_configs import DataType

from ranking import TableSource, arm_config, init_tables
from ranking.assembly import make_model
from ranking.columns import Columns
from ranking.fit import Fit
from ranking.initialise import init_random
from ranking.sharded import ShardedTrainer
from ranking.shards import find_tables
from tables import IdMap, Snapshot
from tables.lanes import Lanes

SMALL: dict[str, Any] = {"dim": 8, "hidden": (8, 4), "projected": 4, "cross_rank": 4, "dropout": 0.0, "upper_lr": 1e-3}
TRAINED: dict[str, dict[str, Any]] = {
    "default": {"facet_lrs": {"kge": 0.1}},
    "sequence": {"sequence": "attention", "combination": "gating", "heads": "esmm"},
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
        "in_order": (501, 8, DataType.FP16, {"missing": "normal", "seed": 3}),
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


def train_cases(*, rank: int = 0, num_ranks: int = 1) -> dict[str, Any]:
    """Train two steps a case, sharded if there are ranks, and return the rows that this process holds and the rest."""
    saved: dict[str, Any] = {}
    for case, fields in TRAINED.items():
        config = arm_config("scratch", **SMALL, **fields)
        torch.manual_seed(0)
        id_maps = {name: IdMap.exact(range(40)) for name in config.features}
        model = make_model(config, id_maps, num_dense=3, num_recent=2)
        init_random(model, 1.0, torch.Generator().manual_seed(1))
        batches = _batches(model.layout.num_columns)
        if num_ranks == 1:
            fit = Fit(model, config, torch.Generator(), lambda: None)
            with Lanes() as lanes:
                losses = [fit._step(batch, lanes) for batch in batches]
            trained: nn.Module = model
        else:
            trainer = ShardedTrainer(model, config, torch.device("cpu"))
            losses = [trainer.step(batch.take(slice(rank, None, num_ranks))) for batch in batches]
            trained = trainer.model
        saved[f"{case}_losses"] = losses
        for table in find_tables(trained):
            saved[f"{case}_{table.name}"] = torch.cat([shard.weights.clone() for shard in table.shards])
        saved |= {
            f"{case}_{name}": value.detach().clone()
            for name, value in trained.named_parameters()
            if name.startswith(("upper.", "pooling."))
        }
    return saved


def _batches(num_columns: int) -> list[Columns]:
    generator = torch.Generator().manual_seed(2)
    return [
        Columns(
            dense=torch.randn(64, 3, generator=generator),
            rows=torch.randint(0, 41, (64, num_columns), generator=generator, dtype=torch.int32),
            num_recent=torch.randint(0, 3, (64,), generator=generator, dtype=torch.int32),
            ctr=torch.randint(0, 2, (64,), generator=generator).float(),
            cvr=torch.randint(0, 2, (64,), generator=generator).float(),
            cvr_known=torch.randint(0, 2, (64,), generator=generator).float(),
        )
        for _ in range(3)
    ]


def main(rank: int, num_ranks: int, rendezvous: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=num_ranks, init_method=f"file://{rendezvous}")
    saved = {**fill_cases(folder, sharded=True), **train_cases(rank=rank, num_ranks=num_ranks)}
    torch.save(saved, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
