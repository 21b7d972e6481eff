"""A ranker's two optimisers: AdamW on the upper model, row-wise Adagrad on the table rows that a step touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from multifacet.tables import RowwiseAdagrad, accumulate_rows
from multifacet.tables.rounded import step_rounded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from multifacet.ranking.config import RankingConfig
    from multifacet.ranking.layout import TableSpec
    from multifacet.ranking.model import RankingModel

ADAMW: Final = "adamw"
ADAGRAD: Final = "adagrad"


class Optimizers:
    """The optimisers of one training run.

    Args:
        model: The model that they change.
        config: Rates.
    """

    def __init__(self, model: RankingModel, config: RankingConfig) -> None:
        self.model, self.config = model, config
        dense = [*model.upper.parameters(), *(model.pooling.parameters() if model.pooling is not None else ())]
        self.upper = torch.optim.AdamW(dense, lr=config.upper_lr, weight_decay=config.weight_decay)
        self.tables: dict[str, RowwiseAdagrad] = {}
        self._row_rates: dict[str, Tensor] = {}
        self.forget_rows()

    def count_rows(self, rows: Tensor) -> None:
        """Set each row's share of its table's rate by how often it occurs; does nothing without `row_lr_power`.

        Args:
            rows: int32 [n, columns] of all training examples.
        """
        power = self.config.row_lr_power
        for group in self.model.layout.groups if power else ():
            self._row_rates[group.feature] = row_rates(rows[:, group.columns], group.specs[0].num_rows, power)

    def forget_rows(self) -> None:
        """Start the tables' optimisers anew."""
        self.tables = {spec.name: RowwiseAdagrad(spec.num_rows, table_rate(spec, self.config)) for spec in self.model.specs}

    def step_upper(self) -> None:
        """Update all that is not a table."""
        self.upper.step()

    def step_tables(self, rows: Tensor, gradients: Mapping[str, Tensor], number: int) -> None:
        """Update the touched rows of all tables.

        Args:
            rows: int32 [B, columns] of the batch.
            gradients: Of what `RankingModel.gather` gave; none, and nothing is updated, while the tables are frozen.
            number: The step's, another one at each, which half-precision rows are rounded by.
        """
        seeds = rounding_seeds(self.model.specs, self.config, number) if gradients else {}
        for group in self.model.layout.groups if gradients else ():
            indices, gradient_of = rows[:, group.columns], gradients[group.feature]
            shares_of = group.shares(indices)
            if shares_of is not None:
                there = indices >= 0
                indices, gradient_of = indices[there], (gradient_of * shares_of[:, :, None, None])[there]
            indices = indices.reshape(-1).contiguous()
            touched, sums = accumulate_rows(indices, gradient_of.reshape(len(indices), len(group.specs) * group.specs[0].dim))
            rates = self._row_rates.get(group.feature)
            for spec, gradient in zip(group.specs, sums.chunk(len(group.specs), dim=1), strict=True):
                table, optimizer = self.model.table(spec.name), self.tables[spec.name]
                shares = None if rates is None else rates[touched]
                if spec.name in seeds:
                    state, seed = optimizer.state, seeds[spec.name]
                    step_rounded(table, state, touched, gradient.contiguous(), lr=optimizer.lr, seed=seed, shares=shares)
                    continue
                before = None if shares is None else table[touched]
                optimizer.step(table, touched, gradient.contiguous())
                if shares is not None and before is not None:
                    table[touched] = torch.lerp(before, table[touched], shares[:, None])

    def to_tensors(self) -> dict[str, Tensor]:
        """Give all state as named tensors, which may be the living ones."""
        return {f"{ADAGRAD}.{name}": optimizer.state for name, optimizer in self.tables.items()} | adamw_tensors(self.upper)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `to_tensors` gave, among other tensors."""
        for name, optimizer in self.tables.items():
            optimizer.state.copy_(tensors[f"{ADAGRAD}.{name}"])
        restore_adamw(self.upper, tensors)


def adamw_tensors(optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Give an AdamW's state as named tensors, which may be the living ones."""
    return {
        f"{ADAMW}.{position}.{name}": value.cpu()
        for position, fields in optimizer.state_dict()["state"].items()
        for name, value in fields.items()
    }


def restore_adamw(optimizer: torch.optim.AdamW, tensors: Mapping[str, Tensor]) -> None:
    """Take over what `adamw_tensors` gave, among other tensors."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == ADAMW:
            position, _, entry = rest.partition(".")
            state.setdefault(int(position), {})[entry] = value.clone()
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def table_rate(spec: TableSpec, config: RankingConfig) -> float:
    """Give the learning rate of a table."""
    return config.facet_lrs.get(spec.facet, config.table_lr)


def rounding_seeds(specs: Sequence[TableSpec], config: RankingConfig, number: int) -> dict[str, int]:
    """Give what each table's rows are rounded by in a step, the same in every process.

    Args:
        specs: The tables.
        config: The seed, and the tables' type.
        number: The step's.

    Returns:
        Table -> seed; empty for tables in FP32, which are not rounded.
    """
    if config.table_dtype == "fp32":
        return {}
    drawn = np.random.SeedSequence((config.seed, number)).generate_state(len(specs), np.uint64)
    return {spec.name: int(seed) for spec, seed in zip(specs, drawn, strict=True)}


def row_rates(rows: Tensor, num_rows: int, power: float) -> Tensor:
    """Give each row's share of its table's rate, by how often it occurs.

    Args:
        rows: int32 [n, columns] of all training examples.
        num_rows: Rows of the table.
        power: As in the configuration, `row_lr_power`.

    Returns:
        float32 [num_rows], from 0 to 1.
    """
    named = rows.reshape(-1)
    counts = torch.bincount(named[named >= 0], minlength=num_rows).float()
    return (counts / counts[counts > 0].mean()).pow(power).clamp(max=1.0)
