"""Epochs over triples, with sampled negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from multifacet.kge.batches.source import place_types, source_in_memory
from multifacet.kge.evaluation.predictor import LinkPredictor
from multifacet.kge.models.registry import build_model
from multifacet.kge.models.relations import RelationParameters
from multifacet.kge.sampled.schedule import step_factor, step_seed
from multifacet.kge.sampled.state import TrainerState
from multifacet.kge.sampled.step import TrainingStep
from multifacet.tables.optim import RowwiseAdagrad
from multifacet.tables.tensors import empty_table
from multifacet.training import Lanes, Position, TrainingRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from multifacet.kge.batches.batch import Batch
    from multifacet.kge.batches.epochs import EpochSource
    from multifacet.kge.config import KgeConfig
    from multifacet.kge.triples.feeds import FeedSplit
    from multifacet.kge.triples.triples import TripleSplit
    from multifacet.training import WarmStart

__all__ = ["Trainer"]

_DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_DRAWN_AT_ONCE: Final = 1 << 16  # rows; torch draws normal numbers by sixteens, so that such blocks continue each other


class Trainer:
    """Runs epochs over triples.

    Args:
        split: what is learned from and what is ranked.
        config: the model and how it is trained.
        generator: source of shuffles and negatives.
        source: what draws the batches; None for one that draws them from the split.
    """

    def __init__(
        self,
        split: TripleSplit | FeedSplit,
        config: KgeConfig,
        generator: np.random.Generator,
        *,
        source: EpochSource | None = None,
    ) -> None:
        triples = split.train
        if not len(triples):
            raise ValueError("there is no triple to learn from: the split's train part is empty")
        self.config = config
        self.split = split
        self.ends = dict(triples.ends)
        self.model = build_model(config)
        self.source = source or source_in_memory(triples, config)
        self._num_steps = 1
        seeded = torch.Generator().manual_seed(config.seed)
        offsets, num_rows = place_types(triples.num_nodes), sum(triples.num_nodes.values())
        table = empty_table(num_rows, config.dim, dtype=_DTYPES[config.table_dtype])
        squares = empty_table(num_rows).zero_()
        optimizers = {}
        tables = {}
        for node_type, count in triples.num_nodes.items():
            rows = slice(offsets[node_type], offsets[node_type] + count)
            tables[node_type] = table[rows]
            _draw_normal(tables[node_type], config.init_scale, seeded)
            optimizers[node_type] = RowwiseAdagrad(0, config.lr)
            optimizers[node_type].state = squares[rows]
        self.state = TrainerState(
            tables=tables,
            optimizers=optimizers,
            relations=RelationParameters(self.model, triples.relation_names, reciprocal=config.reciprocal, generator=seeded),
            position=Position(generator=generator),
            num_readers=self.source.num_readers,
        )
        self.step = TrainingStep(self.model, config, self.source, state=self.state, table=table, squares=squares)

    def run_epoch(self, run: TrainingRun | None = None) -> dict[str, float]:
        """Pass once over the triples, or over those that are left of an epoch that was interrupted.

        Args:
            run: what saves the state between two steps; None for a run that is never saved.

        Returns:
            epoch, loss (mean over edges of both sides' losses), seconds and edges_per_s.
        """
        run, position = run or TrainingRun(), self.state.position
        epoch = self.source.begin_epoch(position)
        self._num_steps = epoch.num_steps
        with Lanes() as lanes:
            for batch in run.steps(epoch.batches, lanes, self.state, num_steps=epoch.num_steps):
                position.add(loss=self.learn(batch, lanes), examples=batch.num_edges)
        return self.state.end_epoch(run)

    def learn(self, batch: Batch, lanes: Lanes) -> float:
        """Learn from a batch; gives the sum of its edges' losses before the step, unweighted."""
        config, position = self.config, self.state.position
        factor = step_factor(config, position, self._num_steps)
        seed = step_seed(config.seed, position)
        return self.step(batch, lanes, lr=config.lr * factor, relation_lr=config.relation_lr * factor, seed=seed)

    def predictor(self) -> LinkPredictor:
        """Give the scores of the tables as they are now."""
        return LinkPredictor(model=self.model, vectors=self.state.tables, relations=self.state.relations, ends=self.ends)

    def warm_start(self, warm_start: WarmStart, node_ids: Callable[[str], Any]) -> None:
        """Begin with the rows and relations of an older snapshot.

        Args:
            warm_start: the snapshot and how to start from it.
            node_ids: gives the external ids of a node type.

        Raises:
            ValueError: if the snapshot's tables or relations do not fit, or rows in half precision are to be pulled.
        """
        if warm_start.config.pull and self.config.table_dtype != "fp32":
            raise ValueError(
                f"the pull towards older rows is for FP32 tables: pull={warm_start.config.pull} with "
                f"table_dtype={self.config.table_dtype!r}; set one of them to its default"
            )
        warm_start.check_config(
            self.config.model_dump(mode="json"), same=("model", "distance"), told=("reciprocal", "table_dtype", "full_softmax")
        )
        # Rows are matched and averaged in FP32; of FP32 tables `float` gives the living ones.
        whole = {node_type: table.float() for node_type, table in self.state.tables.items()}
        self.state.taken = warm_start.apply(whole, self.state.optimizers, node_ids, facet="kge")
        for node_type, table in self.state.tables.items():
            if table.dtype != torch.float32:
                table.copy_(whole[node_type])
        self.state.relations.warm_start(warm_start.snapshot.parameters())


def _draw_normal(table: Tensor, scale: float, generator: torch.Generator) -> None:
    """Fill a table with normal numbers, those of FP32 also where it is kept in half precision."""
    if table.dtype == torch.float32:
        table.normal_(std=scale, generator=generator)
        return
    for block in torch.split(table, _DRAWN_AT_ONCE):
        block.copy_(torch.empty(block.shape).normal_(std=scale, generator=generator))
