"""What a contrastive training has to remember between two steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from multifacet.tables.optim import LazyAdam, RowwiseAdam
from multifacet.training import SavedState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from multifacet.contrastive.candidates.candidates import CandidateSampler
    from multifacet.contrastive.trainer.step import Temperature
    from multifacet.tables.optim import RowwiseAdagrad
    from multifacet.training import Position

__all__ = ["TrainerState"]


@dataclass(kw_only=True, slots=True)
class TrainerState:
    """All that changes while a trainer runs.

    Attributes:
        tables: node type -> float32 [num_nodes, D].
        optimizers: node type -> row-wise Adagrad.
        samplers: node type -> the tower's sampler, whose queue holds positives of past batches.
        hard: best unknown items of each query at the epoch's start, int32 [num_queries, depth]; empty without hard negatives.
        temperature: what similarities are divided by.
        position: where the training stands, with the source of positives and negatives.
        taken: node type -> which rows a warm start has taken from the older snapshot, bool [num_nodes]; empty without one.
    """

    tables: dict[str, Tensor]
    optimizers: dict[str, RowwiseAdagrad]
    samplers: dict[str, CandidateSampler]
    hard: NDArray[np.int32]
    temperature: Temperature
    position: Position
    taken: dict[str, Tensor] = field(default_factory=dict)

    def touched(self, node_type: str) -> Tensor:
        """Say which rows a gradient has reached, in this training or in the one that it started from, bool [num_nodes]."""
        touched = self.optimizers[node_type].state > 0
        return touched | self.taken[node_type] if node_type in self.taken else touched

    def save(self) -> SavedState:
        """Give all of it but the position, which the run saves."""
        tensors = {f"table/{node_type}": table for node_type, table in self.tables.items()}
        tensors |= {f"adagrad/{node_type}": optimizer.state for node_type, optimizer in self.optimizers.items()}
        for node_type, optimizer in self.optimizers.items():
            if isinstance(optimizer, LazyAdam):
                tensors |= {f"momentum/{node_type}": optimizer.momentum, f"squares/{node_type}": optimizer.squares}
                tensors[f"steps/{node_type}"] = optimizer.num_steps
            if isinstance(optimizer, RowwiseAdam):
                tensors |= {f"momentum/{node_type}": optimizer.momentum, f"steps/{node_type}": optimizer.steps}
        tensors |= {f"queue/{node_type}": torch.from_numpy(sampler.queue) for node_type, sampler in self.samplers.items()}
        return SavedState(
            tensors=tensors | {"temperature": self.temperature.state, "hard": torch.from_numpy(self.hard)}, fields={}
        )

    def restore(self, saved: SavedState) -> None:
        """Go to where `save` was called, in place."""
        for node_type, table in self.tables.items():
            table.copy_(saved.tensors[f"table/{node_type}"])
            optimizer = self.optimizers[node_type]
            optimizer.state.copy_(saved.tensors[f"adagrad/{node_type}"])
            if isinstance(optimizer, LazyAdam):
                optimizer.momentum.copy_(saved.tensors[f"momentum/{node_type}"])
                optimizer.squares.copy_(saved.tensors[f"squares/{node_type}"])
                optimizer.num_steps.copy_(saved.tensors[f"steps/{node_type}"])
            if isinstance(optimizer, RowwiseAdam):
                optimizer.momentum.copy_(saved.tensors[f"momentum/{node_type}"])
                optimizer.steps.copy_(saved.tensors[f"steps/{node_type}"])
        for node_type, sampler in self.samplers.items():
            sampler.queue = saved.tensors[f"queue/{node_type}"].numpy()
        self.temperature.state.copy_(saved.tensors["temperature"])
        self.hard = saved.tensors["hard"].numpy()
