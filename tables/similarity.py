"""Similarities of a chunk's queries and keys: scores, and the gradients of queries and keys from those of the scores.

Every query [B, D] meets every key [N, D]. All arrays are float32 and contiguous, and every result is written into what the
caller gives. `score` and `differentiate` are kernels: they are called from other kernels, and from Python in tests.

    DOT                  q.k
    SQUARED_EUCLIDEAN    -|q - k|^2      as 2 q.k - |k|^2 - |q|^2, so by the same matrix product
    EUCLIDEAN            -|q - k|        likewise, then its root
    MANHATTAN            -sum |q - k|    pair by pair: no matrix product gives it
    MODULI               -sum of the moduli of complex q - k, the real parts in the first half, the imaginary ones in the second
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import numba
import numpy as np

from multifacet.tables.gemm import gemm

__all__ = ["Similarity", "differentiate", "score"]


class Similarity(IntEnum):
    """A similarity, by the number that kernels know it by."""

    DOT = 0
    SQUARED_EUCLIDEAN = 1
    EUCLIDEAN = 2
    MANHATTAN = 3
    MODULI = 4


_SMALLEST_SQUARE: Final = np.float32(1e-12)
_FAST: Final = {"reassoc", "contract", "arcp", "nsz"}


@numba.njit(nogil=True, cache=True, inline="always")
def score(similarity: int, queries: Any, keys: Any, scores: Any) -> None:
    """Write the scores [B, N]."""
    if similarity < Similarity.MANHATTAN:
        gemm(queries, False, keys, True, scores)
        if similarity != Similarity.DOT:
            _to_distances(scores, queries, keys, similarity == Similarity.EUCLIDEAN)
    else:
        _measure_pairs(queries, keys, scores, similarity == Similarity.MODULI)


@numba.njit(nogil=True, cache=True, inline="always")
def differentiate(
    similarity: int, gradients: Any, queries: Any, keys: Any, scores: Any, queries_gradient: Any, keys_gradient: Any
) -> None:
    """Write the gradients of queries [B, D] and keys [N, D].

    Args:
        similarity: which one.
        gradients: those of the scores, [B, N]; may be overwritten.
        queries: as in `score`.
        keys: as in `score`.
        scores: what `score` wrote, which a loss overwrites: of EUCLIDEAN a copy; the others do not read it.
        queries_gradient: written.
        keys_gradient: written.
    """
    if similarity < Similarity.MANHATTAN:
        if similarity == Similarity.EUCLIDEAN:
            _divide_by_roots(gradients, scores)
        gemm(gradients, False, keys, False, queries_gradient)
        gemm(gradients, True, queries, False, keys_gradient)
        if similarity != Similarity.DOT:
            _to_distance_gradients(gradients, queries, keys, queries_gradient, keys_gradient)
    else:
        _pull_pairs(gradients, queries, keys, queries_gradient, keys_gradient, similarity == Similarity.MODULI)


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _square(vector: Any) -> Any:
    total = np.float32(0.0)
    for column in range(len(vector)):
        total += vector[column] * vector[column]
    return total


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _to_distances(scores: Any, queries: Any, keys: Any, takes_root: bool) -> None:
    """Turn products into minus the squared distances, or their roots."""
    two = np.float32(2.0)
    key_squares = np.empty(len(keys), dtype=np.float32)
    for key in range(len(keys)):
        key_squares[key] = _square(keys[key])
    for query in range(scores.shape[0]):
        row = scores[query]
        square = _square(queries[query])
        for key in range(len(row)):
            row[key] = two * row[key] - key_squares[key] - square
        if takes_root:
            for key in range(len(row)):
                row[key] = -np.sqrt(max(-row[key], _SMALLEST_SQUARE))


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _divide_by_roots(gradients: Any, scores: Any) -> None:
    """Turn gradients of minus a distance into those of minus its square."""
    half = np.float32(-0.5)
    for query in range(gradients.shape[0]):
        row, root = gradients[query], scores[query]
        for key in range(len(row)):
            row[key] = row[key] * half / root[key]


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _to_distance_gradients(gradients: Any, queries: Any, keys: Any, queries_gradient: Any, keys_gradient: Any) -> None:
    """Turn the gradients of products into those of minus the squared distances.

    Of -|q - k|^2 weighed with g they are 2 g (k - q) for the query, 2 g (q - k) for the key.
    """
    two = np.float32(2.0)
    columns = np.zeros(len(keys), dtype=np.float32)
    for query in range(len(queries)):
        row, total = gradients[query], np.float32(0.0)
        for key in range(len(row)):
            total += row[key]
            columns[key] += row[key]
        target, vector = queries_gradient[query], queries[query]
        for column in range(len(target)):
            target[column] = two * (target[column] - total * vector[column])
    for key in range(len(keys)):
        target, vector, total = keys_gradient[key], keys[key], columns[key]
        for column in range(len(target)):
            target[column] = two * (target[column] - total * vector[column])


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _measure_pairs(queries: Any, keys: Any, scores: Any, is_complex: bool) -> None:
    """Write minus the sums of absolute differences, or of the moduli of complex ones."""
    half = queries.shape[1] // 2
    for query in range(scores.shape[0]):
        left, row = queries[query], scores[query]
        for key in range(len(row)):
            right, total = keys[key], np.float32(0.0)
            if is_complex:
                for column in range(half):
                    real = left[column] - right[column]
                    imaginary = left[half + column] - right[half + column]
                    total += np.sqrt(real * real + imaginary * imaginary + _SMALLEST_SQUARE)
            else:
                for column in range(len(left)):
                    total += abs(left[column] - right[column])
            row[key] = -total


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _pull_pairs(gradients: Any, queries: Any, keys: Any, queries_gradient: Any, keys_gradient: Any, is_complex: bool) -> None:
    """Write the gradients of minus the pairs' distances."""
    zero = np.float32(0.0)
    half = queries.shape[1] // 2
    keys_gradient[:] = zero
    queries_gradient[:] = zero
    for query in range(gradients.shape[0]):
        left, left_gradient = queries[query], queries_gradient[query]
        for key in range(gradients.shape[1]):
            gradient, right, right_gradient = gradients[query, key], keys[key], keys_gradient[key]
            if gradient == zero:
                continue
            if is_complex:
                for column in range(half):
                    real = right[column] - left[column]
                    imaginary = right[half + column] - left[half + column]
                    slope = gradient / np.sqrt(real * real + imaginary * imaginary + _SMALLEST_SQUARE)
                    left_gradient[column] += slope * real
                    right_gradient[column] -= slope * real
                    left_gradient[half + column] += slope * imaginary
                    right_gradient[half + column] -= slope * imaginary
            else:
                for column in range(len(left)):
                    difference = right[column] - left[column]
                    # Where the two are equal, any slope within -1..1 will do; 0 is the one of autograd.
                    change = gradient if difference > zero else (-gradient if difference < zero else zero)
                    left_gradient[column] += change
                    right_gradient[column] -= change
