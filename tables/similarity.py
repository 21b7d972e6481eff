"""Similarities of queries and keys in chunks: scores, and the gradients of queries and keys from those of the scores.

Queries are [C, B, D] and keys [C, N, D]: every query of a chunk meets every key of its chunk. All are float32 on the CPU, and
every result is written into what the caller gives.

    Dot                  q.k
    SquaredEuclidean     -|q - k|^2      as 2 q.k - |k|^2 - |q|^2, so by the same matrix product
    Euclidean            -|q - k|        likewise, then its root
    Manhattan            -sum |q - k|    a kernel of its own: no matrix product gives it
    Moduli               -sum of the moduli of complex q - k, the real parts in the first half, the imaginary ones in the second
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np
import torch
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["Dot", "Euclidean", "Manhattan", "Moduli", "Similarity", "SquaredEuclidean"]

_SMALLEST_SQUARE: Final = np.float32(1e-12)


class Similarity(ABC):
    """A similarity. It keeps nothing between calls, so that threads may share one."""

    @abstractmethod
    def forward(self, queries: Tensor, keys: Tensor, scores: Tensor) -> None:
        """Write the scores [C, B, N]."""

    @abstractmethod
    def backward(
        self,
        gradients: Tensor,
        queries: Tensor,
        keys: Tensor,
        scores: Tensor | None,
        queries_gradient: Tensor,
        keys_gradient: Tensor,
    ) -> None:
        """Write the gradients of queries [C, B, D] and keys [C, N, D].

        Args:
            gradients: those of the scores, [C, B, N]; may be overwritten.
            queries: as in `forward`.
            keys: as in `forward`.
            scores: those of `forward` if `needs_scores`, else None.
            queries_gradient: written.
            keys_gradient: written.
        """

    @property
    def needs_scores(self) -> bool:
        """Whether `backward` has to be given the scores, which a loss overwrites."""
        return False

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Dot(Similarity):
    """Dot product."""

    @override
    def forward(self, queries: Tensor, keys: Tensor, scores: Tensor) -> None:
        torch.bmm(queries, keys.transpose(1, 2), out=scores)

    @override
    def backward(
        self,
        gradients: Tensor,
        queries: Tensor,
        keys: Tensor,
        scores: Tensor | None,
        queries_gradient: Tensor,
        keys_gradient: Tensor,
    ) -> None:
        torch.bmm(gradients, keys, out=queries_gradient)
        torch.bmm(gradients.transpose(1, 2), queries, out=keys_gradient)


class SquaredEuclidean(Dot):
    """Minus the squared Euclidean distance."""

    @override
    def forward(self, queries: Tensor, keys: Tensor, scores: Tensor) -> None:
        super().forward(queries, keys, scores)
        _to_squares(scores.numpy(), queries.numpy(), keys.numpy())

    @override
    def backward(
        self,
        gradients: Tensor,
        queries: Tensor,
        keys: Tensor,
        scores: Tensor | None,
        queries_gradient: Tensor,
        keys_gradient: Tensor,
    ) -> None:
        # Of -|q - k|^2 weighed with g: 2 g (k - q) for the query, 2 g (q - k) for the key.
        rows, columns = _double_and_sum(gradients.numpy())
        super().backward(gradients, queries, keys, scores, queries_gradient, keys_gradient)
        _subtract_multiples(queries_gradient.numpy(), queries.numpy(), rows)
        _subtract_multiples(keys_gradient.numpy(), keys.numpy(), columns)


class Euclidean(SquaredEuclidean):
    """Minus the Euclidean distance."""

    @property
    @override
    def needs_scores(self) -> bool:
        return True

    @override
    def forward(self, queries: Tensor, keys: Tensor, scores: Tensor) -> None:
        super().forward(queries, keys, scores)
        _to_roots(scores.numpy())

    @override
    def backward(
        self,
        gradients: Tensor,
        queries: Tensor,
        keys: Tensor,
        scores: Tensor | None,
        queries_gradient: Tensor,
        keys_gradient: Tensor,
    ) -> None:
        if scores is None:
            raise ValueError("Euclidean.backward needs the scores of forward: copy them before the loss overwrites them")
        _divide_by_roots(gradients.numpy(), scores.numpy())
        super().backward(gradients, queries, keys, None, queries_gradient, keys_gradient)


class _Elementwise(Similarity):
    """A sum over coordinates that is no product: kernels that keep a few keys at a time in the cache."""

    def __init__(self, forward: Callable[..., None], backward: Callable[..., None]) -> None:
        self._forward = forward
        self._backward = backward

    @override
    def forward(self, queries: Tensor, keys: Tensor, scores: Tensor) -> None:
        self._forward(queries.numpy(), keys.numpy(), scores.numpy())

    @override
    def backward(
        self,
        gradients: Tensor,
        queries: Tensor,
        keys: Tensor,
        scores: Tensor | None,
        queries_gradient: Tensor,
        keys_gradient: Tensor,
    ) -> None:
        self._backward(gradients.numpy(), queries.numpy(), keys.numpy(), queries_gradient.numpy(), keys_gradient.numpy())


class Manhattan(_Elementwise):
    """Minus the sum of absolute differences."""

    def __init__(self) -> None:
        super().__init__(_manhattan, _manhattan_backward)


class Moduli(_Elementwise):
    """Minus the sum of the moduli of complex differences, RotatE's own distance (Sun et al., ICLR 2019)."""

    def __init__(self) -> None:
        super().__init__(_moduli, _moduli_backward)


