"""Negative nodes of one type, drawn in proportion to degree^alpha."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Self

import numba
import numpy as np
import torch
from torch import Tensor

from multifacet.graphdb.counter import draw_below, draw_unit, key_at
from multifacet.graphdb.sampling.neighbors import first_above
from multifacet.graphdb.sampling.stream import Stream
from multifacet.graphdb.sql import GraphError
from multifacet.graphdb.threads import run_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.graphdb.view import GraphView

_MIN_DRAWS_PER_THREAD: Final = 1 << 14


class NegativeSampler:
    """Draws nodes of one type, independently and with replacement, with P(node) proportional to degree^alpha.

    alpha = 0 is uniform over all nodes of the type, also those without an edge; alpha = 0.75 is word2vec's choice
    (Mikolov et al. 2013); alpha = 1 is the distribution of in-batch negatives. A draw costs the same at any number of nodes
    (Walker's alias method, as built by Vose 1991).

    Args:
        degrees: [n], each node's degree, or any weight; finite and not negative.
        alpha: The exponent, at least 0.
        seed: Seed of the draws.
        first_seen: int64 [n], from when on each node exists: draws that have a time then take nodes seen by it.

    Raises:
        GraphError: A degree that is negative, NaN or infinite; no node to draw; or a negative alpha.

    Example:
        >>> negatives = NegativeSampler(torch.tensor([0, 5, 0]), alpha=0.75)
        >>> negatives.sample(4).tolist()
        [1, 1, 1, 1]
    """

    def __init__(
        self, degrees: Tensor, *, alpha: float = 0.75, seed: int = 0, first_seen: NDArray[np.int64] | None = None
    ) -> None:
        weights = degrees.detach().cpu().double().reshape(-1).numpy()
        bad = ~(weights >= 0) | np.isinf(weights)
        if bad.any():
            position = int(np.flatnonzero(bad)[0])
            msg = f"the degree of node {position} is {weights[position]}, expected a finite number that is not negative"
            raise GraphError(msg)
        if not alpha >= 0:
            msg = f"alpha={alpha}, expected 0 (uniform) or more"
            raise GraphError(msg)
        weights = weights**alpha
        total = float(weights.sum())
        if not 0 < total < math.inf:
            msg = f"no node can be drawn: {len(weights)} degrees^{alpha} add up to {total}; alpha=0 draws uniformly"
            raise GraphError(msg)
        self.alpha = alpha
        self._probabilities = weights / total
        self._stream = Stream(seed)
        self._threshold, self._alias = _alias_table(self._probabilities)
        self._first_seen = first_seen
        self._history = None if first_seen is None else _History.of(self._probabilities, first_seen)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_nodes={len(self._probabilities)}, alpha={self.alpha:g})"

    @classmethod
    def from_view(
        cls, view: GraphView, node_type: str, *, relations: Sequence[str] | None = None, alpha: float = 0.75, seed: int = 0
    ) -> Self:
        """Negatives by the degrees of a window.

        Args:
            view: The window.
            node_type: Type to draw.
            relations: Relations whose edges count, at either end; all of the view's by default.
            alpha: The exponent.
            seed: Seed of the draws.

        Raises:
            GraphError: An unknown type or relation, or no edge at all at nodes of this type with alpha above 0.
        """
        view.schema.node(node_type)
        degrees = torch.zeros(view.num_nodes[node_type], dtype=torch.int64)
        for name in [relation.name for relation in view.relations] if relations is None else relations:
            edges, declared = view.edges(name), view.schema.relation(name)
            for end, idx in ((declared.src, edges.src), (declared.dst, edges.dst)):
                if end == node_type:
                    degrees += torch.bincount(idx, minlength=len(degrees))
        return cls(degrees, alpha=alpha, seed=seed)

    @property
    def probabilities(self) -> Tensor:
        """Probability of each node in one draw, float64 [n]: what a logQ correction subtracts the log of."""
        return torch.from_numpy(self._probabilities)

    def sample(self, size: int | Sequence[int]) -> Tensor:
        """Draws negatives; the n-th call of two samplers with one seed draws the same.

        Args:
            size: Number of draws, or a shape.

        Returns:
            int32 of that shape, idx.
        """
        return self.draw(size, self._stream.next_key())

    def draw(self, size: int | Sequence[int], key: int, *, times: NDArray[np.int64] | None = None) -> Tensor:
        """Draws negatives from a key of the caller's; int32, idx.

        Args:
            size: Number of draws, or a shape.
            key: 64-bit key.
            times: int64, one for each draw: only nodes first seen at or before it are drawn, in proportion to their weights.
                Needs `first_seen`.

        Raises:
            GraphError: No node that can be drawn had been seen at one of the times.
        """
        shape = (size,) if isinstance(size, int) else tuple(size)
        out = np.empty(math.prod(shape), np.int32)
        wide_key = np.uint64(key)
        if times is None:
            run_ranges(
                lambda start, stop: _draw(self._threshold, self._alias, wide_key, out, start, stop),
                len(out),
                min_size=_MIN_DRAWS_PER_THREAD,
            )
            return torch.from_numpy(out).reshape(shape)
        history = self._history
        if history is None:
            msg = "draws with times need to know when each node was first seen; give NegativeSampler first_seen"
            raise GraphError(msg)
        run_ranges(
            lambda start, stop: _draw_by(history.since, history.nodes, history.cumulative, times, wide_key, out, start, stop),
            len(out),
            min_size=_MIN_DRAWS_PER_THREAD,
        )
        if len(out) and out.min() < 0:
            time = int(times[int(out.argmin())])
            msg = (
                f"no node that can be drawn had been seen at the time {time} (microseconds since 1970) of a link; "
                "leave out links before the first nodes, or negative_alpha, which nodes without an edge cannot meet"
            )
            raise GraphError(msg)
        return torch.from_numpy(out).reshape(shape)

    def weights(self, times: NDArray[np.int64] | None) -> NDArray[np.float64]:
        """The probability of each node, up to a factor, at a time of shape [1], or at any; float64 [n]."""
        if times is None or self._first_seen is None:
            return self._probabilities.copy()
        weights: NDArray[np.float64] = np.where(self._first_seen <= times[0], self._probabilities, 0.0)
        return weights


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _History:
    """The nodes that can be drawn, in the order in which they were first seen.

    Attributes:
        since: int64 [m], ascending.
        nodes: int32 [m].
        cumulative: float64 [m], running sums of their probabilities.
    """

    since: NDArray[np.int64]
    nodes: NDArray[np.int32]
    cumulative: NDArray[np.float64]

    @classmethod
    def of(cls, probabilities: NDArray[np.float64], first_seen: NDArray[np.int64]) -> _History:
        nodes = np.flatnonzero(probabilities)
        nodes = nodes[np.argsort(first_seen[nodes], kind="stable")]
        return cls(since=first_seen[nodes], nodes=nodes.astype(np.int32), cumulative=np.cumsum(probabilities[nodes]))


@numba.njit(nogil=True, cache=True)
def _alias_table(probabilities: Any) -> Any:
    """Thresholds float64 [n] and aliases int32 [n] (Vose 1991)."""
    num_nodes = len(probabilities)
    threshold = probabilities * num_nodes
    alias = np.empty(num_nodes, np.int32)
    small, large = np.empty(num_nodes, np.int32), np.empty(num_nodes, np.int32)
    num_small, num_large = 0, 0
    for node in range(num_nodes):
        alias[node] = node
        if threshold[node] < 1.0:
            small[num_small] = node
            num_small += 1
        else:
            large[num_large] = node
            num_large += 1
    while num_small and num_large:
        num_small -= 1
        poor, rich = small[num_small], large[num_large - 1]
        alias[poor] = rich
        threshold[rich] -= 1.0 - threshold[poor]
        if threshold[rich] < 1.0:
            num_large -= 1
            small[num_small] = rich
            num_small += 1
    # What is left is 1 but for rounding; a node of probability 0 must not profit from that.
    for position in range(num_small):
        node = small[position]
        if probabilities[node] > 0:
            threshold[node] = 1.0
        else:
            alias[node] = np.argmax(probabilities)
    return threshold, alias


@numba.njit(nogil=True, cache=True)
def _draw(threshold: Any, alias: Any, key: Any, out: Any, start: int, stop: int) -> None:
    for position in range(start, stop):
        own_key = key_at(key, position)
        node, counter = draw_below(own_key, 0, len(threshold))
        unit, counter = draw_unit(own_key, counter)
        out[position] = node if unit < threshold[node] else alias[node]


@numba.njit(nogil=True, cache=True)
def _draw_by(since: Any, nodes: Any, cumulative: Any, times: Any, key: Any, out: Any, start: int, stop: int) -> None:
    """Draws among the nodes that had been seen at each time; -1 where there was none."""
    for position in range(start, stop):
        end = first_after(since, times[position])
        if end == 0:
            out[position] = -1
            continue
        unit, _ = draw_unit(key_at(key, position), 0)
        out[position] = nodes[first_above(cumulative, 0, end, unit * cumulative[end - 1])]


@numba.njit(nogil=True, cache=True)
def first_after(since: Any, time: int) -> int:
    """The number of ascending times that are not after `time`."""
    first, end = 0, len(since)
    while first < end:
        middle = (first + end) >> 1
        if since[middle] <= time:
            first = middle + 1
        else:
            end = middle
    return first
