"""Adam with one second moment a row, applied to the rows that a step names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from typing_extensions import override

from multifacet.tables.rowwise import RowwiseAdagrad

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RowwiseAdam"]


class RowwiseAdam(RowwiseAdagrad):
    """Adam (Kingma and Ba, ICLR 2015) with one second moment a row; rows that a step does not name are left alone.

    For each named row r with gradient g of D elements, and t the number of steps that have named it::

        momentum[r] = beta1 * momentum[r] + (1 - beta1) * g
        state[r] = beta2 * state[r] + (1 - beta2) * mean(g ** 2)
        table[r] -= lr / (1 - beta1 ** t) / (sqrt(state[r] / (1 - beta2 ** t)) + eps) * momentum[r]

    Against row-wise Adagrad its steps do not shrink by themselves, so it wants a falling learning rate, and it keeps D + 2
    numbers a row instead of 1.

    Args:
        num_rows: the table's rows N.
        dim: the table's width D.
        lr: learning rate.
        beta1: decay of the momentum.
        beta2: decay of the second moment.

    Attributes:
        state: float32 [N]; with `momentum`, float32 [N, D], and `steps`, int32 [N], what a checkpoint has to keep.
    """

    def __init__(self, num_rows: int, dim: int, lr: float, *, beta1: float = 0.9, beta2: float = 0.99) -> None:
        super().__init__(num_rows, lr)
        self.beta1 = beta1
        self.beta2 = beta2
        self.momentum: Tensor = torch.zeros(num_rows, dim)
        self.steps: Tensor = torch.zeros(num_rows, dtype=torch.int32)

    @override
    def step(self, table: Tensor, rows: Tensor, gradients: Tensor) -> None:
        if table.shape != self.momentum.shape or gradients.shape != (len(rows), table.shape[1]):
            raise ValueError(
                f"table {list(table.shape)} and gradients {list(gradients.shape)} of {len(rows)} rows do not fit a momentum "
                f"of {list(self.momentum.shape)}"
            )
        settings = np.float32(self.lr), np.float32(self.beta1), np.float32(self.beta2), np.float32(self.eps)
        fault = _update(
            *(table.numpy(), self.momentum.numpy(), self.state.numpy(), self.steps.numpy()),
            *(rows.numpy(), gradients.detach().numpy(), *settings),
        )
        if fault >= 0:
            raise ValueError(
                f"The gradient of row {int(rows[fault])} (gradients[{fault}]) is not finite or its square overflows; the row "
                "was left as it was. Lower the learning rate or clip the gradients."
            )


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _update(
    table: Any,
    momentum: Any,
    state: Any,
    steps: Any,
    rows: Any,
    gradients: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
) -> int:
    one = np.float32(1.0)
    dim = table.shape[1]
    fault = -1
    for position in range(len(rows)):
        gradient = gradients[position]
        squares = np.float32(0.0)
        for column in range(dim):
            squares += gradient[column] * gradient[column]
        if not np.isfinite(squares):
            fault = position if fault < 0 else fault
            continue
        row = rows[position]
        steps[row] += 1
        state[row] = beta2 * state[row] + (one - beta2) * squares / np.float32(dim)
        root = np.sqrt(state[row] / (one - beta2 ** steps[row])) + eps
        rate = lr / (one - beta1 ** steps[row]) / root
        vector, moving = table[row], momentum[row]
        for column in range(dim):
            moving[column] = beta1 * moving[column] + (one - beta1) * gradient[column]
            vector[column] -= rate * moving[column]
    return fault
