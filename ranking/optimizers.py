"""A ranker's two optimisers: AdamW on the upper model, row-wise Adagrad on the table rows that a step touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tables import RowwiseAdagrad, accumulate_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ranking.config import RankingConfig
    from ranking.model import RankingModel

_ADAMW = "adamw"
_ADAGRAD = "adagrad"


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
        self.forget_rows()

    def forget_rows(self) -> None:
        """Start the tables' optimisers anew."""
        config = self.config
        self.tables = {
            spec.name: RowwiseAdagrad(spec.num_rows, config.facet_lrs.get(spec.facet, config.table_lr))
            for spec in self.model.specs
        }

    def step_upper(self) -> None:
        """Update all that is not a table."""
        self.upper.step()

    def step_tables(self, rows: Tensor, gradients: Mapping[str, Tensor]) -> None:
        """Update the touched rows of all tables.

        Args:
            rows: int32 [B, columns] of the batch.
            gradients: Of what `RankingModel.gather` gave; none, and nothing is updated, while the tables are frozen.
        """
        for group in self.model.layout.groups if gradients else ():
            indices = rows[:, group.columns].reshape(-1).contiguous()
            touched, sums = accumulate_rows(indices, gradients[group.feature].reshape(len(indices), -1))
            for spec, gradient in zip(group.specs, sums.chunk(len(group.specs), dim=1), strict=True):
                self.tables[spec.name].step(self.model.table(spec.name), touched, gradient.contiguous())

    def to_tensors(self) -> dict[str, Tensor]:
        """Give all state as named tensors, which may be the living ones."""
        state = {f"{_ADAGRAD}.{name}": optimizer.state for name, optimizer in self.tables.items()}
        for position, fields in self.upper.state_dict()["state"].items():
            state |= {f"{_ADAMW}.{position}.{name}": value for name, value in fields.items()}
        return state

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `to_tensors` gave, among other tensors."""
        adamw: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == _ADAGRAD:
                self.tables[rest].state.copy_(value)
            elif kind == _ADAMW:
                position, _, field = rest.partition(".")
                adamw.setdefault(int(position), {})[field] = value.clone()
        self.upper.load_state_dict(self.upper.state_dict() | {"state": adamw})