_FAST: Final = {"reassoc", "contract", "arcp", "nsz"}


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _square(vector: Any) -> Any:
    total = np.float32(0.0)
    for column in range(len(vector)):
        total += vector[column] * vector[column]
    return total


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _to_squares(scores: Any, queries: Any, keys: Any) -> None:
    two = np.float32(2.0)
    key_squares = np.empty(keys.shape[1], dtype=np.float32)
    for chunk in range(scores.shape[0]):
        for key in range(keys.shape[1]):
            key_squares[key] = _square(keys[chunk, key])
        for query in range(scores.shape[1]):
            row = scores[chunk, query]
            square = _square(queries[chunk, query])
            for key in range(len(row)):
                row[key] = two * row[key] - key_squares[key] - square


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _to_roots(scores: Any) -> None:
    for chunk in range(scores.shape[0]):
        for query in range(scores.shape[1]):
            row = scores[chunk, query]
            for key in range(len(row)):
                row[key] = -np.sqrt(max(-row[key], _SMALLEST_SQUARE))


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _divide_by_roots(gradients: Any, scores: Any) -> None:
    """Turn gradients of minus a distance into those of minus its square."""
    half = np.float32(-0.5)
    for chunk in range(scores.shape[0]):
        for query in range(scores.shape[1]):
            row = gradients[chunk, query]
            root = scores[chunk, query]
            for key in range(len(row)):
                row[key] = row[key] * half / root[key]


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _double_and_sum(gradients: Any) -> tuple[Any, Any]:
    num_chunks, num_queries, num_keys = gradients.shape
    rows = np.zeros((num_chunks, num_queries), dtype=np.float32)
    columns = np.zeros((num_chunks, num_keys), dtype=np.float32)
    two = np.float32(2.0)
    for chunk in range(num_chunks):
        for query in range(num_queries):
            row = gradients[chunk, query]
            total = np.float32(0.0)
            for key in range(num_keys):
                value = two * row[key]
                row[key] = value
                total += value
                columns[chunk, key] += value
            rows[chunk, query] = total
    return rows, columns


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _subtract_multiples(targets: Any, vectors: Any, factors: Any) -> None:
    for chunk in range(targets.shape[0]):
        for row in range(targets.shape[1]):
            factor = factors[chunk, row]
            for column in range(targets.shape[2]):
                targets[chunk, row, column] -= factor * vectors[chunk, row, column]


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _manhattan(queries: Any, keys: Any, scores: Any) -> None:
    for chunk in range(scores.shape[0]):
        for query in range(scores.shape[1]):
            left = queries[chunk, query]
            for key in range(scores.shape[2]):
                right = keys[chunk, key]
                total = np.float32(0.0)
                for column in range(len(left)):
                    total += abs(left[column] - right[column])
                scores[chunk, query, key] = -total


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _manhattan_backward(gradients: Any, queries: Any, keys: Any, queries_gradient: Any, keys_gradient: Any) -> None:
    zero = np.float32(0.0)
    keys_gradient[:] = zero
    for chunk in range(gradients.shape[0]):
        for query in range(gradients.shape[1]):
            left = queries[chunk, query]
            left_gradient = queries_gradient[chunk, query]
            left_gradient[:] = zero
            for key in range(gradients.shape[2]):
                gradient = gradients[chunk, query, key]
                if gradient == zero:
                    continue
                right = keys[chunk, key]
                right_gradient = keys_gradient[chunk, key]
                for column in range(len(left)):
                    difference = right[column] - left[column]
                    # Where the two are equal, any slope within -1..1 will do; 0 is the one of autograd.
                    change = gradient if difference > zero else (-gradient if difference < zero else zero)
                    left_gradient[column] += change
                    right_gradient[column] -= change


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _moduli(queries: Any, keys: Any, scores: Any) -> None:
    half = queries.shape[2] // 2
    for chunk in range(scores.shape[0]):
        for query in range(scores.shape[1]):
            left = queries[chunk, query]
            for key in range(scores.shape[2]):
                right = keys[chunk, key]
                total = np.float32(0.0)
                for column in range(half):
                    real = left[column] - right[column]
                    imaginary = left[half + column] - right[half + column]
                    total += np.sqrt(real * real + imaginary * imaginary + _SMALLEST_SQUARE)
                scores[chunk, query, key] = -total


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _moduli_backward(gradients: Any, queries: Any, keys: Any, queries_gradient: Any, keys_gradient: Any) -> None:
    zero = np.float32(0.0)
    half = queries.shape[2] // 2
    keys_gradient[:] = zero
    for chunk in range(gradients.shape[0]):
        for query in range(gradients.shape[1]):
            left = queries[chunk, query]
            left_gradient = queries_gradient[chunk, query]
            left_gradient[:] = zero
            for key in range(gradients.shape[2]):
                gradient = gradients[chunk, query, key]
                if gradient == zero:
                    continue
                right = keys[chunk, key]
                right_gradient = keys_gradient[chunk, key]
                for column in range(half):
                    real = right[column] - left[column]
                    imaginary = right[half + column] - left[half + column]
                    slope = gradient / np.sqrt(real * real + imaginary * imaginary + _SMALLEST_SQUARE)
                    left_gradient[column] += slope * real
                    right_gradient[column] -= slope * real
                    left_gradient[half + column] += slope * imaginary
                    right_gradient[half + column] -= slope * imaginary
