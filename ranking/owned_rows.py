"""The rows of a ranker's sharded tables that one rank owns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ranking.optimizers import row_rates
from ranking.shards import find_tables
from tables.assembly import Pieces, assemble

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from ranking.layout import RowLayout, TableSpec
    from ranking.shards import Shard


class OwnedRows:
    """A range of rows of each table, with what row-wise Adagrad has accumulated for them.

    Args:
        model: The DistributedModelParallel of a `RankingModel` whose tables are divided by rows.
        layout: That model's layout.

    Attributes:
        shards: Table -> this rank's range of rows; none, for a ranker without ids.
    """

    def __init__(self, model: Any, layout: RowLayout) -> None:
        self._model, self._layout = model, layout
        self.shards: dict[str, Shard] = {table.name: table.shards[0] for table in find_tables(model)}
        self._rates: dict[str, Tensor] = {}

    @property
    def specs(self) -> tuple[TableSpec, ...]:
        """The tables."""
        return self._layout.specs

    def weights(self) -> dict[str, Tensor]:
        """Give each table's living rows, [n, D]."""
        return {name: shard.weights for name, shard in self.shards.items()}

    def squares(self) -> dict[str, Tensor]:
        """Give each table's accumulated mean squares, float32 [n]: the living values."""
        state = self._model.fused_optimizer.state_dict()["state"] if self.shards else {}
        squares = {}
        for name in self.shards:
            (sharded,) = state[f"tables.embeddings.{name}.weight"].values()
            (part,) = sharded.local_shards()
            squares[name] = part.tensor.detach().flatten()
        return squares

    def own(self, table: str, whole: Tensor) -> Tensor:
        """Give this rank's range of something that is there for each row of a table."""
        shard = self.shards[table]
        return whole[shard.row : shard.row + len(shard.weights)]

    def assemble(self, folder: Path, parts: Mapping[str, Mapping[str, Tensor]], dtype: torch.dtype | None = None) -> Any:
        """Bring tables, or what goes with their rows, together in files; every rank must call it.

        Args:
            folder: On a file system that all ranks see.
            parts: Kind -> table -> this rank's rows.
            dtype: Of the whole; None: as the rows.

        Returns:
            Kind -> table -> all rows, mapped from a file.
        """
        num_rows = {spec.name: spec.num_rows for spec in self.specs}
        pieces = {
            f"{kind}.{name}": Pieces(
                shape=(num_rows[name], *rows.shape[1:]), dtype=dtype or rows.dtype, held=[(self.shards[name].row, rows)]
            )
            for kind, tables in parts.items()
            for name, rows in tables.items()
        }
        whole = assemble(folder, pieces) if pieces else {}
        return {kind: {name: whole[f"{kind}.{name}"] for name in tables} for kind, tables in parts.items()}

    def count(self, rows: Tensor, power: float) -> None:
        """Set each row's share of its table's rate by how often it occurs in all training examples, int32 [n, columns]."""
        for group in self._layout.groups if power else ():
            rates = row_rates(rows[:, group.columns], group.specs[0].num_rows, power)
            for spec in group.specs:
                own = self.own(spec.name, rates)[:, None]
                self._rates[spec.name] = own.to(self.shards[spec.name].weights, copy=True)

    def touched(self, rows: Tensor) -> dict[str, Tensor]:
        """Find the rows that any rank's examples of a step read, where rates depend on rows.

        Args:
            rows: int32 [B, columns] of the whole step.

        Returns:
            Table -> int64 [n], counted from this rank's first row; empty where all rows learn at their table's rate.
        """
        touched = {}
        for group in self._layout.groups if self._rates else ():
            distinct = torch.unique(rows[:, group.columns])
            for spec in group.specs:
                shard = self.shards[spec.name]
                found = distinct[(distinct >= shard.row) & (distinct < shard.row + len(shard.weights))]
                touched[spec.name] = (found - shard.row).long().to(shard.weights.device)
        return touched

    def slow_down(self, touched: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
        """Take rows back from where a step has brought them, by their shares of the rate.

        Args:
            touched: What `touched` gave.
            before: Table -> these rows before the step.
        """
        for name, old in before.items():
            weights, rows = self.shards[name].weights, touched[name]
            weights[rows] = torch.lerp(old, weights[rows], self._rates[name][rows])
