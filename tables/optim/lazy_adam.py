"""Adam with a second moment for each number, applied to the rows that a step names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from typing_extensions import override

from multifacet.tables.optim.adagrad import RowwiseAdagrad

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LazyAdam"]


class LazyAdam(RowwiseAdagrad):
    """Adam (Kingma and Ba, ICLR 2015), of which rows that a step does not name are left alone, their moments too.

    As torch's `SparseAdam` and TensorFlow's lazy Adam: with t the number of steps so far, whatever rows they named, and for
    each named row r with gradient g, number by number::

        momentum[r] = beta1 * momentum[r] + (1 - beta1) * g
        squares[r] = beta2 * squares[r] + (1 - beta2) * g ** 2
        table[r] -= lr * sqrt(1 - beta2 ** t) / (1 - beta1 ** t) * momentum[r] / (sqrt(squares[r]) + eps)

    Against `RowwiseAdam` it keeps 2 D + 1 numbers a row instead of D + 2, and follows columns whose gradients differ in size.

    Args:
        num_rows: the table's rows N.
        dim: the table's width D.
        lr: learning rate.
        beta1: decay of the momentum.
        beta2: decay of the second moment.

    Attributes:
        state: mean of each row's squares, float32 [N]; above 0 where a gradient was.
        num_steps: steps so far, int64 [1]; with `state`, `squares` and `momentum`, float32 [N, D], what a checkpoint keeps.

    Example:
        >>> table = torch.zeros(3, 2)
        >>> LazyAdam(3, 2, lr=0.1).step(table, torch.tensor([1], dtype=torch.int32), torch.ones(1, 2))
        >>> (table * 1000).round().tolist()  # the first step of a number is lr long
        [[0.0, 0.0], [-100.0, -100.0], [0.0, 0.0]]
    """

    def __init__(self, num_rows: int, dim: int, lr: float, *, beta1: float = 0.9, beta2: float = 0.999) -> None:
        super().__init__(num_rows, lr)
        self.beta1 = beta1
        self.beta2 = beta2
        self.momentum: Tensor = torch.zeros(num_rows, dim)
        self.squares: Tensor = torch.zeros(num_rows, dim)
        self.num_steps: Tensor = torch.zeros(1, dtype=torch.int64)

    @override
    def step(self, table: Tensor, rows: Tensor, gradients: Tensor) -> None:
        if table.shape != self.momentum.shape or gradients.shape != (len(rows), table.shape[1]):
            raise ValueError(
                f"table {list(table.shape)} and gradients {list(gradients.shape)} of {len(rows)} rows do not fit a momentum "
                f"of {list(self.momentum.shape)}"
            )
        self.num_steps += 1
        count = int(self.num_steps)
        rate = self.lr * (1.0 - self.beta2**count) ** 0.5 / (1.0 - self.beta1**count)
        fault = _update(
            *(table.numpy(), self.momentum.numpy(), self.squares.numpy(), self.state.numpy(), rows.numpy()),
            *(gradients.detach().numpy(), np.float32(rate), np.float32(self.beta1), np.float32(self.beta2), np.float32(1e-8)),
        )
        if fault >= 0:
            raise ValueError(
                f"The gradient of row {int(rows[fault])} (gradients[{fault}]) is not finite or its square overflows; the row "
                "was left as it was. Lower the learning rate or clip the gradients."
            )


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _update(
    table: Any, momentum: Any, squares: Any, state: Any, rows: Any, gradients: Any, rate: Any, beta1: Any, beta2: Any, eps: Any
) -> int:
    one = np.float32(1.0)
    dim = table.shape[1]
    fault = -1
    for position in range(len(rows)):
        gradient = gradients[position]
        total = np.float32(0.0)
        for column in range(dim):
            total += gradient[column] * gradient[column]
        if not np.isfinite(total):
            fault = position if fault < 0 else fault
            continue
        row = rows[position]
        vector, moving, second = table[row], momentum[row], squares[row]
        total = np.float32(0.0)
        for column in range(dim):
            moving[column] = beta1 * moving[column] + (one - beta1) * gradient[column]
            second[column] = beta2 * second[column] + (one - beta2) * gradient[column] * gradient[column]
            vector[column] -= rate * moving[column] / (np.sqrt(second[column]) + eps)
            total += second[column]
        state[row] = total / np.float32(dim)
    return fault
