"""Random walks along a metapath."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np
import torch
from torch import Tensor

from multifacet.graphdb.counter import derive_key, draw_below, draw_unit, key_at
from multifacet.graphdb.reverse import INVERSE, parse_step
from multifacet.graphdb.sampling.neighbors import first_above, first_not_before
from multifacet.graphdb.sampling.stream import Stream
from multifacet.graphdb.sampling.topology import Topology
from multifacet.graphdb.sql import GraphError
from multifacet.graphdb.threads import run_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.graphdb.sampling.adjacency import Adjacency
    from multifacet.graphdb.view import GraphView

_MIN_WALKS_PER_THREAD: Final = 1 << 12
_BLOCK: Final = 256
_NO_TIMES: Final = np.empty(0, np.int64)
_NO_SUMS: Final = np.empty(0, np.float64)


class MetapathWalker:
    """Walks from node to node along a fixed sequence of relations, repeated as long as the walk lasts.

    A step `"responds"` goes along a user-responds-pin edge, from user to pin; `"responds^-1"` goes back. Each step takes one
    of the node's edges, uniformly or in proportion to the weights of a weighted topology. A plain random walk on one
    relation is the metapath of that relation alone (where it joins nodes of one type), or of the relation and its inverse.

    Args:
        topology: The graph, with reversed relations: `Topology.from_view(view, reverse=True)`.
        metapath: The steps, at least one; each begins at the type where the one before ends.
        seed: Seed of the walks.

    Attributes:
        metapath: The steps.
        node_types: Type of the node before the first step, and after each step.

    Raises:
        GraphError: No step, an unknown relation, steps that do not join, or a topology without reversed relations.

    Example:
        >>> from multifacet.graphdb.sampling import Adjacency
        >>> ends = np.array([0, 1], np.int32), np.array([1, 2], np.int32)
        >>> links = Adjacency.from_edges(("page", "rev_links", "page"), *ends[::-1], num_src=3, num_dst=3)
        >>> MetapathWalker(Topology({"page": 3}, [links]), ["links"]).walk(torch.tensor([0, 2]), length=3)
        tensor([[ 0,  1,  2, -1],
                [ 2, -1, -1, -1]], dtype=torch.int32)
    """

    def __init__(self, topology: Topology, metapath: Sequence[str], *, seed: int = 0) -> None:
        if not metapath:
            msg = f"a metapath needs at least one step, such as 'responds' or 'responds{INVERSE}'"
            raise GraphError(msg)
        self.metapath = tuple(metapath)
        self._steps = [_adjacency(topology, step) for step in self.metapath]
        self._num_nodes = topology.num_nodes
        types = [(adjacency.edge_type[2], adjacency.edge_type[0]) for adjacency in self._steps]
        for (step, (_, end)), (after, (start, _)) in itertools.pairwise(zip(self.metapath, types, strict=True)):
            if start != end:
                msg = f"step {step!r} ends at {end!r}, but the next, {after!r}, begins at {start!r}; mend the metapath"
                raise GraphError(msg)
        self.node_types = (types[0][0], *(end for _, end in types))
        self._stream = Stream(seed)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({' -> '.join(self.metapath)})"

    @classmethod
    def from_view(cls, view: GraphView, metapath: Sequence[str], *, weighted: bool = False, seed: int = 0) -> MetapathWalker:
        """A walker over the relations of a window that the metapath names.

        Args:
            view: The window.
            metapath: The steps.
            weighted: Whether steps along weighted relations go in proportion to the weights.
            seed: Seed of the walks.
        """
        known = [relation.name for relation in view.relations]
        names = dict.fromkeys(parse_step(step, known)[0] for step in metapath)
        return cls(Topology.from_view(view, relations=names, reverse=True, weighted=weighted), metapath, seed=seed)

    def walk(self, starts: Tensor, *, length: int | None = None, times: Tensor | None = None) -> Tensor:
        """Walks once from each start.

        Args:
            starts: Integers [n], idx of the metapath's first type.
            length: Steps to walk; the metapath once by default. Beyond that it is repeated, so it must end where it begins.
            times: int64 [n] microseconds; a walk takes only edges strictly before its time (untimed relations: any edge).

        Returns:
            int32 [n, length + 1]: the start, then the node after each step; -1 from the first dead end on.

        Raises:
            GraphError: A start out of range, a length that the metapath cannot reach, or times that do not fit.
        """
        length = len(self._steps) if length is None else length
        if length < 0 or (length > len(self._steps) and self.node_types[0] != self.node_types[-1]):
            msg = (
                f"length={length}: the metapath {self!r} has {len(self._steps)} steps and ends at {self.node_types[-1]!r}; "
                f"it can be repeated only if it ends at {self.node_types[0]!r}"
            )
            raise GraphError(msg)
        _check_starts(starts, self.node_types[0], self._num_nodes[self.node_types[0]])
        if times is not None and (times.shape != starts.shape or times.is_floating_point()):
            msg = f"times are {times.dtype} {list(times.shape)}, expected int64 {list(starts.shape)}, one for each start"
            raise GraphError(msg)
        walks = np.full((length + 1, len(starts)), -1, np.int32)
        walks[0] = starts.cpu().numpy()
        walk_times = None if times is None else times.cpu().long().contiguous().numpy()
        key = self._stream.next_key()
        for step in range(length):
            self._step(
                self._steps[step % len(self._steps)], walk_times, int(derive_key(key, step)), walks[step], walks[step + 1]
            )
        return torch.from_numpy(np.ascontiguousarray(walks.T))

    @staticmethod
    def _step(
        adjacency: Adjacency, times: NDArray[np.int64] | None, key: int, nodes: NDArray[np.int32], reached: NDArray[np.int32]
    ) -> None:
        timed = times is not None and adjacency.time is not None
        if not timed and adjacency.cumulative is None:
            uniform = adjacency.colptr, adjacency.row, np.uint64(key), nodes, reached
            run_ranges(
                lambda start, stop: _advance_uniformly(*uniform, start, stop), len(nodes), min_size=_MIN_WALKS_PER_THREAD
            )
            return
        arrays = (
            adjacency.colptr,
            adjacency.row,
            adjacency.time if timed else _NO_TIMES,
            times if timed else _NO_TIMES,
            _NO_SUMS if adjacency.cumulative is None else adjacency.cumulative,
            np.uint64(key),
            nodes,
            reached,
        )
        run_ranges(lambda start, stop: _advance(*arrays, start, stop), len(nodes), min_size=_MIN_WALKS_PER_THREAD)


def _adjacency(topology: Topology, step: str) -> Adjacency:
    """The in-edges along whose other ends a step goes: those of the reversed relation for a step along it."""
    if step.endswith(INVERSE):
        return topology.step(step)
    try:
        return topology.step(step)
    except GraphError as error:
        msg = f"step {step!r} needs the relation's reverse: {error}; build the topology with reverse=True"
        raise GraphError(msg) from error


def _check_starts(starts: Tensor, node_type: str, num_nodes: int) -> None:
    if starts.dim() != 1 or starts.is_floating_point():
        msg = f"starts are {starts.dtype} {list(starts.shape)}, expected integers [n]"
        raise GraphError(msg)
    if len(starts) and (int(starts.min()) < 0 or int(starts.max()) >= num_nodes):
        position = int(((starts < 0) | (starts >= num_nodes)).nonzero()[0])
        msg = f"starts[{position}] is {int(starts[position])}; {node_type!r} has nodes 0 to {num_nodes - 1}"
        raise GraphError(msg)


@numba.njit(nogil=True, cache=True)
def _advance_uniformly(colptr: Any, row: Any, key: Any, nodes: Any, reached: Any, start: int, stop: int) -> None:
    """Moves each walk along one of its edges.

    Block by block, and in a block first all columns, then all draws, then all neighbours: so the processor waits for many
    reads of memory at once. `edges` is -1 where a walk has ended.
    """
    firsts, edges = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    for block in range(start, stop, _BLOCK):
        size = min(_BLOCK, stop - block)
        for place in range(size):
            node = nodes[block + place]
            column = max(node, 0)
            firsts[place] = colptr[column]
            edges[place] = colptr[column + 1] - colptr[column] if node >= 0 else 0
        for place in range(size):
            degree = edges[place]
            edges[place] = -1
            if degree > 0:
                drawn, _ = draw_below(key_at(key, block + place), 0, degree)
                edges[place] = firsts[place] + drawn
        for place in range(size):
            edge = edges[place]
            if edge >= 0:
                reached[block + place] = row[edge]


@numba.njit(nogil=True, cache=True)
def _advance(
    colptr: Any,
    row: Any,
    edge_time: Any,
    walk_time: Any,
    cumulative: Any,
    key: Any,
    nodes: Any,
    reached: Any,
    start: int,
    stop: int,
) -> None:
    for walk in range(start, stop):
        node = nodes[walk]
        if node < 0:
            continue
        first, end = colptr[node], colptr[node + 1]
        if len(walk_time):
            end = first_not_before(edge_time, first, end, walk_time[walk])
        if end <= first:
            continue
        own_key = key_at(key, walk)
        if len(cumulative):
            unit, _ = draw_unit(own_key, 0)
            reached[walk] = row[first_above(cumulative, first, end, unit * cumulative[end - 1])]
        else:
            drawn, _ = draw_below(own_key, 0, end - first)
            reached[walk] = row[first + drawn]
