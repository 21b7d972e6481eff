"""The maps of entities into a relation's own space, and their vector-Jacobian products, batched over chunks of one relation.

A projection reads each chunk's parameters as one row of numbers [C, P] and maps its entities [C, n, D]. It writes into what the
caller gives; `models.py` has the same maps in torch, which the tests hold these to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np
import torch
from typing_extensions import override

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["AnchoredProjection", "FullProjection", "Projection"]


class Projection(ABC):
    """A linear map of entities, one a chunk."""

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """Numbers of a relation that the map takes: the first of its row."""

    @abstractmethod
    def forward(self, entities: Tensor, parameters: Tensor, projected: Tensor) -> None:
        """Write the projected entities [C, n, D]."""

    @abstractmethod
    def backward(
        self,
        projected_gradient: Tensor,
        entities: Tensor,
        parameters: Tensor,
        entities_gradient: Tensor,
        parameters_gradient: Tensor,
    ) -> None:
        """Write the entities' gradient [C, n, D], and add to the parameters' [C, P]."""


class FullProjection(Projection):
    """TransR's: e M, with M [D, D].

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim

    @property
    @override
    def num_parameters(self) -> int:
        return self.dim * self.dim

    @override
    def forward(self, entities: Tensor, parameters: Tensor, projected: Tensor) -> None:
        torch.bmm(entities, self._matrices(parameters), out=projected)

    @override
    def backward(
        self,
        projected_gradient: Tensor,
        entities: Tensor,
        parameters: Tensor,
        entities_gradient: Tensor,
        parameters_gradient: Tensor,
    ) -> None:
        torch.bmm(projected_gradient, self._matrices(parameters).transpose(1, 2), out=entities_gradient)
        self._matrices(parameters_gradient).baddbmm_(entities.transpose(1, 2), projected_gradient)

    def _matrices(self, parameters: Tensor) -> Tensor:
        return parameters[:, : self.num_parameters].view(-1, self.dim, self.dim)


class AnchoredProjection(Projection):
    """TransRA's: e + (e U) V^T, with U and V [D, k].

    Args:
        dim: D.
        rank: k.
    """

    def __init__(self, dim: int, rank: int) -> None:
        self.dim = dim
        self.rank = rank

    @property
    @override
    def num_parameters(self) -> int:
        return 2 * self.dim * self.rank

    @override
    def forward(self, entities: Tensor, parameters: Tensor, projected: Tensor) -> None:
        left, right = self._factors(parameters)
        inner = torch.empty(*entities.shape[:2], self.rank)
        _shrink(entities.numpy(), left, inner.numpy())
        _grow(entities.numpy(), inner.numpy(), right, projected.numpy())

    @override
    def backward(
        self,
        projected_gradient: Tensor,
        entities: Tensor,
        parameters: Tensor,
        entities_gradient: Tensor,
        parameters_gradient: Tensor,
    ) -> None:
        left, right = self._factors(parameters)
        inner = torch.empty(*entities.shape[:2], self.rank)
        inner_gradient = torch.empty_like(inner)
        _shrink(entities.numpy(), left, inner.numpy())
        _shrink(projected_gradient.numpy(), right, inner_gradient.numpy())
        _grow(projected_gradient.numpy(), inner_gradient.numpy(), left, entities_gradient.numpy())
        left_gradient, right_gradient = torch.zeros(2, len(entities), self.rank, self.dim)
        _add_products(entities.numpy(), inner_gradient.numpy(), left_gradient.numpy())
        _add_products(projected_gradient.numpy(), inner.numpy(), right_gradient.numpy())
        gradients = parameters_gradient[:, : self.num_parameters].view(-1, 2, self.dim, self.rank)
        gradients[:, 0] += left_gradient.mT
        gradients[:, 1] += right_gradient.mT

    def _factors(self, parameters: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give U and V turned, [C, k, D]: the kernels run along D."""
        left, right = parameters[:, : self.num_parameters].view(-1, 2, self.dim, self.rank).mT.unbind(1)
        return left.contiguous().numpy(), right.contiguous().numpy()


# Products with a side as thin as the rank: a general matrix product reaches a fifth of its speed on them.
_FAST: Final = {"reassoc", "contract", "nsz"}


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _shrink(vectors: Any, factors: Any, products: Any) -> None:
    """Write vectors [C, n, D] times factors [C, k, D] turned, [C, n, k]."""
    rank = factors.shape[1]
    whole = rank - rank % 4
    zero = np.float32(0.0)
    for chunk in range(vectors.shape[0]):
        factor = factors[chunk]
        for row in range(vectors.shape[1]):
            vector, product = vectors[chunk, row], products[chunk, row]
            for first in range(0, whole, 4):
                a, b, c, d = zero, zero, zero, zero
                for column in range(len(vector)):
                    value = vector[column]
                    a += value * factor[first, column]
                    b += value * factor[first + 1, column]
                    c += value * factor[first + 2, column]
                    d += value * factor[first + 3, column]
                product[first], product[first + 1], product[first + 2], product[first + 3] = a, b, c, d
            for position in range(whole, rank):
                a = zero
                for column in range(len(vector)):
                    a += vector[column] * factor[position, column]
                product[position] = a


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _grow(base: Any, weights: Any, factors: Any, result: Any) -> None:
    """Write base [C, n, D] plus weights [C, n, k] times factors [C, k, D]."""
    rank = factors.shape[1]
    whole = rank - rank % 4
    for chunk in range(base.shape[0]):
        factor = factors[chunk]
        for row in range(base.shape[1]):
            weight, target, source = weights[chunk, row], result[chunk, row], base[chunk, row]
            for column in range(len(target)):
                target[column] = source[column]
            for first in range(0, whole, 4):
                a, b, c, d = weight[first], weight[first + 1], weight[first + 2], weight[first + 3]
                for column in range(len(target)):
                    target[column] += (a * factor[first, column] + b * factor[first + 1, column]) + (
                        c * factor[first + 2, column] + d * factor[first + 3, column]
                    )
            for position in range(whole, rank):
                a = weight[position]
                for column in range(len(target)):
                    target[column] += a * factor[position, column]


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _add_products(vectors: Any, weights: Any, sums: Any) -> None:
    """Add weights [C, n, k] turned times vectors [C, n, D] to sums [C, k, D]."""
    for chunk in range(vectors.shape[0]):
        for position in range(sums.shape[1]):
            total = sums[chunk, position]
            whole = vectors.shape[1] - vectors.shape[1] % 4
            for row in range(0, whole, 4):
                a, b = weights[chunk, row, position], weights[chunk, row + 1, position]
                c, d = weights[chunk, row + 2, position], weights[chunk, row + 3, position]
                for column in range(len(total)):
                    total[column] += (a * vectors[chunk, row, column] + b * vectors[chunk, row + 1, column]) + (
                        c * vectors[chunk, row + 2, column] + d * vectors[chunk, row + 3, column]
                    )
            for row in range(whole, vectors.shape[1]):
                a = weights[chunk, row, position]
                for column in range(len(total)):
                    total[column] += a * vectors[chunk, row, column]
