"""The embedding tables inside any module: TorchRec's collections, whole or sharded by DistributedModelParallel."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

with warnings.catch_warnings():
    # fbgemm_gpu's CPU build warns about kernels that only its CUDA build has.
    warnings.simplefilter("ignore", DeprecationWarning)
    from torchrec import EmbeddingBagCollection, EmbeddingCollection
    from torchrec.distributed.embedding import ShardedEmbeddingCollection
    from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
    from torchrec.distributed.itep_embeddingbag import ShardedITEPEmbeddingBagCollection, ShardedITEPEmbeddingCollection
    from torchrec.distributed.mc_embedding_modules import BaseShardedManagedCollisionEmbeddingCollection
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.modules.itep_embedding_modules import ITEPEmbeddingBagCollection, ITEPEmbeddingCollection
    from torchrec.modules.mc_embedding_modules import BaseManagedCollisionEmbeddingCollection
    from torchrec.modules.mc_modules import MCHManagedCollisionModule

if TYPE_CHECKING:
    from collections.abc import Iterable

_COLLECTIONS: Final = (
    EmbeddingBagCollection,
    EmbeddingCollection,
    FusedEmbeddingBagCollection,
    ShardedEmbeddingBagCollection,
    ShardedEmbeddingCollection,
)
# Modules that look other rows up than those they are asked for.
_REMAPPERS: Final = (
    BaseManagedCollisionEmbeddingCollection,
    BaseShardedManagedCollisionEmbeddingCollection,
    ITEPEmbeddingBagCollection,
    ITEPEmbeddingCollection,
    ShardedITEPEmbeddingBagCollection,
    ShardedITEPEmbeddingCollection,
)
_WEIGHT: Final = re.compile(r"(?:embedding_bags|embeddings)\.(?P<table>.+)\.weight")
# What wrappers put into a module's path, which no one who built the model has written.
_WRAPPERS: Final = re.compile(r"\b_dmp_wrapped_module\.(?:module\.)?")


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """A part of a table that this process holds.

    Attributes:
        weights: [rows, columns]; writing to it changes the model.
        row: First row in the table.
        column: First column in the table.
    """

    weights: Tensor
    row: int
    column: int


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingTable:
    """A table of a collection, as this process sees it.

    Attributes:
        name: The table's name in its collection's configuration.
        path: Where it is in the module, e.g. "sparse.ebc.t_user", without DistributedModelParallel's wrappers.
        num_rows: Rows of the whole table.
        dim: Columns of the whole table.
        shards: This process's parts; none, if other ranks hold them all.
        process_group: The ranks among which the table is divided; None: it is whole here.
        remapped_by: Class of the module around it that gives ids their rows as they arrive; None: ids are looked up as they
            are.
        remapping: What keeps the rows of ids there, where it can be written; None otherwise.
    """

    name: str
    path: str
    num_rows: int
    dim: int
    shards: tuple[Shard, ...]
    process_group: Any
    remapped_by: str | None = None
    remapping: MCHManagedCollisionModule | None = None

    def __repr__(self) -> str:
        parts = ", ".join(f"rows {shard.row} to {shard.row + len(shard.weights) - 1}" for shard in self.shards)
        return f"{type(self).__name__}({self.path}, [{self.num_rows}, {self.dim}], here: {parts or 'nothing'})"


def find_tables(module: nn.Module) -> list[EmbeddingTable]:
    """Finds the tables of all EmbeddingBagCollections and EmbeddingCollections in a module, sharded or not.

    Args:
        module: Any module; a DistributedModelParallel's tables are those of the module that it wraps.

    Returns:
        The tables in the order of the module's own; the same on each rank.

    Raises:
        TypeError: A sharded table is kept in a form that is not known here (DTensor).
    """
    remappers = {path: part for path, part in module.named_modules() if isinstance(part, _REMAPPERS)}
    return [
        _note_remapping(
            _describe(weights, match["table"], _WRAPPERS.sub("", f"{path}.") + match["table"]),
            next((part for above, part in remappers.items() if f"{path}.".startswith(f"{above}." if above else "")), None),
        )
        for path, collection in module.named_modules()
        if isinstance(collection, _COLLECTIONS)
        for key, weights in collection.state_dict().items()
        if (match := _WEIGHT.fullmatch(key))
    ]


def choose_tables(tables: Iterable[EmbeddingTable], wanted: Iterable[str]) -> dict[str, EmbeddingTable]:
    """Finds tables by name, or by the end of their path where a name occurs twice.

    Args:
        tables: What there is.
        wanted: Names ("t_user") or ends of paths ("ebc.t_user").

    Raises:
        KeyError: A name fits no table.
        ValueError: It fits several, or two names fit one table.
    """
    known = list(tables)
    found: dict[str, EmbeddingTable] = {}
    for name in wanted:
        fitting = [table for table in known if name in (table.name, table.path) or table.path.endswith(f".{name}")]
        if not fitting:
            there = [table.path for table in known]
            raise KeyError(f"the model has no table {name!r}; there are {there or 'none: it holds no TorchRec collection'}")
        if len(fitting) > 1:
            raise ValueError(f"table {name!r} is one of {[table.path for table in fitting]}; name it by its path")
        if fitting[0] in found.values():
            raise ValueError(f"table {fitting[0].path} is named twice")
        found[name] = fitting[0]
    return found


def _note_remapping(table: EmbeddingTable, remapper: nn.Module | None) -> EmbeddingTable:
    """Note what gives a table's ids their rows, and how that can be written: whole, and by TorchRec's sorted ids."""
    if remapper is None:
        return table
    module = None
    if isinstance(remapper, BaseManagedCollisionEmbeddingCollection):
        module = remapper._managed_collision_collection._managed_collision_modules[table.name]
    return replace(
        table,
        remapped_by=type(remapper).__name__ if module is None else f"{type(remapper).__name__} with {type(module).__name__}",
        remapping=module if type(module) is MCHManagedCollisionModule else None,
    )


def _describe(weights: Any, name: str, path: str) -> EmbeddingTable:
    if isinstance(weights, ShardedTensor):
        num_rows, dim = weights.size()
        shards = tuple(
            Shard(weights=part.tensor.detach(), row=part.metadata.shard_offsets[0], column=part.metadata.shard_offsets[1])
            for part in weights.local_shards()
        )
        group = weights._process_group
        return EmbeddingTable(name=name, path=path, num_rows=num_rows, dim=dim, shards=shards, process_group=group)
    if type(weights) not in (Tensor, nn.Parameter):
        raise TypeError(
            f"table {path} is kept as {type(weights).__name__}; known are plain tensors and ShardedTensor. Shard the model "
            "without DTensor output (the default)."
        )
    num_rows, dim = weights.shape
    shards = (Shard(weights=weights.detach(), row=0, column=0),)
    return EmbeddingTable(name=name, path=path, num_rows=num_rows, dim=dim, shards=shards, process_group=None)
