"""Fills the shards of one table from a snapshot."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.distributed as dist

from multifacet.ranking.initialize.coverage import TableCoverage
from multifacet.ranking.initialize.projection import Projection, make_projection
from multifacet.ranking.initialize.remapping import Remapping
from multifacet.ranking.initialize.row_numbers import positions_by_row, row_numbers
from multifacet.tables.filling import RowPlacement, RowSums, copy_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from multifacet.ranking.initialize.sources import TableSource
    from multifacet.ranking.initialize.torchrec_tables import EmbeddingTable, Shard

_BLOCK_ROWS: Final = 1 << 14
_NUM_SAMPLES: Final = 32
_TYPES: Final = (torch.float32, torch.float16, torch.bfloat16)


class TableFiller:
    """Fills the shards of one table that this process holds, and agrees with the other ranks on sums.

    Args:
        name: The table's name, for errors and the coverage.
        table: The table.
        source: Where its rows come from.

    Raises:
        KeyError: If the snapshot has no such node type.
        ValueError: If the id map or the vectors' dimension does not fit the table.
        TypeError: If the table is not kept as FP32, FP16 or BF16.
    """

    def __init__(self, name: str, table: EmbeddingTable, source: TableSource) -> None:
        self.name, self.table, self.source = name, table, source
        self.vectors = source.snapshot.vectors(source.node_type)
        trained = source.snapshot.trained(source.node_type)
        self.projection: Projection | None = make_projection(
            source.projection, self.vectors, table.dim, table=name, trained=trained
        )
        _check_table(name, table, source)
        # Before the first table is written, so that a wrong row leaves all tables as they are.
        self._placed: list[tuple[Shard, RowPlacement]] | None = None
        self._by_row: tuple[NDArray[np.int32], int] | None = None
        self._rows: NDArray[np.int32] | None = None
        self._remapping = Remapping(table.remapping, source, table=name) if table.remapping is not None else None
        if self._remapping is not None:
            self._rows = self._remapping.rows
        elif table.shards:
            self._by_row = positions_by_row(source, table.num_rows, table=name)
            self._rows = row_numbers(source, table.num_rows, table=name) if self._by_row is None else None
        for shard in table.shards:
            if shard.weights.dtype not in _TYPES:
                raise TypeError(f"table {name} is kept as {shard.weights.dtype}; expected one of {_TYPES}")

    def fill(self) -> TableCoverage:
        """Write the rows; called on every rank.

        Raises:
            ValueError: If no id of the snapshot is known to the id map, or a value is beyond the table's type.
        """
        source = self.source
        placed = self._place()
        # Of several rows that a model sums, each gets its share of an id's vector.
        num_hashes = source.id_map.num_hashes if source.id_map is not None and source.hash_pooling == "sum" else 1
        scale = 1.0 / num_hashes
        if source.norm is not None:
            measured = self._total([self._copy(shard, placement, 1.0, write=False) for shard, placement in placed])
            scale = source.norm / (num_hashes * self._norm(measured))
        sums = self._total([self._copy(shard, placement, scale, write=True) for shard, placement in placed])
        norm = self._norm(sums)
        for shard, placement in placed:
            self._fill_missing(shard, placement, sums.columns / max(1, sums.num_filled), norm)
            self._fill_padding(shard)
        if self._remapping is not None:
            self._remapping.write()
        return TableCoverage(
            table=self.name,
            facet=source.snapshot.facet,
            snapshot=source.snapshot.fingerprint,
            num_rows=self.table.num_rows,
            num_filled=sums.num_filled,
            num_missing=self.table.num_rows - sums.num_filled,
            num_collided=sums.num_collided,
            num_collided_ids=sums.num_collided_vectors,
            num_unused=self._num_unused(placed),
            num_untrained=source.snapshot.num_untrained(source.node_type),
            rows=source.placed_by,
            collisions=source.collisions,
            missing=source.missing,
            projection="none" if self.projection is None else self.projection.kind,
            energy=1.0 if self.projection is None else self.projection.energy,
            norm_before=(sums.squares_before / max(1, sums.num_vectors)) ** 0.5,
            norm_after=norm,
        )

    def forget(self) -> None:
        """Free what it has placed."""
        self._placed = self._by_row = self._rows = self._remapping = None

    def samples(self) -> list[tuple[int, int, Tensor]]:
        """Give some of the filled rows of this process, as they are now: row, first column, and values."""
        found: list[tuple[int, int, Tensor]] = []
        for shard, placement in self._place():
            chosen = placement.filled_rows(_NUM_SAMPLES).tolist()
            found += [(shard.row + row, shard.column, shard.weights[row].cpu().clone()) for row in chosen]
        return found

    def remapped_samples(self) -> tuple[Tensor, Tensor] | None:
        """Give some ids and the rows that they are remapped to; None for a table that looks ids up as they are."""
        return None if self._remapping is None else self._remapping.samples()

    def _place(self) -> list[tuple[Shard, RowPlacement]]:
        if self._placed is None:
            self._placed = [(shard, self._place_in(shard)) for shard in self.table.shards]
        return self._placed

    def _place_in(self, shard: Shard) -> RowPlacement:
        if self._by_row is not None:
            positions, num_unused = self._by_row
            own = positions[shard.row : shard.row + len(shard.weights)]
            return RowPlacement.one_each(own, first=shard.row, num_positions=len(self.vectors), num_unused=num_unused)
        if self._rows is None:
            return RowPlacement.in_order(len(self.vectors), first=shard.row, num_rows=len(shard.weights))
        return RowPlacement.by_rows(self._rows, first=shard.row, num_rows=len(shard.weights))

    def _copy(self, shard: Shard, placement: RowPlacement, scale: float, *, write: bool) -> RowSums:
        """Copy one shard; the counts of a table that is divided by columns come from its first columns' shard."""
        weights, source = shard.weights, self.source
        rules: dict[str, Any] = {"collisions": source.collisions, "weights": source.weights}
        if self.projection is None and weights.device.type == "cpu" and weights.is_contiguous():
            width = weights.shape[1]
            target = weights if write else None
            sums = copy_rows(self.vectors, target, placement, scale=scale, column=shard.column, num_columns=width, **rules)
        else:
            sums = self._copy_blocks(shard, placement, scale, write=write, rules=rules)
        columns = np.zeros(self.table.dim)
        columns[shard.column : shard.column + weights.shape[1]] = sums.columns
        counted = shard.column == 0
        # Of a projected vector's norm before, no part belongs to one shard's columns.
        before = sums.squares_before if counted or self.projection is None else 0.0
        counts = (sums.num_filled, sums.num_vectors, sums.num_collided, sums.num_collided_vectors) if counted else (0,) * 4
        return RowSums.of((*counts, before, sums.squares_after), columns)

    def _copy_blocks(
        self, shard: Shard, placement: RowPlacement, scale: float, *, write: bool, rules: dict[str, Any]
    ) -> RowSums:
        """Copy through a buffer of FP32 rows: for projections, other devices and strided shards."""
        sums = RowSums.zero(shard.weights.shape[1])
        used = slice(shard.column, shard.column + shard.weights.shape[1])
        empty = torch.zeros(placement.num_rows, dtype=torch.bool)
        empty[torch.from_numpy(placement.empty_rows)] = True
        for start in range(0, placement.num_rows, _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, placement.num_rows)
            filled = torch.nonzero(~empty[start:stop])[:, 0]
            buffer = torch.zeros((stop - start, self.vectors.shape[1]))
            part = copy_rows(self.vectors, buffer, placement, rows=(start, stop), **rules)
            rows = buffer[filled] * scale
            rows = rows[:, used] if self.projection is None else rows @ self.projection.matrix[:, used]
            limit = torch.finfo(shard.weights.dtype).max
            if not bool((rows.abs() <= limit).all()):
                raise ValueError(f"table {self.name}: rows {start} to {stop - 1} of a shard get a value beyond {limit:g}")
            if write:
                shard.weights[(filled + start).to(shard.weights.device)] = rows.to(shard.weights)
            after = rows.double()
            sums += replace(part, squares_after=float(after.square().sum()), columns=after.sum(0).numpy())
        return sums

    def _fill_missing(self, shard: Shard, placement: RowPlacement, mean: NDArray[np.float64], norm: float) -> None:
        if self.source.missing == "keep":
            return
        rows = torch.from_numpy(placement.empty_rows)
        weights = shard.weights
        columns = slice(shard.column, shard.column + weights.shape[1])
        if self.source.missing == "normal":
            self._fill_noise(weights, rows, shard.row, columns, norm)
            return
        value = torch.zeros(weights.shape[1]) if self.source.missing == "zero" else torch.from_numpy(mean[columns])
        weights[rows.to(weights.device)] = value.to(weights)

    def _fill_padding(self, shard: Shard) -> None:
        row = self.source.padding_row
        if row is not None and shard.row <= row < shard.row + len(shard.weights):
            shard.weights[row - shard.row] = 0.0

    def _fill_noise(self, weights: Tensor, rows: Tensor, first: int, columns: slice, norm: float) -> None:
        """Draw noise by blocks of the table's rows, so that a row's noise does not depend on the sharding."""
        blocks = (rows + first) // _BLOCK_ROWS
        for block in torch.unique(blocks).tolist():
            chosen = rows[blocks == block]
            # A Philox key of seed and block: another block, another stream.
            noise = np.random.Generator(np.random.Philox(key=[self.source.seed, block])).standard_normal(
                (_BLOCK_ROWS, self.table.dim), dtype=np.float32
            )
            drawn = torch.from_numpy(noise)[chosen + first - block * _BLOCK_ROWS, columns] * (norm / self.table.dim**0.5)
            limit = torch.finfo(weights.dtype).max
            if not bool((drawn.abs() <= limit).all()):
                raise ValueError(f"table {self.name}: noise as long as its filled rows ({norm:g}) has values beyond {limit:g}")
            weights[chosen.to(weights.device)] = drawn.to(weights)

    def _norm(self, sums: RowSums) -> float:
        if sums.num_filled == 0:
            raise ValueError(
                f"table {self.name}: none of the snapshot's {len(self.vectors)} trained ids has a row, by "
                f"{self.source.placed_by}; "
                "were the rows and the snapshot made from the same ids?"
            )
        norm = float((sums.squares_after / sums.num_filled) ** 0.5)
        if norm == 0:
            raise ValueError(f"table {self.name}: all of the snapshot's vectors are zero; pretrain again")
        return norm

    def _num_unused(self, placed: list[tuple[Shard, RowPlacement]]) -> int:
        """Count on one shard's placement, which has seen all ids, and tell the ranks that have none."""
        largest = max((placement.num_unused for _, placement in placed), default=0)
        if self.table.process_group is None:
            return largest
        counted = torch.tensor(largest, device=self._device())
        dist.all_reduce(counted, op=dist.ReduceOp.MAX, group=self.table.process_group)
        return int(counted)

    def _total(self, parts: list[RowSums]) -> RowSums:
        """Add the sums of this process's shards, and those of all ranks."""
        local = sum(parts, RowSums.zero(self.table.dim))
        if self.table.process_group is None:
            return local
        counts = torch.tensor(
            [local.num_filled, local.num_vectors, local.num_collided, local.num_collided_vectors], device=self._device()
        )
        values = torch.tensor(
            [local.squares_before, local.squares_after, *local.columns], dtype=torch.float64, device=self._device()
        )
        for summed in (counts, values):
            dist.all_reduce(summed, group=self.table.process_group)
        before, after, *columns = values.tolist()
        return RowSums.of((*counts.tolist(), before, after), np.array(columns))

    def _device(self) -> torch.device:
        """Where this group's collectives take their tensors."""
        gloo = dist.get_backend(self.table.process_group) == "gloo"
        return torch.device("cpu") if gloo else torch.device("cuda", torch.cuda.current_device())


