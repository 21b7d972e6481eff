"""Adagrad and Adam of a whole table, with their state in plain tensors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["DenseOptimizer"]

_BETAS = (0.9, 0.999)
_EPSILONS = {"adagrad": 1e-10, "adam": 1e-8}


class DenseOptimizer:
    """Steps a table by gradients of all of its numbers, in place.

    For tables that every step changes whole, as training against all entities does; where steps touch few rows, row-wise
    Adagrad (`tables.optim.adagrad`) is the one to use.

    Args:
        values: the table, float [N, D].
        kind: Adagrad (Duchi et al., JMLR 2011), or Adam (Kingma and Ba, ICLR 2015).
        lr: learning rate.
        rates: of each column as a multiple of it, float [D]; None: 1.

    Attributes:
        values: the table.
        lr: learning rate of the next step.
        num_steps: steps done.
        state: "squares" [N, D], and of Adam "means" [N, D].
    """

    def __init__(self, values: Tensor, kind: Literal["adagrad", "adam"], lr: float, rates: Tensor | None = None) -> None:
        self.kind = kind
        self.lr = lr
        self.num_steps = 0
        self.state: dict[str, Tensor] = {"squares": torch.zeros_like(values)}
        if kind == "adam":
            self.state["means"] = torch.zeros_like(values)
        self.values = values
        self._rates = rates
        self._buffer = torch.empty_like(values)

    def step(self, gradient: Tensor) -> None:
        """Apply one step by `gradient` [N, D]."""
        self.num_steps += 1
        squares = self.state["squares"]
        if self.kind == "adagrad":
            squares.addcmul_(gradient, gradient)
            torch.sqrt(squares, out=self._buffer).add_(_EPSILONS[self.kind])
            self._move(gradient, self.lr)
            return
        means, (mean_decay, square_decay) = self.state["means"], _BETAS
        means.lerp_(gradient, 1.0 - mean_decay)
        squares.mul_(square_decay).addcmul_(gradient, gradient, value=1.0 - square_decay)
        mean_bias, square_bias = 1.0 - mean_decay**self.num_steps, 1.0 - square_decay**self.num_steps
        torch.sqrt(squares, out=self._buffer).mul_(square_bias**-0.5).add_(_EPSILONS[self.kind])
        self._move(means, self.lr / mean_bias)

    def _move(self, direction: Tensor, lr: float) -> None:
        """Subtract lr * direction / buffer."""
        if self._rates is None:
            self.values.addcdiv_(direction, self._buffer, value=-lr)
        else:
            self.values.sub_(torch.div(direction, self._buffer, out=self._buffer).mul_(self._rates), alpha=lr)
