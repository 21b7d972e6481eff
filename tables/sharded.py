"""Tables whose rows are shared out to the processes of a `torch.distributed` group, by TorchRec."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.distributed as dist
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tables.snapshot import Snapshot, SnapshotTable

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

__all__ = ["ShardedTables"]

# Rows that one random stream initialises: the first values then do not depend on the number of processes.
_INIT_ROWS: Final = 1 << 16


class ShardedTables:
    """One table a node type, cut into ranges of rows, one for each process; row-wise Adagrad runs within the backward pass.

    A step is the same program on every process, each with its own batch::

        rows = {"user": int64 [n], "pin": int64 [m]}      this process's rows; a type may have none
        vectors = tables.gather(rows)                     rows travel to and from their owners
        loss(vectors).backward()                          gradients travel back; an owner sums a row's, then updates it once

    TorchRec divides gradients by the number of processes: a step follows the mean of their losses, as one process would that
    had all batches. The group's backend says what it runs on: gloo for CPUs, NCCL for GPUs.

    Args:
        num_rows: node type -> rows.
        dim: width of a row.
        lr: learning rate.
        init_scale: standard deviation of the first values.
        seed: of the first values, which are the same for any number of processes.
        device: where this process's rows are.

    Raises:
        RuntimeError: There is no process group.
    """

    def __init__(
        self,
        num_rows: Mapping[str, int],
        *,
        dim: int,
        lr: float,
        init_scale: float,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        if not dist.is_initialized():
            raise RuntimeError("sharded tables need a process group: start with torchrun and call init_process_group first")
        self.device = device or torch.device("cpu")
        self.node_types = tuple(num_rows)
        self.num_rows = dict(num_rows)
        self.dim = dim
        collection = EmbeddingCollection(
            tables=[
                EmbeddingConfig(name=name, embedding_dim=dim, num_embeddings=count, feature_names=[name])
                for name, count in num_rows.items()
            ],
            device=torch.device("meta"),
        )
        apply_optimizer_in_backward(RowWiseAdagrad, collection.parameters(), {"lr": lr, "eps": 1e-10})
        sharder: Any = EmbeddingCollectionSharder()
        plan = construct_module_sharding_plan(
            collection,
            per_param_sharding={name: row_wise() for name in num_rows},
            sharder=sharder,
            world_size=dist.get_world_size(),
            local_size=dist.get_world_size(),
            device_type=self.device.type,
        )
        self._model = DistributedModelParallel(
            collection,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=self.device,
            plan=ShardingPlan(plan={"": plan}),
            sharders=[sharder],
        )
        for number, name in enumerate(self.node_types):
            for first, rows in self.local_rows(name):
                _initialise(rows, first, scale=init_scale, seed=(seed, number))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={count}" for name, count in self.num_rows.items())
        return f"ShardedTables({sizes}, dim={self.dim}, processes={dist.get_world_size()})"

    def gather(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gives rows of the tables, wherever they are; every process must call it, and then go backward.

        Args:
            rows: node type -> int64 [n]; a type that is not named has none.

        Returns:
            node type -> float32 [n, D], for the types that were named; differentiable, and updated by going backward.
        """
        unknown = rows.keys() - set(self.node_types)
        if unknown:
            raise KeyError(f"there are no tables {sorted(unknown)}; there are {self.node_types}")
        none = torch.empty(0, dtype=torch.int64)
        parts = [rows.get(name, none).to(torch.int64) for name in self.node_types]
        features = KeyedJaggedTensor(
            keys=list(self.node_types),
            values=torch.cat(parts).to(self.device),
            lengths=torch.tensor([len(part) for part in parts], dtype=torch.int32, device=self.device),
        )
        gathered = self._model(features)
        vectors = {name: gathered[name].values() for name in self.node_types}
        # A process that learns from no row of a type takes part in its backward pass all the same.
        self._idle = [vectors[name].sum() for name in self.node_types if name not in rows]
        return {name: vectors[name] for name in rows}

    def backward(self, loss: Tensor) -> None:
        """Goes backward from this process's loss, and so updates all rows that any process has gathered."""
        for idle in self._idle:
            loss = loss + 0.0 * idle
        loss.backward()  # type: ignore[no-untyped-call]

    def local_rows(self, node_type: str) -> Iterator[tuple[int, Tensor]]:
        """Yields the ranges of a table that this process owns: first row, and the living rows, float32 [n, D]."""
        sharded = self._model.state_dict()[f"embeddings.{node_type}.weight"]
        for shard in sharded.local_shards():
            yield shard.metadata.shard_offsets[0], shard.tensor.detach()

    def write_snapshot(
        self,
        path: str | os.PathLike[str],
        *,
        facet: str,
        node_ids: Callable[[str], Any],
        finish: Callable[[Tensor], Tensor] | None = None,
        **fields: Any,
    ) -> None:
        """Writes a snapshot, each process its own rows; no process ever holds a table.

        All processes need one file system. They write into files beside the snapshot, which the first one then maps.

        Args:
            path: The snapshot's directory.
            facet: How the vectors were trained.
            node_ids: gives the external ids of a node type; asked of the first process only.
            finish: maps rows [n, D] to those to write, e.g. to length 1.
            **fields: Further fields of `Snapshot.write`; those of the first process count.
        """
        first = dist.get_rank() == 0
        path = Path(path)
        folder: list[str] = [""]
        if first:
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
            folder = [tempfile.mkdtemp(prefix=f".{path.name}.shards-", dir=path.absolute().parent)]
        dist.broadcast_object_list(folder, src=0)
        files = {name: Path(folder[0]) / str(number) for number, name in enumerate(self.node_types)}
        try:
            if first:
                for name in self.node_types:
                    self._map(files[name], name, mode="w+").flush()
            dist.barrier()
            for name in self.node_types:
                written = self._map(files[name], name, mode="r+")
                for begin, rows in self.local_rows(name):
                    written[begin : begin + len(rows)] = (finish(rows) if finish else rows).cpu().numpy()
                written.flush()
            dist.barrier()
            if first:
                tables = {
                    name: SnapshotTable(ids=node_ids(name), vectors=torch.from_numpy(self._map(files[name], name, mode="r+")))
                    for name in self.node_types
                }
                Snapshot.write(path, facet=facet, tables=tables, **fields)
        finally:
            if first:
                for file in files.values():
                    file.unlink(missing_ok=True)
                Path(folder[0]).rmdir()
        dist.barrier()

    def _map(self, path: Path, node_type: str, *, mode: Any) -> np.memmap[Any, np.dtype[np.float32]]:
        return np.memmap(path, dtype=np.float32, mode=mode, shape=(self.num_rows[node_type], self.dim))


def _initialise(rows: Tensor, first: int, *, scale: float, seed: Sequence[int]) -> None:
    """Fills rows that begin at `first` of their table, from one stream for each block of the table."""
    last = first + len(rows)
    for block in range(first // _INIT_ROWS, -(-last // _INIT_ROWS)):
        drawn = np.random.default_rng((*seed, block)).standard_normal((_INIT_ROWS, rows.shape[1]), dtype=np.float32)
        begin, end = max(first, block * _INIT_ROWS), min(last, (block + 1) * _INIT_ROWS)
        part = drawn[begin - block * _INIT_ROWS : end - block * _INIT_ROWS] * np.float32(scale)
        rows[begin - first : end - first] = torch.from_numpy(part).to(rows.device)
