"""One training step: closed-form gradients of a batch's two sides, then one Adagrad step of each row and relation it names.

Both halves run on all lanes. The first is cut by side and into blocks of chunks, whose queries, candidates and scores stay in a
lane's workspace (and in its core's cache) from the gather to the gradients:

    rows -> gather -> (project) -> translate -> scores -> loss, in place -> gradients of queries and keys -> back to rows

Every block writes the gradients of its own places; the second half sums them row by row, each row on one lane and in the order
of its places. Nothing depends on which lane did what, so the same batches give the same bits on any number of threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numba
import numpy as np
import torch

from tables.gather import gather_rows
from tables.occurrences import sum_rows, update_cells, update_rows
from tables.rowloss import RowLoss
from tables.rowwise import RowwiseAdagrad

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from kge.batches import Batch, BatchSide, BatchSource
    from kge.config import KgeConfig
    from kge.models import Model
    from kge.trainer import TrainerState
    from tables.lanes import Lanes

__all__ = ["TrainingStep"]

# Chunks of one side that a lane takes at a time: enough to make the interpreter's share small, few enough for the cache.
_CHUNKS_A_BLOCK: Final = 5


class _Block(NamedTuple):
    """A lane's buffers for the chunks in its hands: tensors, and the same memory as arrays."""

    known: Tensor
    candidates: Tensor
    queries: Tensor
    scores: Tensor
    scores_kept: Tensor | None
    queries_gradient: Tensor
    projected_known: Tensor
    projected_candidates: Tensor
    known_gradient: Tensor
    candidates_gradient: Tensor


