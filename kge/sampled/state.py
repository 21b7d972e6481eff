"""What a training has learned so far, and how it is kept."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from typing_extensions import override

from multifacet.training import CheckpointError, SavedState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from multifacet.kge.models.relations import RelationParameters
    from multifacet.tables.optim import RowwiseAdagrad
    from multifacet.training import Position, TrainingRun

__all__ = ["LearnedState", "TrainerState"]

# What is learned itself, beside the optimisers' state: of tables, of a table of relations, or of each relation by name.
_LEARNED: Final = ("table/", "relations", "relation/", "inverse/")


@dataclass(kw_only=True, slots=True)
class LearnedState(ABC):
    """All that changes while a trainer runs.

    Attributes:
        tables: node type -> float32 [num_nodes, D].
        relations: the relations' parameters.
        position: where the training stands, with the source of all that is drawn.
        best: a copy of all tensors as they were at the best validation, where the run stops early.
        sums: sums of the tables and relations over the last epochs, where their mean is given out; None before those.
        num_readers: processes among which an epoch's edges are dealt out; None where all processes draw alike, and any number
            of them can go on in the middle of an epoch.
        taken: node type -> which rows a warm start has taken from the older snapshot, bool [num_nodes]; empty without one.
    """

    tables: dict[str, Tensor]
    relations: RelationParameters
    position: Position
    best: dict[str, Tensor] | None = None
    sums: dict[str, Tensor] | None = None
    num_readers: int | None = None
    taken: dict[str, Tensor] = field(default_factory=dict)

    def end_epoch(self, run: TrainingRun) -> dict[str, float]:
        """Count an epoch, and give its row of the history: epoch, loss (mean over edges of both sides'), seconds, edges_per_s.

        Raises:
            ValueError: if the loss is not finite.
        """
        seconds = run.epoch_seconds(self.position)
        totals = self.position.end_epoch()
        num_examples = totals.get("examples", 0.0)  # of weights below 1 an epoch may draw nothing
        epoch, loss = self.position.epoch, totals.get("loss", 0.0) / max(1.0, num_examples)
        if not math.isfinite(loss):
            raise ValueError(f"the loss of epoch {epoch} is {loss}; lower lr or init_scale")
        return {"epoch": float(epoch), "loss": loss, "seconds": seconds, "edges_per_s": num_examples / seconds}

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Give the living tensors by name, optimisers' state included."""

    @abstractmethod
    def row_squares(self) -> dict[str, Tensor]:
        """Give what row-wise Adagrad would have to know of each row to go on, float32 [num_nodes]; a type may be missing."""

    def trained_rows(self) -> dict[str, Tensor]:
        """Say which rows a gradient has reached, in this training or in the one that it started from, bool [num_nodes]."""
        return {
            node_type: (squares > 0).logical_or(self.taken.get(node_type, torch.zeros(1, dtype=torch.bool)))
            for node_type, squares in self.row_squares().items()
        }

    def fields(self) -> dict[str, Any]:
        """Give the rest as JSON-able values, the position left out, which the run saves."""
        return {} if self.num_readers is None else {"num_readers": self.num_readers}

    def restore_fields(self, fields: Mapping[str, Any]) -> None:
        """Take over what `fields` gave.

        Raises:
            CheckpointError: if it is of the middle of an epoch that was dealt out to another number of processes.
        """
        before = fields.get("num_readers")
        if self.position.step and before != self.num_readers:
            raise CheckpointError(
                f"the checkpoint is of the middle of an epoch (step {self.position.step}), whose shards were dealt out to "
                f"{before} processes, and there are {self.num_readers}: resume with {before}, or from a "
                "checkpoint between two epochs"
            )

    def save(self) -> SavedState:
        """Give all of it but the position."""
        best = {f"best/{name}": tensor for name, tensor in (self.best or {}).items()}
        sums = {f"sum/{name}": tensor for name, tensor in (self.sums or {}).items()}
        return SavedState(tensors=self.tensors() | best | sums, fields=self.fields())

    def restore(self, saved: SavedState) -> None:
        """Go to where `save` was called, in place."""
        self._copy_from(saved.tensors)
        self.restore_fields(saved.fields)
        self.best, self.sums = (
            {name.removeprefix(kind): tensor.clone() for name, tensor in saved.tensors.items() if name.startswith(kind)} or None
            for kind in ("best/", "sum/")
        )

    def keep_as_best(self) -> None:
        """Keep a copy of all tensors."""
        self.best = {name: tensor.clone() for name, tensor in self.tensors().items()}

    def go_to_best(self) -> None:
        """Go back to the copy that was kept last."""
        if self.best is None:
            raise ValueError("no state has been kept as the best")
        self._copy_from(self.best)

    def add_to_sums(self) -> None:
        """Add the tables and relations as they are now."""
        learned = {name: tensor for name, tensor in self.tensors().items() if name.startswith(_LEARNED)}
        if self.sums is None:
            self.sums = {name: tensor.clone() for name, tensor in learned.items()}
            return
        for name, total in self.sums.items():
            total.add_(learned[name])

    def go_to_mean(self, count: int) -> None:
        """Replace the tables and relations by the mean of the `count` states that were added."""
        if self.sums is None:
            raise ValueError("no state has been added to the sums")
        tensors = self.tensors()
        for name, total in self.sums.items():
            torch.div(total, count, out=tensors[name])

    def _copy_from(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])


@dataclass(kw_only=True, slots=True)
class TrainerState(LearnedState):
    """All that changes while a trainer runs; the tables are views of one block: fill them in place.

    Attributes:
        optimizers: node type -> row-wise Adagrad, whose state likewise is a view of one block.
    """

    optimizers: dict[str, RowwiseAdagrad]

    @override
    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"table/{node_type}": table for node_type, table in self.tables.items()}
        tensors |= {f"adagrad/{node_type}": optimizer.state for node_type, optimizer in self.optimizers.items()}
        return tensors | self.relations.to_tensors()

    @override
    def row_squares(self) -> dict[str, Tensor]:
        return {node_type: optimizer.state for node_type, optimizer in self.optimizers.items()}
