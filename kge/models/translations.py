"""The maps from an edge's known end to its query, and their vector-Jacobian products, as kernels over a chunk.

`known` and `queries` are float32 [B, D], `keys` int32 [B] name each edge's row of the relation table [K, W], and
`relation_gradient` [B, P] takes each edge's own gradient of the relation's parameters. `inverse` turns the map around: from
a tail to the query for its head. Models have the same maps in torch, which the tests hold these to.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Translation", "translate", "translate_backward", "write_unit_numbers"]


class Translation(IntEnum):
    """A map, by the number that kernels know it by."""

    ADDITION = 0
    PRODUCT = 1
    COMPLEX_PRODUCT = 2
    ROTATION = 3  # a complex product whose table holds the cosines and sines of the parameters, see `write_unit_numbers`


@numba.njit(nogil=True, cache=True, inline="always")
def translate(translation: int, known: Any, keys: Any, table: Any, inverse: bool, queries: Any) -> None:
    """Write the queries."""
    sign = np.float32(-1.0 if inverse else 1.0)
    for edge in range(len(known)):
        vector, relation, query = known[edge], table[keys[edge]], queries[edge]
        if translation == Translation.ADDITION:
            for column in range(len(query)):
                query[column] = vector[column] + sign * relation[column]
        elif translation == Translation.PRODUCT:
            for column in range(len(query)):
                query[column] = vector[column] * relation[column]
        else:
            _multiply_complex(vector, relation, sign, query)


@numba.njit(nogil=True, cache=True, inline="always")
def translate_backward(
    translation: int,
    queries_gradient: Any,
    known: Any,
    keys: Any,
    table: Any,
    inverse: bool,
    known_gradient: Any,
    relation_gradient: Any,
) -> None:
    """Write the gradients of the known ends, and of each edge's relation."""
    sign = np.float32(-1.0 if inverse else 1.0)
    for edge in range(len(known)):
        gradient, vector, relation = queries_gradient[edge], known[edge], table[keys[edge]]
        to_known, to_relation = known_gradient[edge], relation_gradient[edge]
        if translation == Translation.ADDITION:
            for column in range(len(gradient)):
                to_known[column] = gradient[column]
                to_relation[column] = sign * gradient[column]
        elif translation == Translation.PRODUCT:
            for column in range(len(gradient)):
                to_known[column] = gradient[column] * relation[column]
                to_relation[column] = gradient[column] * vector[column]
        else:
            is_rotation = translation == Translation.ROTATION
            _multiply_complex_backward(gradient, vector, relation, sign, to_known, to_relation, is_rotation)


# A conjugate factor turns the map around: for a head asked for, the tail times the conjugate of the relation.
@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _multiply_complex(vector: Any, relation: Any, sign: Any, query: Any) -> None:
    half = len(vector) // 2
    for column in range(half):
        real, imaginary = relation[column], sign * relation[half + column]
        query[column] = vector[column] * real - vector[half + column] * imaginary
        query[half + column] = vector[column] * imaginary + vector[half + column] * real


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _multiply_complex_backward(
    gradient: Any, vector: Any, relation: Any, sign: Any, to_known: Any, to_relation: Any, is_rotation: bool
) -> None:
    half = len(vector) // 2
    for column in range(half):
        real, imaginary = relation[column], sign * relation[half + column]
        first, second = gradient[column], gradient[half + column]
        to_known[column] = first * real + second * imaginary
        to_known[half + column] = second * real - first * imaginary
        to_real = first * vector[column] + second * vector[half + column]
        to_imaginary = second * vector[column] - first * vector[half + column]
        if is_rotation:
            to_relation[column] = sign * (real * to_imaginary - imaginary * to_real)
        else:
            to_relation[column] = to_real
            to_relation[half + column] = sign * to_imaginary


def write_unit_numbers(angles: NDArray[np.float32], keys: NDArray[np.int32], table: NDArray[np.float32]) -> None:
    """Write the cosines and sines of relations' angles [K, D/2] to their rows of a rotation's table [K, D]."""
    half = angles.shape[1]
    chosen = angles[keys]
    table[keys, :half] = np.cos(chosen)
    table[keys, half:] = np.sin(chosen)
