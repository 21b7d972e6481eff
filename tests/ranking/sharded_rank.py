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

from ranking import TableSource, init_tables
from ranking.shards import find_tables
from tables import IdMap, Snapshot


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


def main(rank: int, num_ranks: int, rendezvous: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=num_ranks, init_method=f"file://{rendezvous}")
    torch.save(fill_cases(folder, sharded=True), folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
