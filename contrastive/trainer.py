"""Training of a query table against one or several answering tables."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from contrastive.evaluation import evaluate
from contrastive.positives import compose, hold_out_latest, read_positives
from contrastive.result import ContrastiveResult
from contrastive.towers import Tower
from tables.rowwise import RowwiseAdagrad, accumulate_rows
from tables.softmax import sampled_softmax_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from contrastive.config import ContrastiveConfig
    from contrastive.positives import Positives
    from contrastive.towers import Batch
    from graphdb import GraphView
    from tables.pairs import PairIndex

__all__ = ["Trainer", "TrainerState", "train"]

logger = logging.getLogger(__name__)


def train(
    view: GraphView,
    config: ContrastiveConfig,
    *,
    progress: Callable[[Mapping[str, float]], None] | None = None,
) -> ContrastiveResult:
    """Learn tables of queries, of items and of the composed towers by telling positives from sampled negatives.

    Args:
        view: the graph window.
        config: positives, loss and how it is trained.
        progress: called with the history's row after each epoch.

    Returns:
        Tables, history and metrics.

    Raises:
        ValueError: if the configuration does not fit the view, or the loss stops being a number.
    """
    generator = np.random.default_rng(config.seed)
    positives, held_out = hold_out_latest(read_positives(view, config), config.validation, generator)
    towers = [Tower(config.item_type, positives, config, share=1.0)]
    for composed in config.composed:
        pairs = compose(positives, view, config.item_type, composed)
        towers.append(Tower(composed.node_type, pairs, config, share=composed.share))
    trainer = Trainer(towers, config, generator)
    seen, relevant = positives.index(), held_out.index()
    for epoch in range(1, config.epochs + 1):
        row = trainer.run_epoch()
        if len(held_out) and (epoch % config.validation.every == 0 or epoch == config.epochs):
            row |= trainer.validate(relevant, seen)
        trainer.state.history.append(row)
        logger.info("contrastive epoch %d: %s", epoch, row)
        if progress is not None:
            progress(row)
    # No clock: equal trainings have equal metrics, and so equal snapshots.
    timings = ("seconds", "pairs_per_s")
    metrics = {name: value for name, value in trainer.state.history[-1].items() if name not in timings}
    return ContrastiveResult(
        config=config,
        vectors={node_type: trainer.vectors(node_type) for node_type in trainer.state.tables},
        history=trainer.state.history,
        metrics=metrics | {"num_held_out": float(len(held_out))},
    )


@dataclass(kw_only=True, slots=True)
class TrainerState:
    """All that changes while a trainer runs, beside the towers' queues.

    Attributes:
        tables: node type -> float32 [num_nodes, D].
        optimizers: node type -> row-wise Adagrad.
        generator: source of positives and negatives.
        epoch: epochs finished.
        history: one row a finished epoch.
    """

    tables: dict[str, Tensor]
    optimizers: dict[str, RowwiseAdagrad]
    generator: np.random.Generator
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Runs epochs of steps, each on a batch of one tower.

    Args:
        towers: the items' tower first, then the composed ones.
        config: the loss and how it is trained.
        generator: source of positives and negatives.
    """

    def __init__(self, towers: list[Tower], config: ContrastiveConfig, generator: np.random.Generator) -> None:
        self.towers = towers
        self.config = config
        items = towers[0].positives
        num_rows = {config.query_type: items.num_queries}
        num_rows |= {tower.node_type: tower.positives.num_items for tower in towers}
        seeded = torch.Generator().manual_seed(config.seed)
        self.state = TrainerState(
            tables={
                node_type: torch.randn(count, config.dim, generator=seeded) * config.init_scale
                for node_type, count in num_rows.items()
            },
            optimizers={node_type: RowwiseAdagrad(count, config.lr) for node_type, count in num_rows.items()},
            generator=generator,
        )

    def run_epoch(self) -> dict[str, float]:
        """Draw as many positives as there are distinct ones, and the composed towers' share beside them.

        Returns:
            epoch, loss (of the items' tower, in nats), loss/<node type> of each composed tower, seconds, pairs_per_s.
        """
        begin = time.perf_counter()
        losses: dict[str, list[float]] = {tower.node_type: [] for tower in self.towers}
        for tower in self._schedule():
            losses[tower.node_type].append(self.step(tower, tower.draw(self.state.generator)))
        self.state.epoch += 1
        means = {node_type: float(np.mean(values)) for node_type, values in losses.items() if values}
        if not all(math.isfinite(mean) for mean in means.values()):
            raise ValueError(f"the losses of epoch {self.state.epoch} are {means}; lower lr or raise temperature")
        seconds = time.perf_counter() - begin
        num_pairs = self.config.batch_size * sum(len(values) for values in losses.values())
        row = {"epoch": float(self.state.epoch), "loss": means.pop(self.config.item_type)}
        row |= {f"loss/{node_type}": mean for node_type, mean in means.items()}
        return row | {"seconds": seconds, "pairs_per_s": num_pairs / seconds}

    def step(self, tower: Tower, batch: Batch) -> float:
        """Learn from one batch.

        Returns:
            The batch's mean loss before the step.
        """
        config, state, candidates = self.config, self.state, batch.candidates
        query_rows, rows = torch.from_numpy(batch.queries), torch.from_numpy(candidates.rows)
        queries = state.tables[config.query_type].index_select(0, query_rows).requires_grad_()
        items = state.tables[tower.node_type].index_select(0, rows).requires_grad_()
        compared_queries, compared_items = queries, items
        if config.similarity == "cosine":
            compared_queries, compared_items = F.normalize(queries), F.normalize(items)
        loss = sampled_softmax_loss(
            compared_queries / config.temperature,
            compared_items,
            torch.from_numpy(candidates.targets).long(),
            bias=-torch.from_numpy(candidates.log_inclusion) if config.logq else None,
            hits=candidates.hits,
        )
        loss.backward()  # type: ignore[no-untyped-call]
        if queries.grad is None or items.grad is None:
            raise RuntimeError(f"the tower of {tower.node_type!r} received no gradient")
        distinct_rows, query_gradients = accumulate_rows(query_rows, queries.grad)
        state.optimizers[config.query_type].step(state.tables[config.query_type], distinct_rows, query_gradients)
        state.optimizers[tower.node_type].step(state.tables[tower.node_type], rows, items.grad)
        return float(loss.detach())

    def validate(self, relevant: PairIndex, seen: PairIndex) -> dict[str, float]:
        """Rank the held-out items among all that their query has not seen."""
        config = self.config
        return evaluate(
            self.vectors(config.query_type),
            self.vectors(config.item_type),
            relevant=relevant,
            seen=seen,
            k=config.validation.k,
        )

    def vectors(self, node_type: str) -> Tensor:
        """Give a table as it is compared: of length 1 under cosine; zero where no gradient has ever been."""
        touched = (self.state.optimizers[node_type].state > 0)[:, None]
        table = self.state.tables[node_type]
        if self.config.similarity == "cosine":
            table = F.normalize(table)
        return table * touched

    def _schedule(self) -> Iterator[Tower]:
        """Spread the composed towers' steps evenly among the items' steps."""
        positives: Positives = self.towers[0].positives
        num_steps = math.ceil(len(positives) / self.config.batch_size)
        for step in range(num_steps):
            for tower in self.towers:
                if math.floor((step + 1) * tower.share) > math.floor(step * tower.share):
                    yield tower
