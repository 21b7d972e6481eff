"""The rows of a ranker's sharded tables that one rank owns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch

from multifacet.ranking.optimizers import row_rates, table_rate
from multifacet.ranking.shards import find_tables
from multifacet.tables.assembly import Pieces, assemble
from multifacet.tables.rounded import write_rounded

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from multifacet.ranking.config import RankingConfig
    from multifacet.ranking.layout import RowLayout, TableSpec
    from multifacet.ranking.shards import Shard

# What an enlarged step may reach: half of FP16's range.
_STEP_LIMIT: Final = 2.0**15


class OwnedRows:
    """A range of rows of each table, with what row-wise Adagrad has accumulated for them.

    Args:
        model: The DistributedModelParallel of a `RankingModel` whose tables are divided by rows.
        layout: That model's layout.
        config: Rates, and the tables' type.

    Attributes:
        shards: Table -> this rank's range of rows; none, for a ranker without ids.
        rounds: Whether rows are in half precision and this class rounds them: on CPUs, where FBGEMM rounds to nearest.

    Raises:
        ValueError: If half-precision tables on GPUs are to learn at rates of each row.
    """

    def __init__(self, model: Any, layout: RowLayout, config: RankingConfig) -> None:
        self._model, self._layout = model, layout
        self.shards: dict[str, Shard] = {table.name: table.shards[0] for table in find_tables(model)}
        self._rates: dict[str, Tensor] = {}
        devices = {shard.weights.device.type for shard in self.shards.values()}
        self.rounds = rounds_steps(config, *devices)
        if config.table_dtype != "fp32" and config.row_lr_power and not self.rounds:
            raise ValueError(
                f"table_dtype={config.table_dtype!r} with row_lr_power={config.row_lr_power:g} is for tables on CPUs; on GPUs "
                "FBGEMM rounds a row's whole step, of which a share would be rounded again. Leave one of them out"
            )
        self._scales = {spec.name: step_scale(spec, config) for spec in layout.specs}

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

    def assemble(self, folder: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> Any:
        """Bring tables, or what goes with their rows, together in files; every rank must call it.

        Args:
            folder: On a file system that all ranks see.
            parts: Kind -> table -> this rank's rows.

        Returns:
            Kind -> table -> all rows, mapped from a file.
        """
        num_rows = {spec.name: spec.num_rows for spec in self.specs}
        pieces = {
            f"{kind}.{name}": Pieces(
                shape=(num_rows[name], *rows.shape[1:]), dtype=rows.dtype, held=[(self.shards[name].row, rows)]
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
                self._rates[spec.name] = own.to(self.shards[spec.name].weights.device, copy=True)

    def touched(self, rows: Tensor) -> dict[str, Tensor]:
        """Find the rows that any rank's examples of a step read, where `lift` and `settle` have to do with them.

        Args:
            rows: int32 [B, columns] of the whole step.

        Returns:
            Table -> int64 [n], counted from this rank's first row; empty for FP32 rows that all learn at their table's rate.
        """
        touched = {}
        for group in self._layout.groups if self._rates or self.rounds else ():
            distinct = torch.unique(rows[:, group.columns])
            for spec in group.specs:
                shard = self.shards[spec.name]
                found = distinct[(distinct >= shard.row) & (distinct < shard.row + len(shard.weights))]
                touched[spec.name] = (found - shard.row).long().to(shard.weights.device)
        return touched

    def lift(self, touched: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take rows up before a step's backward pass changes them; the forward pass has read them.

        Rows that are to be rounded leave zeros, so that FBGEMM's fused optimiser, which rounds to nearest here, writes the step
        alone into them: enlarged by a power of two (`step_scale`), with the 11 digits of FP16.

        Args:
            touched: What `touched` gave.

        Returns:
            Table -> float32 [n, D].
        """
        lifted = {}
        for name, rows in touched.items():
            # `data`: autograd must not take this for a change of what the forward pass has saved.
            weights = self.shards[name].weights.data
            lifted[name] = weights[rows].float()
            if self.rounds:
                weights[rows] = 0.0
        return lifted

    def settle(self, touched: Mapping[str, Tensor], lifted: Mapping[str, Tensor], seeds: Mapping[str, int]) -> None:
        """Bring rows to where their shares of the rate lead them, after a step.

        Args:
            touched: What `touched` gave.
            lifted: What `lift` gave; none, if the step was not the tables'.
            seeds: What `rounding_seeds` gave.
        """
        for name, old in lifted.items():
            shard, rows = self.shards[name], touched[name]
            share = self._rates[name][rows] if self._rates else torch.ones(1, device=old.device)
            if self.rounds:
                stepped = torch.addcmul(old, shard.weights[rows].float(), share, value=1 / self._scales[name])
                write_rounded(shard.weights, rows, stepped, seed=seeds[name], first=shard.row)
            else:
                shard.weights[rows] = torch.lerp(old, shard.weights[rows], share)


def rounds_steps(config: RankingConfig, *devices: str) -> bool:
    """Tell whether steps of tables on these devices are rounded by `OwnedRows`, not by FBGEMM."""
    return config.table_dtype != "fp32" and set(devices) == {"cpu"}


def step_scale(spec: TableSpec, config: RankingConfig) -> float:
    """Give the power of two by which a step that FBGEMM writes as FP16 is enlarged, so that small ones are not lost.

    Row-wise Adagrad's step is lr g / sqrt(s), where s holds mean(g ** 2) at least: no element exceeds lr sqrt(D).
    """
    longest = table_rate(spec, config) * spec.dim**0.5
    return 2.0 ** math.floor(math.log2(_STEP_LIMIT / longest)) if longest > 0 else 1.0
