"""Row-wise Adagrad on tables in memory, and the sum of per-occurrence gradients into unique rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np
import torch
from torch import Tensor

from multifacet.inputs import kind, takes, whole
from multifacet.kernels.threads import run_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MIN_VALUES_PER_THREAD: Final = 1 << 15
_RADIX_BITS: Final = 11
_RADIX: Final = 1 << _RADIX_BITS


class RowwiseAdagrad:
    """Row-wise Adagrad: one FP32 state per row, updated in place for the rows that a step names.

    For each named row r with gradient g of D elements, as FBGEMM's EXACT_ROWWISE_ADAGRAD::

        state[r] += mean(g ** 2)
        table[r] -= lr / (sqrt(state[r]) + eps) * g

    A row whose state and eps are both 0 is left as it is. Rows that a step does not name keep their bits, and so does
    their state. Each row is updated by one thread in a fixed order of operations, so the result does not depend on the
    number of threads, which is ``torch.get_num_threads()``.

    Args:
        num_rows: The table's rows N.
        lr: Learning rate; may be changed between steps by assigning `lr`.
        eps: Added to the root of the state.
        initial: The state's first value.

    Attributes:
        state: float32 [N], the accumulated mean squares; what a checkpoint has to keep.

    Example:
        >>> table, optimizer = torch.zeros(3, 2), RowwiseAdagrad(num_rows=3, lr=0.5)
        >>> optimizer.step(table, torch.tensor([1], dtype=torch.int32), torch.tensor([[2.0, 2.0]]))
        >>> table.tolist(), optimizer.state.tolist()
        ([[0.0, 0.0], [-0.5, -0.5], [0.0, 0.0]], [0.0, 4.0, 0.0])
    """

    @takes(num_rows=whole(), lr=kind(int, float), eps=kind(int, float), initial=kind(int, float))
    def __init__(self, num_rows: int, lr: float, eps: float = 1e-10, initial: float = 0.0) -> None:
        if num_rows < 0 or not all(0 <= value < math.inf for value in (lr, eps, initial)):
            raise ValueError(
                f"num_rows={num_rows}, lr={lr}, eps={eps}, initial={initial}: expected finite numbers that are not negative."
            )
        self.lr: float = lr
        self.eps: float = eps
        self.state: Tensor = torch.full((num_rows,), initial, dtype=torch.float32)
        self._stamps: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._stamp: int = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_rows={len(self.state)}, lr={self.lr:g}, eps={self.eps:g})"

    def step(self, table: Tensor, rows: Tensor, gradients: Tensor) -> None:
        """Updates the named rows of a table in place.

        Args:
            table: float32 [N, D], contiguous, on the CPU.
            rows: int32 [n], each row at most once (see `accumulate_rows`); ascending order is the fastest.
            gradients: float32 [n, D], contiguous.

        Raises:
            ValueError: Wrong dtype, shape or layout; a row that is out of range or named twice (nothing is changed);
                or a gradient with NaN or Inf, or so large that its square overflows (that row is left as it was).
        """
        num_rows = len(self.state)
        _check(self.state, "state", torch.float32, (None,))
        _check(table, "table", torch.float32, (num_rows, None))
        _check(rows, "rows", torch.int32, (None,))
        _check(gradients, "gradients", torch.float32, (len(rows), table.shape[1]))
        rows_array = rows.numpy()
        position, ascending = _first_fault(rows_array, num_rows)
        if position >= 0:
            raise ValueError(f"rows[{position}] is {int(rows_array[position])}; the table has rows 0 to {num_rows - 1}.")
        if not ascending:
            self._refuse_duplicates(rows_array)
        arrays = table.detach().numpy(), self.state.numpy(), rows_array, gradients.detach().numpy()
        lr, eps = np.float32(self.lr), np.float32(self.eps)
        faults: list[int] = []

        def update(start: int, stop: int) -> None:
            fault = _update(*arrays, lr, eps, start, stop)
            if fault >= 0:
                faults.append(fault)

        run_ranges(update, len(rows), min_size=_min_rows(table.shape[1]))
        if faults:
            fault = min(faults)
            raise ValueError(
                f"The gradient of row {int(rows_array[fault])} (gradients[{fault}]) is not finite or its square "
                "overflows; the row was left as it was. Lower the learning rate or clip the gradients."
            )

    def _refuse_duplicates(self, rows: NDArray[np.int32]) -> None:
        if not len(self._stamps):
            self._stamps = np.zeros(len(self.state), dtype=np.int32)
        self._stamp += 1
        position = _first_repeat(rows, self._stamps, self._stamp)
        if position >= 0:
            raise ValueError(
                f"rows[{position}] names row {int(rows[position])} a second time; sum its gradients first with "
                "accumulate_rows(rows, gradients)."
            )


@takes(indices=kind(Tensor), gradients=kind(Tensor))
def accumulate_rows(indices: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Sums the gradients of equal indices, in the order of their positions.

    Args:
        indices: int32 [m], not negative.
        gradients: float32 [m, D], contiguous.

    Returns:
        The distinct indices, int32 [n], ascending, and the sum of each one's gradients, float32 [n, D]. The sums do
        not depend on the number of threads.

    Raises:
        ValueError: Wrong dtype, shape or layout, or a negative index.

    Example:
        >>> rows, sums = accumulate_rows(torch.tensor([7, 2, 7], dtype=torch.int32), torch.ones(3, 2))
        >>> rows.tolist(), sums.tolist()
        ([2, 7], [[1.0, 1.0], [2.0, 2.0]])
    """
    _check(indices, "indices", torch.int32, (None,))
    _check(gradients, "gradients", torch.float32, (len(indices), None))
    keys = indices.numpy()
    position, _ = _first_fault(keys, np.iinfo(np.int32).max + 1)
    if position >= 0:
        raise ValueError(f"indices[{position}] is {int(keys[position])}; expected no negative index.")
    order = _argsort(keys)
    rows, starts = _segments(keys, order)
    values = gradients.detach().numpy()
    sums = np.empty((len(rows), values.shape[1]), dtype=np.float32)
    run_ranges(
        lambda start, stop: _sum_segments(values, order, starts, sums, start, stop),
        len(rows),
        min_size=_min_rows(values.shape[1]),
    )
    return torch.from_numpy(rows), torch.from_numpy(sums)


