"""The maps from an edge's known end to its query, and their vector-Jacobian products, as kernels over whole blocks.

    forward(known, keys, table, inverse, queries)
    backward(queries_gradient, known, keys, table, inverse, known_gradient, relation_gradient)

`known` and `queries` are float32 [C, B, D], `keys` int32 [C, B] name each edge's row of the relation table [K, W], and
`relation_gradient` [C, B, P] takes each edge's own gradient of the relation's parameters. `inverse` turns the map around: from
a tail to the query for its head. `models.py` has the same maps in torch, which the tests hold these to.
"""
# ruff: noqa: ARG001 - all kernels of one signature, though no map needs all of it

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["ADDITION", "COMPLEX_PRODUCT", "PRODUCT", "ROTATION", "Translation"]


class Translation(NamedTuple):
    """A map with its vector-Jacobian product.

    Attributes:
        forward: see the module.
        backward: see the module.
        table: makes the table that both read from the relations' parameters [K, P], for the keys (distinct) that a batch
            names; None if it is the parameters themselves.
    """

    forward: Callable[..., None]
    backward: Callable[..., None]
    table: Callable[[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]], None] | None = None


@numba.njit(nogil=True, cache=True)
def _add(known: Any, keys: Any, table: Any, inverse: bool, queries: Any) -> None:
    sign = np.float32(-1.0 if inverse else 1.0)
    for chunk in range(known.shape[0]):
        for edge in range(known.shape[1]):
            vector, relation, query = known[chunk, edge], table[keys[chunk, edge]], queries[chunk, edge]
            for column in range(len(query)):
                query[column] = vector[column] + sign * relation[column]


@numba.njit(nogil=True, cache=True)
def _add_backward(
    queries_gradient: Any, known: Any, keys: Any, table: Any, inverse: bool, known_gradient: Any, relation_gradient: Any
) -> None:
    sign = np.float32(-1.0 if inverse else 1.0)
    for chunk in range(known.shape[0]):
        for edge in range(known.shape[1]):
            gradient = queries_gradient[chunk, edge]
            to_known, to_relation = known_gradient[chunk, edge], relation_gradient[chunk, edge]
            for column in range(len(gradient)):
                to_known[column] = gradient[column]
                to_relation[column] = sign * gradient[column]


@numba.njit(nogil=True, cache=True)
def _multiply(known: Any, keys: Any, table: Any, inverse: bool, queries: Any) -> None:
    for chunk in range(known.shape[0]):
        for edge in range(known.shape[1]):
            vector, relation, query = known[chunk, edge], table[keys[chunk, edge]], queries[chunk, edge]
            for column in range(len(query)):
                query[column] = vector[column] * relation[column]


@numba.njit(nogil=True, cache=True)
def _multiply_backward(
    queries_gradient: Any, known: Any, keys: Any, table: Any, inverse: bool, known_gradient: Any, relation_gradient: Any
) -> None:
    for chunk in range(known.shape[0]):
        for edge in range(known.shape[1]):
            gradient, vector, relation = queries_gradient[chunk, edge], known[chunk, edge], table[keys[chunk, edge]]
            to_known, to_relation = known_gradient[chunk, edge], relation_gradient[chunk, edge]
            for column in range(len(gradient)):
                to_known[column] = gradient[column] * relation[column]
                to_relation[column] = gradient[column] * vector[column]


# A conjugate factor turns the map around: for a head asked for, the tail times the conjugate of the relation.
@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _multiply_complex(known: Any, keys: Any, table: Any, inverse: bool, queries: Any) -> None:
    sign = np.float32(-1.0 if inverse else 1.0)
    half = known.shape[2] // 2
    for chunk in range(known.shape[0]):
        for edge in range(known.shape[1]):
            vector, relation, query = known[chunk, edge], table[keys[chunk, edge]], queries[chunk, edge]
            for column in range(half):
                real, imaginary = relation[column], sign * relation[half + column]
                query[column] = vector[column] * real - vector[half + column] * imaginary
                query[half + column] = vector[column] * imaginary + vector[half + column] * real


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _multiply_complex_backward(
    queries_gradient: Any, known: Any, keys: Any, table: Any, inverse: bool, known_gradient: Any, relation_gradient: Any
) -> None:
    sign = np.float32(-1.0 if inverse else 1.0)
    half = known.shape[2] // 2
    for chunk in range(known.shape[0]):
        for edge in range(known.shape[1]):
            gradient, vector, relation = queries_gradient[chunk, edge], known[chunk, edge], table[keys[chunk, edge]]
            to_known, to_relation = known_gradient[chunk, edge], relation_gradient[chunk, edge]
            for column in range(half):
                real, imaginary = relation[column], sign * relation[half + column]
                first, second = gradient[column], gradient[half + column]
                to_known[column] = first * real + second * imaginary
                to_known[half + column] = second * real - first * imaginary
                to_relation[column] = first * vector[column] + second * vector[half + column]
                to_relation[half + column] = sign * (second * vector[column] - first * vector[half + column])


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _rotate_backward(
    queries_gradient: Any, known: Any, keys: Any, table: Any, inverse: bool, known_gradient: Any, relation_gradient: Any
) -> None:
    sign = np.float32(-1.0 if inverse else 1.0)
    half = known.shape[2] // 2
    for chunk in range(known.shape[0]):
        for edge in range(known.shape[1]):
            gradient, vector, relation = queries_gradient[chunk, edge], known[chunk, edge], table[keys[chunk, edge]]
            to_known, to_angle = known_gradient[chunk, edge], relation_gradient[chunk, edge]
            for column in range(half):
                cosine, sine = relation[column], sign * relation[half + column]
                first, second = gradient[column], gradient[half + column]
                to_known[column] = first * cosine + second * sine
                to_known[half + column] = second * cosine - first * sine
                to_cosine = first * vector[column] + second * vector[half + column]
                to_sine = second * vector[column] - first * vector[half + column]
                to_angle[column] = sign * (cosine * to_sine - sine * to_cosine)


def _unit_numbers(angles: NDArray[np.float32], keys: NDArray[np.int32], table: NDArray[np.float32]) -> None:
    """Write cosines and sines of the named relations' angles."""
    half = angles.shape[1]
    chosen = angles[keys]
    table[keys, :half] = np.cos(chosen)
    table[keys, half:] = np.sin(chosen)


ADDITION = Translation(_add, _add_backward)
PRODUCT = Translation(_multiply, _multiply_backward)
COMPLEX_PRODUCT = Translation(_multiply_complex, _multiply_complex_backward)
ROTATION = Translation(_multiply_complex, _rotate_backward, _unit_numbers)
