"""How much of a model's tables came from snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, overload

import torch

from multifacet.ranking.initialize.remapping import look_up
from multifacet.ranking.initialize.torchrec_tables import choose_tables, find_tables

if TYPE_CHECKING:
    from torch import Tensor, nn

    from multifacet.ranking.initialize.torchrec_tables import EmbeddingTable


@dataclass(frozen=True, kw_only=True)
class TableCoverage:
    """How much of a table came from a snapshot; of a sharded table, all ranks' shards together.

    Attributes:
        table: The table's name.
        facet: The snapshot's facet.
        snapshot: The snapshot's fingerprint.
        num_rows: Rows of the table, an out-of-vocabulary row included.
        num_filled: Rows that an id of the snapshot filled.
        num_missing: Rows that no id of the snapshot filled, the out-of-vocabulary row among them.
        num_collided: Filled rows that more than one id of the snapshot belongs to.
        num_collided_ids: Ids of the snapshot that share their row with another.
        num_unused: Ids of the snapshot that the table has no row for.
        num_untrained: Ids of the snapshot whose vectors no gradient has reached, and that were left out.
        rows: What said which row an id has: "exact id map", "hashed id map", "mapping", "array", "function", "id" or
            "position".
        collisions: How ids that share a row were combined.
        missing: What the missing rows got.
        projection: "none", "pca" or "matrix": how the snapshot's vectors came to the table's dimension.
        energy: Share of the vectors' sum of squares that a PCA kept; 1 without one.
        norm_before: Root mean square norm of the vectors used, as they are in the snapshot.
        norm_after: Root mean square norm of the filled rows.
    """

    table: str
    facet: str
    snapshot: str
    num_rows: int
    num_filled: int
    num_missing: int
    num_collided: int
    num_collided_ids: int
    num_unused: int
    collisions: str
    missing: str
    projection: str
    energy: float
    norm_before: float
    norm_after: float
    num_untrained: int = 0
    rows: str = ""

    @property
    def share_filled(self) -> float:
        """Filled rows of all rows."""
        return self.num_filled / max(1, self.num_rows)

    def to_dict(self) -> dict[str, str | int | float]:
        """Return the fields, JSON-able."""
        return asdict(self)


class InitReport(Sequence[TableCoverage]):
    """What `init_tables` did, one `TableCoverage` a table; prints as a table.

    Args:
        tables: The tables, in the order in which they were named.
        samples: Table -> some of its filled rows in this process: row, first column, and values; for `check`.
        remapped: Table whose ids are remapped -> some ids and their rows; for `check`.
    """

    def __init__(
        self,
        tables: Sequence[TableCoverage],
        samples: Mapping[str, Sequence[tuple[int, int, Tensor]]] | None = None,
        remapped: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self._tables = tuple(tables)
        self._samples, self._remapped = dict(samples or {}), dict(remapped or {})

    def check(self, model: nn.Module) -> None:
        """Make sure that the tables still hold the rows that they were filled with, before they are trained.

        Whatever is done to a model after `init_tables` may draw its tables anew: `to_empty`, `reset_parameters`, or a wrapper
        that initialises what it wraps. Call it once all of that is done.

        Args:
            model: The model as it will be trained, such as its DistributedModelParallel.

        Raises:
            ValueError: If a sampled row of a table is another one than it was filled with, or its id has another row.
            KeyError: If the model has no such table.
        """
        for name, table in choose_tables(find_tables(model), self._samples).items():
            self._check_remapping(name, table)
            for row, column, values in self._samples[name]:
                for shard in table.shards:
                    first = max(column, shard.column)
                    last = min(column + len(values), shard.column + shard.weights.shape[1])
                    if shard.weights.device.type == "meta":
                        raise ValueError(f"table {name} is on the meta device: what it was filled with is lost; fill it again")
                    if not shard.row <= row < shard.row + len(shard.weights) or first >= last:
                        continue
                    now = shard.weights[row - shard.row, first - shard.column : last - shard.column].detach().cpu()
                    if not torch.equal(now.float(), values[first - column : last - column].to(now.dtype).float()):
                        raise ValueError(
                            f"table {name}: row {row} is not what it was filled with. The model's tables were drawn anew, or "
                            "trained, "
                            "after init_tables: call init_tables after to_empty and after DistributedModelParallel"
                        )

    def _check_remapping(self, name: str, table: EmbeddingTable) -> None:
        if name not in self._remapped:
            return
        ids, rows = self._remapped[name]
        if table.remapping is None or not torch.equal(look_up(table.remapping, ids), rows):
            raise ValueError(
                f"table {name}: its ids are not remapped to the rows that were filled for them. The remapping was made anew, "
                "or trained, after init_tables; a sharded managed collision cannot be filled"
            )

    @overload
    def __getitem__(self, key: int | str) -> TableCoverage: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[TableCoverage]: ...
    def __getitem__(self, key: int | str | slice) -> TableCoverage | Sequence[TableCoverage]:
        """Return a table's coverage by position or by name.

        Raises:
            KeyError: If there is no table of that name.
        """
        if not isinstance(key, str):
            return self._tables[key]
        for coverage in self._tables:
            if coverage.table == key:
                return coverage
        raise KeyError(f"no table {key!r} was initialised; there are {[coverage.table for coverage in self._tables]}")

    def __len__(self) -> int:
        return len(self._tables)

    def __iter__(self) -> Iterator[TableCoverage]:
        return iter(self._tables)

    def __repr__(self) -> str:
        header = ("table", "snapshot", "rows", "filled", "missing", "collided", "unused ids", "norm before", "after")
        lines = [
            (
                row.table,
                f"{row.facet} {row.snapshot[:8]}",
                f"{row.num_rows:,}",
                f"{row.num_filled:,} ({row.share_filled:.1%})",
                f"{row.num_missing:,}",
                f"{row.num_collided:,}",
                f"{row.num_unused:,}",
                f"{row.norm_before:.4g}",
                f"{row.norm_after:.4g}",
            )
            for row in self._tables
        ]
        widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
        printed = [
            "  ".join(
                cell.ljust(width) if index < 2 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in (header, *lines)
        ]
        return "\n".join([f"InitReport({len(self._tables)} tables)", *(f"  {line}" for line in printed)])

    def to_dict(self) -> dict[str, Any]:
        """Return {"tables": [a mapping a table]}, JSON-able."""
        return {"tables": [coverage.to_dict() for coverage in self._tables]}
