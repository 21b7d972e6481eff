"""Tables whose rows are shared out to the processes of a `torch.distributed` group, by TorchRec."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

from multifacet.tables import Snapshot, SnapshotTable
from multifacet.tables.filling import fill_normal
from multifacet.training.assembly import Pieces, assemble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor

__all__ = ["ShardedTables", "local_size", "plan_by_rows"]


def plan_by_rows(collection: EmbeddingCollection, names: Iterable[str], device_type: str) -> Any:
    """Plan which process has which rows: each table is cut into as many ranges as there are processes.

    A process's device is counted on its own host: of 16 processes on two hosts the ninth has `cuda:0`.

    Args:
        collection: The tables, in TorchRec's terms.
        names: Those that are cut: all of them.
        device_type: "cpu" or "cuda".

    Returns:
        TorchRec's plan of the collection.

    Raises:
        RuntimeError: There is no process group.
    """
    return construct_module_sharding_plan(
        collection,
        per_param_sharding={name: row_wise() for name in names},
        sharder=_sharder(),
        world_size=dist.get_world_size(),
        local_size=local_size(),
        device_type=device_type,
    )


def local_size() -> int:
    """How many processes each host has: torchrun's LOCAL_WORLD_SIZE, or all of them where nothing says it.

    Raises:
        ValueError: The hosts cannot have as many processes each.
    """
    world_size = dist.get_world_size()
    size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    if not 1 <= size <= world_size or world_size % size:
        raise ValueError(
            f"LOCAL_WORLD_SIZE is {size} and there are {world_size} processes: give every host the same --nproc-per-node"
        )
    return size


def _sharder() -> Any:
    return EmbeddingCollectionSharder()


class ShardedTables:
    """One table a node type, cut into ranges of rows, one for each process; row-wise Adagrad runs within the backward pass.

    A step is the same program on every process, each with its own batch::

        rows = {"user": int64 [n], "pin": int64 [m]}      this process's rows; a type may have none
        vectors = tables.gather(rows)                     rows travel to and from their owners
        loss(vectors).backward()                          gradients travel back; an owner sums a row's, then updates it once

    TorchRec divides gradients by the number of processes: a step follows the mean of their losses, as one process would that
    had all batches. The group's backend says what it runs on: gloo for CPUs, NCCL for GPUs.

    Args:
        num_rows: node type -> rows; a type may have none.
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
        self.num_rows = dict(num_rows)
        num_rows = {name: count for name, count in num_rows.items() if count}  # TorchRec knows no empty tables
        self.node_types = tuple(num_rows)
        self.dim = dim
        collection = EmbeddingCollection(
            tables=[
                EmbeddingConfig(name=name, embedding_dim=dim, num_embeddings=count, feature_names=[name])
                for name, count in num_rows.items()
            ],
            device=torch.device("meta"),
        )
        apply_optimizer_in_backward(RowWiseAdagrad, collection.parameters(), {"lr": lr, "eps": 1e-10})
        self._model = DistributedModelParallel(
            collection,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=self.device,
            plan=ShardingPlan(plan={"": plan_by_rows(collection, num_rows, self.device.type)}),
            sharders=[_sharder()],
        )
        self._optimizer: Any = self._model.fused_optimizer
        for number, name in enumerate(self.node_types):
            for first, rows in self.local_rows(name):
                fill_normal(rows, first, scale=init_scale, seed=(seed, number))

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

    def set_lr(self, lr: float) -> None:
        """Changes the learning rate of the steps whose rows are gathered from here on."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad()  # it hands the rate to FBGEMM's kernels, which take it as they gather

    def local_rows(self, node_type: str) -> Iterator[tuple[int, Tensor]]:
        """Yields the ranges of a table that this process owns: first row, and the living rows, float32 [n, D]."""
        if not self.num_rows[node_type]:
            return
        sharded = self._model.state_dict()[f"embeddings.{node_type}.weight"]
        for shard in sharded.local_shards():
            yield shard.metadata.shard_offsets[0], shard.tensor.detach()

    def local_squares(self, node_type: str) -> Iterator[tuple[int, Tensor]]:
        """Yields what row-wise Adagrad has accumulated for them: first row, and the living mean squares, float32 [n]."""
        if not self.num_rows[node_type]:
            return
        (sharded,) = self._optimizer.state_dict()["state"][f"embeddings.{node_type}.weight"].values()
        for shard in sharded.local_shards():
            yield shard.metadata.shard_offsets[0], shard.tensor.detach()

    def assemble_rows(self, folder: Path, *, finish: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """Brings whole tables together in files; all processes must call it, and each gets them.

        Args:
            folder: on a file system that all processes see; the files in it lose their names before this returns.
            finish: maps rows [n, D] to those to write, e.g. to length 1.

        Returns:
            node type -> float32 [N, D], mapped from its file: pages that the system may drop and read again.
        """
        return self._assemble(folder, self.dim, self.local_rows, finish)

    def assemble_squares(self, folder: Path) -> dict[str, Tensor]:
        """Likewise the accumulated mean squares, float32 [N]."""
        squares = self._assemble(folder, 1, self.local_squares, None)
        return {name: column.flatten() for name, column in squares.items()}

    def assemble(self, folder: Path) -> dict[str, Tensor]:
        """Brings all together by the names that a checkpoint has: `table/<node type>` and `adagrad/<node type>`."""
        tensors = {f"table/{name}": table for name, table in self.assemble_rows(folder).items()}
        return tensors | {f"adagrad/{name}": squares for name, squares in self.assemble_squares(folder).items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes to what `assemble` gave, among other tensors; each process takes its own rows."""
        for name in self.node_types:
            for first, rows in self.local_rows(name):
                rows.copy_(tensors[f"table/{name}"][first : first + len(rows)])
            for first, squares in self.local_squares(name):
                squares.copy_(tensors[f"adagrad/{name}"][first : first + len(squares)])

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
        path = Path(path)
        vectors = self.assemble_rows(path.absolute().parent, finish=finish)
        if dist.get_rank() == 0:
            tables = {name: SnapshotTable(ids=node_ids(name), vectors=table) for name, table in vectors.items()}
            Snapshot.write(path, facet=facet, tables=tables, **fields)
        dist.barrier()

    def _assemble(
        self,
        folder: Path,
        width: int,
        local: Callable[[str], Iterator[tuple[int, Tensor]]],
        finish: Callable[[Tensor], Tensor] | None,
    ) -> dict[str, Tensor]:
        def finished(name: str) -> Iterator[tuple[int, Tensor]]:
            for first, rows in local(name):
                yield first, finish(rows) if finish else rows

        return assemble(
            folder,
            {
                name: Pieces(shape=(count, width), dtype=torch.float32, held=finished(name))
                for name, count in self.num_rows.items()
            },
        )
