"""One step: the loss of a batch, its gradients in closed form, and the update of the rows that it names."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from multifacet.contrastive.objective.comparison import compare
from multifacet.contrastive.objective.losses import ScoreLoss
from multifacet.contrastive.trainer.vectors import gather, normalize_, normalize_gradient_

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from multifacet.contrastive.config import ContrastiveConfig
    from multifacet.contrastive.trainer.towers import Batch
    from multifacet.contrastive.trainer.vectors import History
    from multifacet.tables.optim import RowwiseAdagrad
    from multifacet.training import Lanes

__all__ = ["Stepper", "Temperature"]


class Temperature:
    """What similarities are divided by: fixed, or learned by Adagrad on its logarithm.

    Args:
        initial: first value.
        lr: learning rate; 0 keeps it as it is.
        least: what it is kept above.

    Attributes:
        state: log of the inverse temperature, and Adagrad's sum of squares, float64 [2]; what a checkpoint has to keep.
    """

    def __init__(self, initial: float, *, lr: float = 0.0, least: float = 0.01) -> None:
        self.lr = lr
        self.least = least
        self.state: Tensor = torch.tensor([-math.log(initial), 0.0], dtype=torch.float64)

    @property
    def value(self) -> float:
        """The temperature."""
        return math.exp(-float(self.state[0]))

    def step(self, gradient: float) -> None:
        """Learn from the derivative of a loss by the log of the inverse temperature."""
        if not self.lr or gradient == 0:
            return
        self.state[1] += gradient * gradient
        self.state[0] -= self.lr * gradient / float(self.state[1].sqrt())
        self.state[0].clamp_(max=-math.log(self.least))

    def __repr__(self) -> str:
        return f"Temperature({self.value:.4g}, lr={self.lr:g})"


class Stepper:
    """Runs steps on tables in memory.

    Args:
        config: the loss.
        tables: node type -> float32 [num_nodes, D], changed in place.
        optimizers: node type -> row-wise Adagrad.
        temperature: what similarities are divided by.
        history: the part of a query's vector that its items make.
    """

    def __init__(
        self,
        config: ContrastiveConfig,
        *,
        tables: Mapping[str, Tensor],
        optimizers: Mapping[str, RowwiseAdagrad],
        temperature: Temperature,
        history: History,
    ) -> None:
        self._config = config
        self._tables = tables
        self._optimizers = optimizers
        self._temperature = temperature
        self._history = history
        self._loss = ScoreLoss(
            name=config.loss,
            margin=config.margin or 0.0,
            negative_weight=config.negative_weight or 1.0,
        )
        self._slot_of_item: NDArray[np.int32] = np.zeros(0, dtype=np.int32)

    def step(self, node_type: str, batch: Batch, lanes: Lanes) -> float:
        """Learn from one batch; each lane takes half of its queries.

        Args:
            node_type: of the candidates' table.
            batch: positives with their candidates.
            lanes: where the two halves run.

        Returns:
            The batch's mean loss a positive before the step.
        """
        config, candidates = self._config, batch.candidates
        kept = self._draw_kept(batch)
        (queries, query_lengths), (keys, key_lengths) = lanes.run(
            lambda: self._queries(batch, kept), lambda: self._keys(node_type, candidates.rows)
        )
        bias = -candidates.log_inclusion if config.corrects_logq else np.zeros(len(keys), dtype=np.float32)
        if candidates.only_positives is not None:
            bias[candidates.only_positives] = -np.inf
        middle, loss, inverse = len(queries) // 2, self._loss, 1.0 / self._temperature.value
        first, second = lanes.run(
            lambda: compare(queries[:middle], keys, candidates, loss, scale=inverse, bias=bias),
            lambda: compare(queries[middle:], keys, candidates, loss, scale=inverse, bias=bias, first=middle),
        )
        scale = inverse / len(batch)
        query_gradients = torch.cat([first.queries, second.queries])
        key_gradients = first.candidates.add_(second.candidates)
        self._temperature.step(scale * float((query_gradients * torch.from_numpy(queries)).sum()))
        lanes.run(
            lambda: _finish(query_gradients.numpy(), queries, query_lengths, scale),
            lambda: _finish(key_gradients.numpy(), keys, key_lengths, scale),
        )
        if kept is not None:
            query_gradients *= torch.from_numpy(kept)
        self._update(node_type, batch, query_gradients, key_gradients)
        return (first.loss + second.loss) / len(batch)

    def _draw_kept(self, batch: Batch) -> NDArray[np.float32] | None:
        """Give what the numbers of the queries' vectors are multiplied by: 0 by chance, else what keeps their mean."""
        chance = self._config.query_dropout
        if not chance:
            return None
        drawn = np.random.default_rng(batch.seed).random((len(batch.queries), self._config.dim), dtype=np.float32)
        return (drawn >= chance).astype(np.float32) / np.float32(1.0 - chance)

    def _queries(
        self, batch: Batch, kept: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        rows = batch.queries
        vectors = gather(self._tables[self._config.query_type].numpy(), rows)
        self._history.blend_(vectors, rows, self._tables[self._config.item_type].numpy())
        if kept is not None:
            vectors *= kept
        return vectors, normalize_(vectors) if self._config.similarity == "cosine" else None

    def _keys(self, node_type: str, rows: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        vectors = gather(self._tables[node_type].numpy(), rows)
        return vectors, normalize_(vectors) if self._config.similarity == "cosine" else None

    def _update(self, node_type: str, batch: Batch, query_gradients: Tensor, key_gradients: Tensor) -> None:
        config, history, rows = self._config, self._history, batch.candidates.rows
        items = config.item_type
        if history.share:
            if not len(self._slot_of_item):
                self._slot_of_item = np.full(len(self._tables[items]), -1, dtype=np.int32)
            slots, taken = self._slot_of_item, rows if node_type == items else rows[:0]
            slots[taken] = np.arange(len(taken), dtype=np.int32)
            more, sums = history.spread(query_gradients.numpy(), batch.queries, slots, len(taken))
            named = np.concatenate([taken, more])
            slots[named] = -1
            gradients = torch.from_numpy(sums)
            if node_type == items:
                gradients[: len(rows)] += key_gradients
                rows, key_gradients = named, gradients
            else:
                self._optimizers[items].step(self._tables[items], torch.from_numpy(named), gradients)
        self._optimizers[node_type].step(self._tables[node_type], torch.from_numpy(rows), key_gradients)
        if history.share < 1:
            query_gradients *= 1.0 - history.share
            query_rows = torch.from_numpy(batch.queries)
            self._optimizers[config.query_type].step(self._tables[config.query_type], query_rows, query_gradients)


def _finish(
    gradients: NDArray[np.float32], units: NDArray[np.float32], lengths: NDArray[np.float32] | None, factor: float
) -> None:
    if lengths is None:
        gradients *= np.float32(factor)
    else:
        normalize_gradient_(gradients, units, lengths, factor)
