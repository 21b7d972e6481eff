"""What test_sharded_rows.py runs as gloo ranks: encode and gather_rows of tables that ranks share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardMetadata, init_from_local_shards
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard as Divide
from torch.distributed.tensor import distribute_tensor
from torchrec import EmbeddingCollection, EmbeddingConfig
from torchrec.distributed import DistributedModelParallel

from multifacet.tables import encode, gather_rows
from multifacet.tables.codec.rows import Precision

NUM_ROWS, DIM = 1001, 16
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int4")


def whole(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(NUM_ROWS, DIM, generator=torch.Generator().manual_seed(0)).to(dtype)


def divide(table: Tensor, blocks: list[tuple[int, int, int, int, int]]) -> ShardedTensor:
    """Give a table's parts (rank, first row, rows, first column, columns) to the ranks."""
    here = [
        Shard(
            tensor=table[row : row + rows, column : column + columns].contiguous(),
            metadata=ShardMetadata([row, column], [rows, columns], f"rank:{rank}/cpu"),
        )
        for rank, row, rows, column, columns in blocks
        if rank == dist.get_rank()
    ]
    return init_from_local_shards(here, *table.shape)


DIVIDED = {
    "rows": [(0, 0, 501, 0, DIM), (1, 501, 500, 0, DIM)],
    "columns": [(0, 0, NUM_ROWS, 0, 4), (1, 0, NUM_ROWS, 4, DIM - 4)],
    "grid": [(1, 0, 400, 0, 8), (0, 0, 400, 8, 8), (0, 400, 601, 0, 8), (1, 400, 601, 8, 8)],
    "whole": [(1, 0, NUM_ROWS, 0, DIM)],
}


def check_rows() -> None:
    for dtype in (torch.float32, torch.float16):
        table = whole(dtype)
        for name, blocks in DIVIDED.items():
            sharded = divide(table, blocks)
            assert torch.equal(gather_rows(sharded), table), name
            for precision in PRECISIONS:
                assert torch.equal(encode(sharded, precision), encode(table, precision)), (name, precision)
            assert torch.equal(encode(sharded, "int4", "refit"), encode(table, "int4", "refit")), name
        spread = distribute_tensor(table, init_device_mesh("cpu", (dist.get_world_size(),)), [Divide(0)])
        assert torch.equal(encode(spread, "int4"), encode(table, "int4"))
        assert torch.equal(gather_rows(spread), table)


def check_refusals() -> None:
    """Every rank raises what one has met, so that none waits for it."""
    table = whole()
    table[700, 3] = torch.nan
    for blocks in DIVIDED.values():
        sharded = divide(table, blocks)
        with pytest.raises(ValueError, match=r"of rows .* of the sharded table: Row \d+ cannot .* element 3 is nan"):
            encode(sharded, "int4")
    dist.barrier()


def check_torchrec() -> None:
    config = EmbeddingConfig(name="t", embedding_dim=DIM, num_embeddings=NUM_ROWS, feature_names=["f"])
    model = DistributedModelParallel(
        nn.ModuleDict({"sparse": EmbeddingCollection(tables=[config])}), device=torch.device("cpu")
    )
    (sharded,) = (value for key, value in model.state_dict().items() if key.endswith("t.weight"))
    assert isinstance(sharded, ShardedTensor)
    assert torch.equal(encode(sharded, "int8"), encode(gather_rows(sharded), "int8"))


if __name__ == "__main__":
    rank, num_ranks, store = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks)
    check_rows()
    check_refusals()
    check_torchrec()
    dist.destroy_process_group()
    sys.stdout.write("fine\n")
