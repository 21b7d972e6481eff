"""Rows of half-precision tables, changed in FP32 and rounded by chance: what training such a table takes.

A step of less than half of a number's last place would be lost each time if it were rounded to nearest (see `tables.halves`).
The chance is a function of a seed, the row's number in the whole table and the column: no state to save, and the same bits on
any number of threads or processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np
import torch

from multifacet.tables.counters import random_bits, random_stream
from multifacet.tables.halves import bits, load, store_stochastically
from multifacet.tables.threads import run_ranges

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["step_rounded", "write_rounded"]

_HALVES: Final = (torch.float16, torch.bfloat16)
_MIN_VALUES_PER_THREAD: Final = 1 << 15


def step_rounded(
    table: Tensor,
    state: Tensor,
    rows: Tensor,
    gradients: Tensor,
    *,
    lr: float,
    seed: int,
    shares: Tensor | None = None,
    eps: float = 1e-10,
) -> None:
    """Apply row-wise Adagrad (see `RowwiseAdagrad`) to the named rows of a half-precision table, in place.

    Args:
        table: float16 or bfloat16 [N, D], contiguous, on the CPU.
        state: float32 [N], the accumulated mean squares, changed in place.
        rows: int32 or int64 [n], each row at most once.
        gradients: float32 [n, D], contiguous.
        lr: Learning rate.
        seed: Of the rounding, 0 to 2^64 - 1; another one at each step, or the same rows would be rounded alike each time.
        shares: Each row's share of the learning rate, float32 [n]; None: all of it.
        eps: Added to the root of the state.

    Raises:
        ValueError: Wrong types or shapes, a row that is out of range (nothing is changed), or a gradient with NaN or Inf, or so
            large that its square overflows (that row is left as it was).

    Example:
        >>> table, state = torch.ones(3, 2, dtype=torch.float16), torch.zeros(3)
        >>> step_rounded(table, state, torch.tensor([1]), torch.tensor([[2.0, 2.0]]), lr=0.5, seed=1)
        >>> table.tolist(), state.tolist()
        ([[1.0, 1.0], [0.5, 0.5], [1.0, 1.0]], [0.0, 4.0, 0.0])
    """
    _check(table, rows, gradients)
    if state.dtype != torch.float32 or len(state) != len(table) or (shares is not None and shares.shape != rows.shape):
        raise ValueError(
            f"state is {state.dtype} {list(state.shape)}, shares {None if shares is None else list(shares.shape)}; expected "
            f"float32 [{len(table)}] and [{len(rows)}]."
        )
    kept = (torch.empty(0) if shares is None else shares.float().contiguous()).numpy()
    arrays = bits(table), state.numpy(), rows.numpy(), gradients.detach().numpy(), kept
    numbers = np.float32(lr), np.float32(eps), np.uint64(seed)
    faults: list[int] = []

    def step(start: int, stop: int) -> None:
        fault = _step(*arrays, *numbers, start, stop)
        if fault >= 0:
            faults.append(fault)

    _run(step, gradients)
    if faults:
        fault = min(faults)
        raise ValueError(
            f"The gradient of row {int(rows[fault])} (gradients[{fault}]) is not finite or its square overflows; the row was "
            "left as it was. Lower the learning rate or clip the gradients."
        )


def write_rounded(table: Tensor, rows: Tensor, values: Tensor, *, seed: int, first: int = 0) -> None:
    """Write FP32 numbers into the named rows of a half-precision table, or of a part of one.

    Args:
        table: float16 or bfloat16 [N, D], contiguous, on the CPU.
        rows: int32 or int64 [n], each row at most once.
        values: float32 [n, D], contiguous.
        seed: As in `step_rounded`: the same seed, row and column round alike there and here.
        first: The number of the first of these rows in the whole table.

    Raises:
        ValueError: Wrong types or shapes, or a row that is out of range; nothing is changed.
    """
    _check(table, rows, values)
    arrays = bits(table), rows.numpy(), values.detach().numpy()
    _run(lambda start, stop: _write(*arrays, np.uint64(seed), np.int64(first), start, stop), values)


def _run(task: Any, values: Tensor) -> None:
    run_ranges(task, len(values), min_size=max(1, _MIN_VALUES_PER_THREAD // max(1, values.shape[1])))


def _check(table: Tensor, rows: Tensor, values: Tensor) -> None:
    given = {"table": table, "rows": rows, "values": values}
    fits = (
        table.dtype in _HALVES
        and rows.dtype in {torch.int32, torch.int64}
        and values.dtype == torch.float32
        and (table.dim(), rows.dim()) == (2, 1)
        and values.shape == (len(rows), table.shape[1])
        and all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in given.values())
    )
    if not fits:
        described = ", ".join(f"{name} is {tensor.dtype} {list(tensor.shape)}" for name, tensor in given.items())
        raise ValueError(
            f"{described}; expected a table [N, D] of float16 or bfloat16, rows [n] of int32 or int64, and values [n, D] of "
            "float32, all contiguous on the CPU."
        )
    if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < len(table)):
        raise ValueError(f"rows reach from {int(rows.min())} to {int(rows.max())}; the table has rows 0 to {len(table) - 1}.")


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _step(
    table: Any, state: Any, rows: Any, gradients: Any, shares: Any, lr: Any, eps: Any, seed: Any, start: int, stop: int
) -> int:
    """Steps rows[start:stop]; gives the first position whose gradient is unusable, or -1."""
    fault = -1
    dim = gradients.shape[1]
    for position in range(start, stop):
        gradient = gradients[position]
        squares = np.float32(0.0)
        for column in range(dim):
            squares += gradient[column] * gradient[column]
        if not np.isfinite(squares):
            fault = position if fault < 0 else fault
            continue
        row = rows[position]
        state[row] += squares / np.float32(max(dim, 1))
        root = np.sqrt(state[row]) + eps
        rate = lr / root if root > 0 else np.float32(0.0)
        if len(shares):
            rate *= shares[position]
        vector, stream = table[row], random_stream(seed, row)
        for column in range(dim):
            store_stochastically(vector, column, load(vector, column) - rate * gradient[column], random_bits(stream, column))
    return fault


@numba.njit(nogil=True, cache=True)
def _write(table: Any, rows: Any, values: Any, seed: Any, first: Any, start: int, stop: int) -> None:
    for position in range(start, stop):
        vector, stream = table[rows[position]], random_stream(seed, first + rows[position])
        for column in range(values.shape[1]):
            store_stochastically(vector, column, values[position, column], random_bits(stream, column))
