"""The maps of entities into a relation's own space, and their vector-Jacobian products, batched over chunks of one relation.

A projection reads each chunk's parameters as one row of numbers [C, P] and maps its entities [C, n, D]. It writes into what the
caller gives; `models.py` has the same maps in torch, which the tests hold these to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from typing_extensions import override

if TYPE_CHECKING:
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
        torch.baddbmm(entities, torch.bmm(entities, left), right.transpose(1, 2), out=projected)

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
        left_gradient, right_gradient = self._factors(parameters_gradient)
        inner_gradient = torch.bmm(projected_gradient, right)
        torch.baddbmm(projected_gradient, inner_gradient, left.transpose(1, 2), out=entities_gradient)
        left_gradient.baddbmm_(entities.transpose(1, 2), inner_gradient)
        right_gradient.baddbmm_(projected_gradient.transpose(1, 2), torch.bmm(entities, left))

    def _factors(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        left, right = parameters[:, : self.num_parameters].view(-1, 2, self.dim, self.rank).unbind(1)
        return left, right