class TrainingStep:
    """Learns from batches.

    Args:
        model: the scoring model.
        config: loss and regularisation.
        source: the batches' sizes.
        state: what is learned, changed in place.
        table: rows of all node types, float32 [num_rows, D], of which the state's tables are views.
        squares: accumulated mean squares of each row, float32 [num_rows], of which the state's optimisers have views.
    """

    def __init__(
        self,
        model: Model,
        config: KgeConfig,
        source: BatchSource,
        *,
        state: TrainerState,
        table: Tensor,
        squares: Tensor,
    ) -> None:
        self.model = model
        self.config = config
        self.source = source
        self._table = table.numpy()
        self._squares = squares.numpy()
        self._state = state
        self._parameters = state.relations.table.numpy()
        self._parameters_squares = state.relations.state.numpy()
        self._projection = model.projection
        self._similarity = model.similarity
        self._translation = model.translation
        needs_table = self._translation.table is not None
        self._relation_table = np.zeros((len(self._parameters), config.dim), np.float32) if needs_table else self._parameters
        self._loss = RowLoss(
            name=config.loss,
            margin=config.margin if config.margin is not None else float(config.loss == "margin"),
            temperature=config.adversarial_temperature or 1.0,
        )
        num_chunks, size, dim = source.num_chunks, source.chunk_size, config.dim
        num_places = 2 * num_chunks * (size + source.max_candidates)
        self._gradients = torch.empty(num_places, dim)
        per_chunk = size if self._projection is None else 1
        self._relation_gradients = torch.empty(2 * num_chunks * per_chunk, self._parameters.shape[1])
        self._workspaces: dict[tuple[int, int, int], _Block] = {}

    def __call__(self, batch: Batch, lanes: Lanes, *, lr: float, relation_lr: float) -> float:
        """Learn from a batch.

        Args:
            batch: the batch.
            lanes: where the work is done.
            lr: learning rate of the rows.
            relation_lr: learning rate of the relations' parameters.

        Returns:
            The sum over its edges of both sides' losses before the step, unweighted.
        """
        if self._translation.table is not None:
            self._translation.table(self._parameters, batch.keys.rows, self._relation_table)
        tasks = [
            (side, begin, min(begin + _CHUNKS_A_BLOCK, batch.num_chunks))
            for begin in range(0, batch.num_chunks, _CHUNKS_A_BLOCK)
            for side in (0, 1)
        ]
        losses = lanes.each(lambda lane, task: self._differentiate(lane, batch, *task), tasks)
        self._apply(batch, lanes, lr, relation_lr)
        return sum(losses)

    def _differentiate(self, lane: int, batch: Batch, position: int, begin: int, end: int) -> float:
        """Write the gradients of some chunks of one side."""
        side = batch.sides[position]
        chunks = slice(begin, end)
        block = self._block(lane, end - begin, side.candidates.rows.shape[1])
        known_gradient, candidates_gradient, relation_gradient = self._gradient_views(batch, position, chunks)
        weights = batch.weights[chunks]

        gather_rows(self._table, side.known[chunks], block.known.numpy())
        gather_rows(self._table, side.candidates.rows[chunks], block.candidates.numpy())
        parameters, table, keys = self._read_relations(side, chunks)
        if self._projection is not None:
            self._projection.forward(block.known, parameters, block.projected_known)
            self._projection.forward(block.candidates, parameters, block.projected_candidates)
        inverse = side.side == "head" and not self.config.reciprocal
        self._translation.forward(block.projected_known.numpy(), keys, table, inverse, block.queries.numpy())

        self._similarity.forward(block.queries, block.projected_candidates, block.scores)
        scores = block.scores.numpy()
        if block.scores_kept is not None:
            block.scores_kept.copy_(block.scores)
        side.candidates.mask(scores, begin)
        bias, targets = side.candidates.bias[chunks], side.candidates.targets[chunks]
        loss = self._loss(scores, bias=bias, targets=targets, weights=weights)

        keys_gradient = candidates_gradient if self._projection is None else block.candidates_gradient
        self._similarity.backward(
            block.scores, block.queries, block.projected_candidates, block.scores_kept, block.queries_gradient, keys_gradient
        )
        queries_gradient = block.queries_gradient.numpy()
        if self._projection is None:
            arrays = block.known.numpy(), keys, table, inverse, known_gradient.numpy(), relation_gradient.numpy()
            self._translation.backward(queries_gradient, *arrays)
        else:
            self._backward_through_projection(
                block, parameters, keys, table, inverse, known_gradient, candidates_gradient, relation_gradient
            )
        if self.config.l2 or self.config.n3:
            _regularise(
                known_gradient.numpy(),
                block.known.numpy(),
                weights,
                np.float32(self.config.l2),
                np.float32(self.config.n3),
                self.model.has_complex_entities,
            )
        return loss

    def _read_relations(self, side: BatchSide, chunks: slice) -> tuple[Tensor, NDArray[np.float32], NDArray[np.int32]]:
        """Give each chunk's parameters (where entities are projected), and the table and keys of the translation."""
        keys = side.keys[chunks]
        if self._projection is None:
            return self._state.relations.table, self._relation_table, keys
        parameters = self._parameters[keys[:, 0]]
        table = np.ascontiguousarray(parameters[:, self._projection.num_parameters :])
        numbers = np.broadcast_to(np.arange(len(keys), dtype=np.int32)[:, None], keys.shape)
        return torch.from_numpy(parameters), table, np.ascontiguousarray(numbers)

    def _backward_through_projection(
        self,
        block: _Block,
        parameters: Tensor,
        keys: NDArray[np.int32],
        table: NDArray[np.float32],
        inverse: bool,
        known_gradient: Tensor,
        candidates_gradient: Tensor,
        relation_gradient: Tensor,
    ) -> None:
        projection = self._projection
        assert projection is not None  # noqa: S101 - the caller has looked
        projected_gradient = block.known_gradient
        translation_gradient = torch.empty_like(projected_gradient)
        self._translation.backward(
            block.queries_gradient.numpy(),
            block.projected_known.numpy(),
            keys,
            table,
            inverse,
            projected_gradient.numpy(),
            translation_gradient.numpy(),
        )
        relation_gradient.zero_()
        relation_gradient[:, projection.num_parameters :] = translation_gradient.sum(1)
        projection.backward(projected_gradient, block.known, parameters, known_gradient, relation_gradient)
        projection.backward(block.candidates_gradient, block.candidates, parameters, candidates_gradient, relation_gradient)

    def _apply(self, batch: Batch, lanes: Lanes, lr: float, relation_lr: float) -> None:
        gradients, relation_gradients = self._gradients.numpy(), self._relation_gradients.numpy()
        parts = lanes.num_lanes

        def apply(_: int, task: tuple[bool, tuple[int, int]]) -> None:
            of_rows, part = task
            if of_rows:
                update_rows(self._table, self._squares, gradients, batch.rows, part, lr=lr)
            else:
                arrays = self._parameters, self._parameters_squares, relation_gradients
                update_cells(*arrays, batch.keys, part, lr=relation_lr)

        tasks = [(False, part) for part in batch.keys.parts(parts)]
        if all(type(optimizer) is RowwiseAdagrad for optimizer in self._state.optimizers.values()):
            tasks = [(True, part) for part in batch.rows.parts(2 * parts)] + tasks
        else:
            self._step_optimizers(batch, lr)
        lanes.each(apply, tasks)

    def _step_optimizers(self, batch: Batch, lr: float) -> None:
        """Let optimisers of other kinds than plain Adagrad take each type's sums of gradients."""
        sums = torch.from_numpy(sum_rows(self._gradients.numpy(), batch.rows))
        rows, offset = torch.from_numpy(batch.rows.rows), 0
        for node_type, table in self._state.tables.items():
            chosen = (rows >= offset) & (rows < offset + len(table))
            if bool(chosen.any()):
                optimizer = self._state.optimizers[node_type]
                optimizer.lr = lr
                optimizer.step(table, rows[chosen] - offset, sums[chosen])
            offset += len(table)

    def _gradient_views(self, batch: Batch, position: int, chunks: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Give where the gradients of some chunks of one side go: of known ends, candidates, and relations."""
        dim, num_chunks, size = self.config.dim, batch.num_chunks, self.source.chunk_size
        num_known = num_chunks * size
        counts = [side.candidates.rows.shape[1] for side in batch.sides]
        first = 2 * num_known + (num_chunks * counts[0] if position else 0)
        known = self._gradients[position * num_known : (position + 1) * num_known].view(num_chunks, size, dim)
        candidates = self._gradients[first : first + num_chunks * counts[position]].view(num_chunks, counts[position], dim)
        per_chunk = size if self._projection is None else 1
        relations = self._relation_gradients[position * num_chunks * per_chunk : (position + 1) * num_chunks * per_chunk]
        relations = relations.view(num_chunks, per_chunk, -1)
        return known[chunks], candidates[chunks], relations[chunks] if self._projection is None else relations[chunks, 0]

    def _block(self, lane: int, num_chunks: int, num_candidates: int) -> _Block:
        """Give a lane's buffers; views of the same memory for each shape that occurs."""
        key = lane, num_chunks, num_candidates
        if key not in self._workspaces:
            size, dim = self.source.chunk_size, self.config.dim
            known, candidates = torch.empty(num_chunks, size, dim), torch.empty(num_chunks, num_candidates, dim)
            projects = self._projection is not None
            scores = torch.empty(num_chunks, size, num_candidates)
            self._workspaces[key] = _Block(
                known=known,
                candidates=candidates,
                queries=torch.empty_like(known),
                scores=scores,
                scores_kept=torch.empty_like(scores) if self._similarity.needs_scores else None,
                queries_gradient=torch.empty_like(known),
                projected_known=torch.empty_like(known) if projects else known,
                projected_candidates=torch.empty_like(candidates) if projects else candidates,
                known_gradient=torch.empty_like(known) if projects else known,
                candidates_gradient=torch.empty_like(candidates) if projects else candidates,
            )
        return self._workspaces[key]


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _regularise(gradients: Any, vectors: Any, weights: Any, l2: Any, n3: Any, is_complex: bool) -> None:
    two, three = np.float32(2.0), np.float32(3.0)
    half = vectors.shape[2] // 2
    for chunk in range(vectors.shape[0]):
        for edge in range(vectors.shape[1]):
            vector, gradient = vectors[chunk, edge], gradients[chunk, edge]
            squares_share, cubes_share = two * l2 * weights[chunk, edge], three * n3 * weights[chunk, edge]
            for column in range(len(vector)):
                gradient[column] += squares_share * vector[column]
            if n3 == 0:
                continue
            if is_complex:
                for column in range(half):
                    real, imaginary = vector[column], vector[half + column]
                    factor = cubes_share * np.sqrt(real * real + imaginary * imaginary)
                    gradient[column] += factor * real
                    gradient[half + column] += factor * imaginary
            else:
                for column in range(len(vector)):
                    gradient[column] += cubes_share * abs(vector[column]) * vector[column]
