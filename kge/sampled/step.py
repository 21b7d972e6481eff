"""One training step: closed-form gradients of a batch's two sides, then one Adagrad step of each row and relation it names.

Both halves are kernels that all lanes enter at once, and that share their work out among themselves (see
`kge.sampled.gradients` and `tables.optim.occurrences`): the first writes the gradients of every place where a row occurs, the
second sums them row by row, each row on one lane and in the order of its places. So the same batches give the same bits on any
number of threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from multifacet.kernels.losses import RowLoss
from multifacet.kge.models.translations import Translation, write_unit_numbers
from multifacet.kge.sampled.gradients import Formula, Learned, Side, Workspace, differentiate_chunks
from multifacet.kge.sampled.schedule import relation_rates
from multifacet.tables.optim import RowwiseAdagrad, sum_rows, update_cells, update_rows
from multifacet.tables.tensors import bits, empty_table, number_format, raw_bits

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from multifacet.kge.batches.batch import Batch
    from multifacet.kge.batches.epochs import EpochSource
    from multifacet.kge.config import KgeConfig
    from multifacet.kge.models.model import Model
    from multifacet.kge.sampled.state import TrainerState
    from multifacet.training import Lanes

__all__ = ["TrainingStep"]

_NO_HITS = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64)


class TrainingStep:
    """Learns from batches.

    Args:
        model: the scoring model.
        config: loss and regularisation.
        source: the batches' sizes.
        state: what is learned, changed in place.
        table: rows of all node types, [num_rows, D], float32, float16 or bfloat16, of which the state's tables are views.
        squares: accumulated mean squares of each row, float32 [num_rows], of which the state's optimisers have views.
    """

    def __init__(
        self,
        model: Model,
        config: KgeConfig,
        source: EpochSource,
        *,
        state: TrainerState,
        table: Tensor,
        squares: Tensor,
    ) -> None:
        self.config = config
        self._state = state
        self._squares = squares.numpy()
        self._parameters_squares = state.relations.state.numpy()
        self._turns_angles = model.translation == Translation.ROTATION
        parameters = state.relations.table.numpy()
        self._rows = bits(table)
        self._learned = Learned(
            table=raw_bits(table),
            number_format=int(number_format(table.dtype)),
            parameters=parameters,
            translations=np.zeros((len(parameters), config.dim), np.float32) if self._turns_angles else parameters,
        )
        projection = model.projection
        self._formula = Formula(
            projection=int(projection.kind),
            num_projection_parameters=projection.num_parameters,
            translation=int(model.kernel),
            similarity=int(model.similarity),
            loss=int(RowLoss[config.loss.upper()]),
            margin=np.float32(config.margin if config.margin is not None else config.loss == "margin"),
            temperature=np.float32(config.adversarial_temperature or 1.0),
            l2=np.float32(config.l2),
            n3=np.float32(config.n3),
            has_complex_entities=model.has_complex_entities,
            dropout=np.float32(config.dropout),
        )
        self._rank = projection.rank
        rates = relation_rates(config, model, parameters.shape[1])
        self._relation_rates = np.ones(parameters.shape[1], np.float32) if rates is None else rates.numpy()
        self._size, self._num_candidates = source.chunk_size, source.max_candidates
        num_chunks, width = source.num_chunks, source.chunk_size + source.max_candidates
        self._gradients = empty_table(2 * num_chunks * width, config.dim).numpy()
        per_chunk = source.chunk_size if source.mixes_relations else 1
        self._relation_gradients = np.empty((2, num_chunks, per_chunk, parameters.shape[1]), dtype=np.float32)
        self._losses = np.empty((2, num_chunks))
        self._workspaces: dict[int, Workspace] = {}

    def __call__(self, batch: Batch, lanes: Lanes, *, lr: float, relation_lr: float, seed: int) -> float:
        """Learn from a batch.

        Args:
            batch: the batch.
            lanes: where the work is done.
            lr: learning rate of the rows.
            relation_lr: learning rate of the relations' translations; that of projections is in proportion.
            seed: of dropout and of the rounding of half-precision rows; another one at each step.

        Returns:
            The sum over its edges of both sides' losses before the step, unweighted.
        """
        if self._turns_angles:
            write_unit_numbers(self._learned.parameters, batch.keys.rows, self._learned.translations)
        first, second = (self._side(batch, position, seed) for position in (0, 1))
        turns = np.zeros(1, dtype=np.int64)
        formula, learned, weights = self._formula, self._learned, batch.weights

        def differentiate(lane: int) -> None:
            differentiate_chunks(formula, learned, first, second, weights, self._workspace(lane), turns)

        lanes.phases(differentiate, self._updates(batch, lr, relation_lr, seed))
        return float(first.losses.sum() + second.losses.sum())

    def _side(self, batch: Batch, position: int, seed: int) -> Side:
        """Give one side as the kernel takes it, with the places of its gradients."""
        side, num_chunks = batch.sides[position], batch.num_chunks
        candidates, shape = side.candidates, side.rows.shape
        begin = batch.sides[0].rows.size if position else 0
        hits, hits_indptr = _NO_HITS
        if candidates.hits is not None and candidates.hits_indptr is not None:
            hits, hits_indptr = candidates.hits, candidates.hits_indptr
        return Side(
            rows=side.rows,
            keys=side.keys,
            bias=candidates.bias,
            targets=candidates.targets,
            hits=hits,
            hits_indptr=hits_indptr,
            inverse=side.side == "head" and not self.config.reciprocal,
            seed=2 * seed + position,
            gradients=self._gradients[begin : begin + side.rows.size].reshape(*shape, -1),
            relation_gradients=self._relation_gradients.reshape(-1, *self._relation_gradients.shape[2:])[
                position * num_chunks : (position + 1) * num_chunks
            ],
            losses=self._losses[position, :num_chunks],
        )

    def _workspace(self, lane: int) -> Workspace:
        if lane not in self._workspaces:
            self._workspaces[lane] = Workspace.of(
                self._formula, size=self._size, num_candidates=self._num_candidates, dim=self.config.dim, rank=self._rank
            )
        return self._workspaces[lane]

    def _updates(self, batch: Batch, lr: float, relation_lr: float, seed: int) -> Callable[[int], None]:
        """Give the second half of the step, which each lane runs."""
        table, gradients = self._rows, self._gradients
        cells = self._learned.parameters, self._parameters_squares, self._relation_gradients.reshape(-1, self._num_cells)
        rows_turns, keys_turns = np.zeros((2, 1), dtype=np.int64)
        rates = np.float32(relation_lr) * self._relation_rates
        is_plain = all(type(optimizer) is RowwiseAdagrad for optimizer in self._state.optimizers.values())

        def update(lane: int) -> None:
            update_cells(*cells, batch.keys, keys_turns, lr=rates)
            if is_plain:
                update_rows(table, self._squares, gradients, batch.rows, rows_turns, lr=lr, seed=seed)
            elif lane == 0:
                self._step_optimizers(batch, lr)

        return update

    @property
    def _num_cells(self) -> int:
        return int(self._learned.parameters.shape[1])

    def _step_optimizers(self, batch: Batch, lr: float) -> None:
        """Let optimisers of other kinds than plain Adagrad take each type's sums of gradients."""
        sums = torch.from_numpy(sum_rows(self._gradients, batch.rows))
        rows, offset = torch.from_numpy(batch.rows.rows), 0
        for node_type, table in self._state.tables.items():
            chosen = (rows >= offset) & (rows < offset + len(table))
            if bool(chosen.any()):
                optimizer = self._state.optimizers[node_type]
                optimizer.lr = lr
                optimizer.step(table, rows[chosen] - offset, sums[chosen])
            offset += len(table)