def _min_rows(dim: int) -> int:
    return max(1, _MIN_VALUES_PER_THREAD // max(1, dim))


def _check(tensor: Tensor, name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> None:
    fits = tensor.dim() == len(shape) and all(
        expected is None or expected == actual for expected, actual in zip(shape, tensor.shape, strict=False)
    )
    if tensor.dtype != dtype or not fits or not tensor.is_contiguous() or tensor.device.type != "cpu":
        layout = "contiguous" if tensor.is_contiguous() else "not contiguous"
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name} is {tensor.dtype} {list(tensor.shape)}, {layout}, on {tensor.device}; "
            f"expected {dtype} [{expected}], contiguous, on cpu."
        )


@numba.njit(nogil=True, cache=True)
def _first_fault(rows: Any, num_rows: int) -> tuple[int, bool]:
    """The first position out of range (or -1), and whether the rows are strictly ascending."""
    ascending: Any = True
    previous = np.int64(-1)
    for position in range(len(rows)):
        row = np.int64(rows[position])
        if row < 0 or row >= num_rows:
            return position, False
        ascending &= row > previous
        previous = row
    return -1, ascending


@numba.njit(nogil=True, cache=True)
def _first_repeat(rows: Any, stamps: Any, stamp: int) -> int:
    for position in range(len(rows)):
        row = rows[position]
        if stamps[row] == stamp:
            return position
        stamps[row] = stamp
    return -1


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _update(table: Any, state: Any, rows: Any, gradients: Any, lr: Any, eps: Any, start: int, stop: int) -> int:
    """Updates rows[start:stop]; gives the first position whose gradient is unusable, or -1."""
    fault = -1
    dim = gradients.shape[1]
    if dim == 0:
        return fault
    for position in range(start, stop):
        squares = np.float32(0.0)
        for column in range(dim):
            squares += gradients[position, column] * gradients[position, column]
        if not np.isfinite(squares):
            if fault < 0:
                fault = position
            continue
        row = rows[position]
        state[row] += squares / np.float32(dim)
        root = np.sqrt(state[row]) + eps
        rate = lr / root if root > 0 else np.float32(0.0)
        for column in range(dim):
            table[row, column] -= rate * gradients[position, column]
    return fault


@numba.njit(nogil=True, cache=True)
def _argsort(keys: Any) -> Any:
    """A stable radix argsort of non-negative int32 keys; int64 positions."""
    num_keys = len(keys)
    largest = 0
    for key in keys:
        largest = max(largest, key)
    order = np.arange(num_keys)
    swap = np.empty(num_keys, dtype=np.int64)
    shift = 0
    while shift < 32 and (largest >> shift) > 0:
        offsets = np.zeros(_RADIX + 1, dtype=np.int64)
        for key in keys:
            offsets[((key >> shift) & (_RADIX - 1)) + 1] += 1
        for digit in range(_RADIX):
            offsets[digit + 1] += offsets[digit]
        for position in order:
            digit = (keys[position] >> shift) & (_RADIX - 1)
            swap[offsets[digit]] = position
            offsets[digit] += 1
        order, swap = swap, order
        shift += _RADIX_BITS
    return order


@numba.njit(nogil=True, cache=True)
def _segments(keys: Any, order: Any) -> tuple[Any, Any]:
    """The distinct keys in order, int32 [n], and where each one's run starts in `order`, int64 [n + 1]."""
    num_segments = 0
    for position in range(len(order)):
        if position == 0 or keys[order[position]] != keys[order[position - 1]]:
            num_segments += 1
    rows = np.empty(num_segments, dtype=np.int32)
    starts = np.empty(num_segments + 1, dtype=np.int64)
    segment = 0
    for position in range(len(order)):
        if position == 0 or keys[order[position]] != keys[order[position - 1]]:
            rows[segment] = keys[order[position]]
            starts[segment] = position
            segment += 1
    starts[num_segments] = len(order)
    return rows, starts


@numba.njit(nogil=True, cache=True)
def _sum_segments(values: Any, order: Any, starts: Any, sums: Any, start: int, stop: int) -> None:
    dim = values.shape[1]
    for segment in range(start, stop):
        first = order[starts[segment]]
        for column in range(dim):
            sums[segment, column] = values[first, column]
        for run in range(starts[segment] + 1, starts[segment + 1]):
            position = order[run]
            for column in range(dim):
                sums[segment, column] += values[position, column]
