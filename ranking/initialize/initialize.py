"""Embedding tables' first values: random, or rows of snapshots by external id."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from multifacet.inputs import expect_type
from multifacet.ranking.initialize.coverage import InitReport
from multifacet.ranking.initialize.filler import TableFiller
from multifacet.ranking.initialize.sources import TableSource
from multifacet.ranking.initialize.torchrec_tables import choose_tables, find_tables
from multifacet.tables.filling import fill_normal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multifacet.ranking.model.layout import TableSpec

logger = getLogger(__name__)

_SPARSE_COVERAGE: Final = 0.5


def init_tables(model: nn.Module, sources: Mapping[str, TableSource]) -> InitReport:
    """Start tables from snapshots, by external id.

    Works on every TorchRec EmbeddingBagCollection and EmbeddingCollection inside the model, whole or sharded by
    DistributedModelParallel: once the tables have their memory, after `to_empty` and after DistributedModelParallel, which may
    draw them anew. `InitReport.check` finds out whether something did. Each process reads only what its own shards need, from
    the memory-mapped snapshot, straight into the shard: beside the shard it keeps 12 bytes a row and id. Vectors are cast to
    the table's type. Where a whole table's ids are remapped by TorchRec's MCHManagedCollisionModule, the remapping is
    written too.

    When the model is sharded, every rank must call this with the same sources: norms and means are over all shards.

    Args:
        model: The module that holds the tables, or its DistributedModelParallel.
        sources: Table name -> source. Where a name occurs twice in the model, a path such as "tower.ebc.t_user".

    Returns:
        One coverage a table, the same on each rank.

    Raises:
        KeyError: If the model has no such table, or a snapshot no such node type.
        ValueError: If a name is ambiguous, a table is on the meta device or of a collection that remaps its ids in a way that
            cannot be written (sharded managed collision, hashes, pruning), an id map has other rows than the table, a row lies
            outside it, no id of a snapshot has a row, dimensions differ without a projection, or a value is beyond the table's
            type. All of this but values is checked for all tables before the first is written.
        TypeError: If a table is not kept as FP32, FP16 or BF16.

    Example:
        >>> init_tables(dmp, {"t_pin": TableSource(snapshot=kge, node_type="pin", id_map=pins)})  # doctest: +SKIP
        InitReport(1 tables)
          table  snapshot      rows   filled          missing  collided  unused ids  norm before  after
          t_pin  kge 9d3a51c2  2,049  2,048 (100.0%)        1         0           0            1      1
    """
    expect_type("model", model, nn.Module)
    expect_type("sources", sources, Mapping)
    for name, source in sources.items():
        expect_type(f"sources[{name!r}]", source, TableSource)
    tables = choose_tables(find_tables(model), sources)
    fillers = [TableFiller(name, tables[name], source) for name, source in sources.items()]
    coverages, samples, remapped = [], {}, {}
    with torch.no_grad():
        for filler in fillers:
            coverages.append(filler.fill())
            samples[filler.name] = filler.samples()
            if (pairs := filler.remapped_samples()) is not None:
                remapped[filler.name] = pairs
            filler.forget()
            logger.info("%s", coverages[-1])
            if coverages[-1].share_filled < _SPARSE_COVERAGE:
                logger.warning(
                    "table %s: only %.1f%% of its rows came from the snapshot; were the id map and the snapshot made from "
                    "the same graph?",
                    filler.name,
                    100 * coverages[-1].share_filled,
                )
    return InitReport(coverages, samples, remapped)


def init_random(model: nn.Module, specs: Sequence[TableSpec], norm: float, seed: int) -> None:
    """Fill tables with normal noise, the same whole or sharded by rows.

    Args:
        model: Module that holds the tables, or its DistributedModelParallel.
        specs: The tables, which are overwritten.
        norm: Root mean square norm of a slot: of a row, or of the sum of an id's rows in a table of several hashes.
        seed: Seed of the noise.
    """
    tables = choose_tables(find_tables(model), [spec.name for spec in specs])
    for number, spec in enumerate(specs):
        scale = norm / (spec.dim * spec.num_hashes) ** 0.5
        for shard in tables[spec.name].shards:
            fill_normal(shard.weights, shard.row, scale=scale, seed=(seed, number))
