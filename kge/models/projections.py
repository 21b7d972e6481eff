"""The maps of entities into a relation's own space, and their vector-Jacobian products: kernels over a chunk of one relation.

    FULL        TransR's: e M, with M [D, D]
    ANCHORED    TransRA's: e + (e U) V^T, with U and V [D, k]

A relation's parameters are one row of numbers, those of its projection first. Models have the same maps in torch, which
the tests hold these to.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numba

from multifacet.kernels.gemm import gemm

__all__ = ["Projection", "ProjectionKind", "project", "project_backward"]


class ProjectionKind(IntEnum):
    """A map, by the number that kernels know it by; NONE leaves entities as they are."""

    NONE = 0
    FULL = 1
    ANCHORED = 2


class Projection(NamedTuple):
    """A map of entities.

    Attributes:
        kind: which one.
        dim: D.
        rank: k, of ANCHORED.
    """

    kind: ProjectionKind
    dim: int = 0
    rank: int = 0

    @property
    def num_parameters(self) -> int:
        """Numbers of a relation that the map takes: the first of its row."""
        return {
            ProjectionKind.NONE: 0,
            ProjectionKind.FULL: self.dim * self.dim,
            ProjectionKind.ANCHORED: 2 * self.dim * self.rank,
        }[self.kind]


@numba.njit(nogil=True, cache=True, inline="always")
def project(kind: int, entities: Any, parameters: Any, inner: Any, projected: Any) -> None:
    """Write the projected entities [n, D].

    Args:
        kind: which map.
        entities: float32 [n, D].
        parameters: float32, the relation's row.
        inner: float32 [n, k], of ANCHORED: written, for the backward pass.
        projected: written.
    """
    dim, rank = entities.shape[1], inner.shape[1]
    if kind == ProjectionKind.FULL:
        gemm(entities, False, parameters[: dim * dim].reshape(dim, dim), False, projected)
    else:
        gemm(entities, False, parameters[: dim * rank].reshape(dim, rank), False, inner)
        gemm(inner, False, parameters[dim * rank : 2 * dim * rank].reshape(dim, rank), True, projected)
        _add(projected, entities)


@numba.njit(nogil=True, cache=True, inline="always")
def project_backward(
    kind: int,
    projected_gradient: Any,
    entities: Any,
    parameters: Any,
    inner: Any,
    inner_gradient: Any,
    entities_gradient: Any,
    parameters_gradient: Any,
) -> None:
    """Write the gradients of the entities [n, D] and of the projection's parameters, the first of the relation's row.

    Args:
        kind: which map.
        projected_gradient: float32 [n, D].
        entities: as in `project`.
        parameters: as in `project`.
        inner: what `project` wrote.
        inner_gradient: float32 [n, k], scratch.
        entities_gradient: written.
        parameters_gradient: its first numbers are written.
    """
    dim, rank = entities.shape[1], inner.shape[1]
    if kind == ProjectionKind.FULL:
        gemm(projected_gradient, False, parameters[: dim * dim].reshape(dim, dim), True, entities_gradient)
        gemm(entities, True, projected_gradient, False, parameters_gradient[: dim * dim].reshape(dim, dim))
    else:
        size = dim * rank
        gemm(projected_gradient, False, parameters[size : 2 * size].reshape(dim, rank), False, inner_gradient)
        gemm(inner_gradient, False, parameters[:size].reshape(dim, rank), True, entities_gradient)
        _add(entities_gradient, projected_gradient)
        gemm(entities, True, inner_gradient, False, parameters_gradient[:size].reshape(dim, rank))
        gemm(projected_gradient, True, inner, False, parameters_gradient[size : 2 * size].reshape(dim, rank))


@numba.njit(nogil=True, cache=True)
def _add(targets: Any, sources: Any) -> None:
    for row in range(len(targets)):
        target, source = targets[row], sources[row]
        for column in range(len(target)):
            target[column] += source[column]