def _check_table(name: str, table: EmbeddingTable, source: TableSource) -> None:
    """Refuse what would be filled and not be read."""
    if source.id_map is not None and source.id_map.num_rows != table.num_rows:
        raise ValueError(
            f"table {name} has {table.num_rows} rows, its id map {source.id_map.num_rows} (an exact map has one more than "
            "ids, "
            "for ids that it does not know); give the id map that the model looks its ids up with, or rows=... for a model "
            "without such a row"
        )
    if source.padding_row is not None and not 0 <= source.padding_row < table.num_rows:
        raise ValueError(f"table {name} has {table.num_rows} rows, and padding_row is {source.padding_row}")
    if table.remapped_by is not None and table.remapping is None:
        raise ValueError(
            f"table {name} is of {table.remapped_by}, which gives ids their rows as they arrive: rows that are filled now "
            "would be read by other ids. Fill a whole collection with MCHManagedCollisionModule, or one without remapping, by "
            "the id map that its ids are looked up with"
        )
    if source.placed_by == "managed" and table.remapping is None:
        raise ValueError(
            f'table {name} looks its ids up as they are: rows="managed" is for ManagedCollisionEmbeddingBagCollection and '
            "ManagedCollisionEmbeddingCollection; give the id map that the model looks its ids up with"
        )
    for shard in table.shards:
        if shard.weights.device.type == "meta":
            raise ValueError(
                f"table {name} is on the meta device, which keeps no values: give it memory first "
                "(module.to_empty(device=...) or "
                "DistributedModelParallel), then fill it"
            )
