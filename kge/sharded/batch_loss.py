"""The loss of a batch by torch and autograd, on any device: what tables that are not this process's memory are trained by.

The kernels of `kge.sampled.gradients` compute the same in closed form, on the CPU; the tests hold the two to each other.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from multifacet.kge.models.projections import ProjectionKind
from multifacet.kge.sampled.gradients import drop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from multifacet.kge.batches.batch import Batch, BatchSide
    from multifacet.kge.config import KgeConfig
    from multifacet.kge.models.model import Model

__all__ = ["BatchLoss"]

_SMALLEST_SQUARE = 1e-12  # as in `kernels.similarity`


class BatchLoss:
    """What a batch's gradient is of.

    Args:
        model: the scoring model.
        config: loss and regularisation.
        shapes: of a relation's parameters, by name, in the order in which they lie in a row.
    """

    def __init__(self, model: Model, config: KgeConfig, shapes: Mapping[str, torch.Size]) -> None:
        self._model = model
        self._config = config
        self._shapes = dict(shapes)
        self._projects = model.projection.kind != ProjectionKind.NONE

    def __call__(
        self,
        batch: Batch,
        chunks: NDArray[np.intp],
        vectors: Tensor,
        places: tuple[Tensor, Tensor],
        relations: Tensor,
        *,
        seed: int,
    ) -> tuple[Tensor, Tensor]:
        """Score some chunks of a batch.

        Args:
            batch: the batch.
            chunks: numbers of the chunks, int [c].
            vectors: rows that these chunks name, float32 [U, D].
            places: of each side's rows among them, int64 [c, B + N].
            relations: the table of relations' parameters, [K, P].
            seed: of dropout, as the kernels take it.

        Returns:
            The chunks' part of the batch's objective, weighted and regularised, to go backward from; and the unweighted sum
            of their edges' losses. Both are scalars.
        """
        weights = torch.from_numpy(batch.weights[chunks]).to(vectors.device)
        objective, loss = vectors.sum() * 0.0 + relations.sum() * 0.0, vectors.new_zeros(())
        if not len(chunks):
            return objective, loss
        is_real = torch.from_numpy(batch.weights[chunks] > 0).to(vectors.device)
        for position, (side, of_side) in enumerate(zip(batch.sides, places, strict=True)):
            rows = vectors[of_side]
            known = rows[:, : weights.shape[1]]
            kept = self._kept(side, chunks, 2 * seed + position) if self._config.dropout else None
            logits = self._scores(side, chunks, known, rows[:, weights.shape[1] :], relations, kept)
            self._mask(side, chunks, logits)
            targets = torch.from_numpy(side.candidates.targets[chunks]).long().to(vectors.device)
            losses = self._losses(logits, targets)
            objective = objective + (torch.where(is_real, losses, 0.0) + self._penalty(known)).mul(weights).sum()
            loss = loss + torch.where(is_real, losses, 0.0).sum().detach()
        return objective, loss

    def _scores(
        self,
        side: BatchSide,
        chunks: NDArray[np.intp],
        known: Tensor,
        candidates: Tensor,
        relations: Tensor,
        kept: Tensor | None,
    ) -> Tensor:
        """Score each chunk's queries against its candidates, [c, B, N], corrected by the candidates' bias."""
        model, config = self._model, self._config
        keys = torch.from_numpy(side.keys[chunks]).long().to(known.device)
        parameters = self._name(relations[keys[:, :1] if self._projects else keys])
        known, candidates = model.project(known, parameters), model.project(candidates, parameters)
        inverse = side.side == "head" and not config.reciprocal
        queries = model.translate(known, parameters, "head" if inverse else "tail")
        if kept is not None:
            queries = queries * kept.to(queries.device)
        bias = torch.from_numpy(side.candidates.bias[chunks]).to(known.device)
        return self._compare(queries, candidates) + bias[:, None]

    def _compare(self, queries: Tensor, candidates: Tensor) -> Tensor:
        model = self._model
        if model.is_distance and model.distance == "l1":
            differences = queries[:, :, None] - candidates[:, None]
            if not model.has_complex_entities:
                return -differences.abs().sum(-1)
            real, imaginary = differences.chunk(2, dim=-1)
            return -(real.square() + imaginary.square() + _SMALLEST_SQUARE).sqrt().sum(-1)
        scores = queries @ candidates.mT
        if not model.is_distance:
            return scores
        scores = 2 * scores - candidates.square().sum(-1)[:, None] - queries.square().sum(-1, keepdim=True)
        return scores if model.distance == "squared" else -(-scores).clamp(min=_SMALLEST_SQUARE).sqrt()

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Give each edge's loss [c, B]; see `kernels.losses`."""
        config = self._config
        if config.loss == "softmax":
            return cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        positives = logits.gather(-1, targets[..., None])[..., 0]
        negatives = logits.scatter(-1, targets[..., None], -math.inf)
        counts = negatives > -math.inf
        shares = counts / counts.sum(-1, keepdim=True).clamp(min=1)
        if config.loss == "margin":
            margin = 1.0 if config.margin is None else config.margin
            return (shares * (margin - positives[..., None] + negatives).clamp(min=0)).sum(-1)
        if config.loss == "self_adversarial":
            shares = (negatives.detach() * (config.adversarial_temperature or 1.0)).softmax(-1).nan_to_num()
        margin = config.margin or 0.0
        return softplus(-positives - margin) + (shares * softplus(negatives + margin)).sum(-1)

    def _penalty(self, known: Tensor) -> Tensor | float:
        l2, n3 = self._config.l2, self._config.n3
        penalty: Tensor | float = l2 * known.square().sum(-1) if l2 else 0.0
        if n3:
            moduli = known.abs()
            if self._model.has_complex_entities:
                real, imaginary = known.chunk(2, dim=-1)
                moduli = (real.square() + imaginary.square() + _SMALLEST_SQUARE).sqrt()
            penalty = penalty + n3 * moduli.pow(3).sum(-1)
        return penalty

    def _kept(self, side: BatchSide, chunks: NDArray[np.intp], seed: int) -> Tensor:
        """Give what dropout multiplies the queries with, [c, B, D]."""
        kept = np.ones((len(chunks), side.keys.shape[1], self._config.dim), dtype=np.float32)
        for chunk, number in zip(kept, chunks.tolist(), strict=True):
            drop(chunk, np.float32(self._config.dropout), seed, number * side.keys.shape[1])
        return torch.from_numpy(kept)

    @staticmethod
    def _mask(side: BatchSide, chunks: NDArray[np.intp], logits: Tensor) -> None:
        """Leave known answers out, in place."""
        hits, indptr = side.candidates.hits, side.candidates.hits_indptr
        if hits is None or indptr is None:
            return
        size = side.keys.shape[1]
        slot_of_chunk = np.full(len(side.keys), -1)
        slot_of_chunk[chunks] = np.arange(len(chunks))
        queries = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        slots = slot_of_chunk[queries // size]
        chosen = slots >= 0
        index = (slots[chosen], queries[chosen] % size, hits[chosen])
        logits[tuple(torch.from_numpy(part).long().to(logits.device) for part in index)] = -math.inf

    def _name(self, numbers: Tensor) -> dict[str, Any]:
        """Name the parameters in rows [c, B or 1, P]: vectors [c, B or 1, n], matrices [c, n, m]."""
        parts = torch.split(numbers, [size.numel() for size in self._shapes.values()], dim=-1)
        return {
            name: torch.unflatten(part[:, 0], -1, size) if self._projects and len(size) == 2 else part
            for part, (name, size) in zip(parts, self._shapes.items(), strict=True)
        }
