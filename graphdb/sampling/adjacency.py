"""The in-edges of each node of one relation, laid out for sampling."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np

from multifacet.graphdb.merging import is_clustered
from multifacet.graphdb.reverse import EdgeType
from multifacet.graphdb.sql import GraphError
from multifacet.graphdb.threads import run_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MIN_COLUMNS_PER_THREAD: Final = 1 << 12
_MAX_DEGREE: Final = 1 << 32
_RUN: Final = 32


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Adjacency:
    """Compressed sparse columns of one relation: the in-neighbours of each dst node, oldest first.

    Edges whose weight is zero are left out: they can never be sampled.

    Attributes:
        edge_type: (src type, relation, dst type).
        colptr: int64 [num_dst + 1]; the in-edges of dst `d` are `colptr[d]:colptr[d + 1]`.
        row: int32 [E], src idx.
        time: int64 [E], ascending within a column, or None.
        weight: float32 [E], positive, or None.
        cumulative: float64 [E], running sums of the weights within a column, or None.
        permutation: int64 [E], position of each edge in the order in which the edges were given; None if that is the same.
    """

    edge_type: EdgeType
    colptr: NDArray[np.int64]
    row: NDArray[np.int32]
    time: NDArray[np.int64] | None = None
    weight: NDArray[np.float32] | None = None
    cumulative: NDArray[np.float64] | None = None
    permutation: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.row)

    @property
    def degrees(self) -> NDArray[np.int64]:
        """In-degree of each dst node, int64 [num_dst]."""
        return np.diff(self.colptr)

    @classmethod
    def from_edges(
        cls,
        edge_type: EdgeType,
        src: NDArray[np.int32],
        dst: NDArray[np.int32],
        *,
        num_src: int,
        num_dst: int,
        time: NDArray[np.int64] | None = None,
        weight: NDArray[np.float32] | None = None,
    ) -> Adjacency:
        """Compresses edges in any order; edges that are ordered by (dst, time) already are not copied.

        Args:
            edge_type: (src type, relation, dst type).
            src: int32 [E], contiguous.
            dst: int32 [E], contiguous.
            num_src: Nodes of the src type.
            num_dst: Nodes of the dst type.
            time: int64 [E], or None.
            weight: float32 [E], or None.

        Raises:
            GraphError: An idx out of range, or a weight that is negative, NaN or infinite; the message names the edge.
        """
        _refuse_out_of_range(edge_type, "src", src, num_src)
        _refuse_out_of_range(edge_type, "dst", dst, num_dst)
        permutation = None
        if weight is not None:
            _refuse_bad_weights(edge_type, weight)
            if not weight.all():
                permutation = np.flatnonzero(weight).astype(np.int64)
                src, dst, weight = src[permutation], dst[permutation], weight[permutation]
                time = None if time is None else time[permutation]
        colptr = _column_pointers(dst, num_dst)
        if len(dst) and int(np.diff(colptr).max()) >= _MAX_DEGREE:
            msg = f"relation {edge_type}: a node has 2^32 or more edges; cut the window"
            raise GraphError(msg)
        if not is_clustered(dst, time):
            order = _order_by_column(dst, colptr)
            if time is not None:
                run_ranges(
                    lambda start, stop: _sort_columns_by_time(colptr, time, order, start, stop),
                    num_dst,
                    min_size=_MIN_COLUMNS_PER_THREAD,
                )
                time = time[order]
            src = src[order]
            weight = None if weight is None else weight[order]
            permutation = order if permutation is None else permutation[order]
        return cls(
            edge_type=edge_type,
            colptr=colptr,
            row=src,
            time=time,
            weight=weight,
            cumulative=None if weight is None else _running_sums(colptr, weight),
            permutation=permutation,
        )


def _refuse_out_of_range(edge_type: EdgeType, end: str, idx: NDArray[np.int32], num_nodes: int) -> None:
    if len(idx) and (int(idx.min()) < 0 or int(idx.max()) >= num_nodes):
        position = int(np.flatnonzero((idx < 0) | (idx >= num_nodes))[0])
        msg = (
            f"relation {edge_type}: {end} of edge {position} is {int(idx[position])}, expected 0 to {num_nodes - 1}; "
            "set num_nodes of the node type, or mend the edge"
        )
        raise GraphError(msg)


def _refuse_bad_weights(edge_type: EdgeType, weight: NDArray[np.float32]) -> None:
    bad = ~(weight >= 0) | np.isinf(weight)
    if bad.any():
        position = int(np.flatnonzero(bad)[0])
        msg = (
            f"relation {edge_type}: the weight of edge {position} is {weight[position]}, expected a finite number that is "
            "not negative; mend the weights, or sample with weighted=False"
        )
        raise GraphError(msg)


@numba.njit(nogil=True, cache=True)
def _column_pointers(dst: Any, num_dst: int) -> Any:
    colptr = np.zeros(num_dst + 1, np.int64)
    for column in dst:
        colptr[column + 1] += 1
    for column in range(num_dst):
        colptr[column + 1] += colptr[column]
    return colptr


@numba.njit(nogil=True, cache=True)
def _order_by_column(dst: Any, colptr: Any) -> Any:
    """A stable counting argsort, int64 [E]."""
    order = np.empty(len(dst), np.int64)
    free = colptr[:-1].copy()
    for edge in range(len(dst)):
        column = dst[edge]
        order[free[column]] = edge
        free[column] += 1
    return order


@numba.njit(nogil=True, cache=True)
def _sort_columns_by_time(colptr: Any, time: Any, order: Any, start: int, stop: int) -> None:
    """Sorts each column's part of `order` by time, stably and in place: short runs by insertion, then merged."""
    longest = 0
    for column in range(start, stop):
        longest = max(longest, colptr[column + 1] - colptr[column])
    scratch = np.empty(longest, np.int64)
    for column in range(start, stop):
        first, end = colptr[column], colptr[column + 1]
        for left in range(first, end, _RUN):
            _sort_run(time, order, left, min(left + _RUN, end))
        width = _RUN
        while width < end - first:
            for left in range(first, end - width, 2 * width):
                _merge_runs(time, order, scratch, left, left + width, min(left + 2 * width, end))
            width *= 2


@numba.njit(nogil=True, cache=True)
def _sort_run(time: Any, order: Any, first: int, end: int) -> None:
    for position in range(first + 1, end):
        edge = order[position]
        hole = position
        while hole > first and time[order[hole - 1]] > time[edge]:
            order[hole] = order[hole - 1]
            hole -= 1
        order[hole] = edge


@numba.njit(nogil=True, cache=True)
def _merge_runs(time: Any, order: Any, scratch: Any, first: int, middle: int, end: int) -> None:
    for position in range(first, middle):
        scratch[position - first] = order[position]
    left, right = 0, middle
    for position in range(first, end):
        if left == middle - first:
            return  # what is left of the right run stands where it belongs
        if right == end or time[scratch[left]] <= time[order[right]]:
            order[position] = scratch[left]
            left += 1
        else:
            order[position] = order[right]
            right += 1


@numba.njit(nogil=True, cache=True)
def _running_sums(colptr: Any, weight: Any) -> Any:
    sums = np.empty(len(weight), np.float64)
    for column in range(len(colptr) - 1):
        total = 0.0
        for edge in range(colptr[column], colptr[column + 1]):
            total += weight[edge]
            sums[edge] = total
    return sums
