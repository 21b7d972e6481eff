"""What a training against all entities has learned so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from multifacet.kge.state import LearnedState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from multifacet.kge.dense_optimizer import DenseOptimizer

__all__ = ["FullTrainerState"]


@dataclass(kw_only=True, slots=True)
class FullTrainerState(LearnedState):
    """All that changes while a trainer runs.

    Attributes:
        optimizers: node type -> the table's optimiser.
        relation_optimizer: of the relations' parameters.
    """

    optimizers: dict[str, DenseOptimizer]
    relation_optimizer: DenseOptimizer

    @override
    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"table/{node_type}": table for node_type, table in self.tables.items()}
        tensors["relations"] = self.relation_optimizer.values
        for name, optimizer in self._named_optimizers().items():
            tensors |= {f"{kind}/{name}": tensor for kind, tensor in optimizer.state.items()}
        return tensors

    @override
    def row_squares(self) -> dict[str, Tensor]:
        # Row-wise Adagrad's state is the mean of a row's.
        return {
            node_type: optimizer.state["squares"].mean(1)
            for node_type, optimizer in self.optimizers.items()
            if optimizer.kind == "adagrad"
        }

    @override
    def trained_rows(self) -> dict[str, Tensor]:
        none = torch.zeros(1, dtype=torch.bool)
        return {
            node_type: (optimizer.state["squares"] > 0).any(1).logical_or(self.taken.get(node_type, none))
            for node_type, optimizer in self.optimizers.items()
        }

    @override
    def fields(self) -> dict[str, Any]:
        return {"num_steps": {name: optimizer.num_steps for name, optimizer in self._named_optimizers().items()}}

    @override
    def restore_fields(self, fields: Mapping[str, Any]) -> None:
        for name, optimizer in self._named_optimizers().items():
            optimizer.num_steps = fields["num_steps"][name]

    def _named_optimizers(self) -> dict[str, DenseOptimizer]:
        return {
            **{f"table/{name}": optimizer for name, optimizer in self.optimizers.items()},
            "relations": self.relation_optimizer,
        }
