"""The relations' parameters and their Adagrad state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from kge.models import Model, Side

__all__ = ["RelationParameters"]


class RelationParameters:
    """Parameters of every relation of a view, learned with Adagrad one relation at a time.

    Args:
        model: the scoring model, which knows the parameters' shapes.
        names: the relations' names, in the view's order.
        reciprocal: whether head queries have parameters of their own. A head query is then a tail query of the inverse.
        lr: Adagrad's learning rate.
        generator: source of the first values.
    """

    def __init__(self, model: Model, names: Sequence[str], *, reciprocal: bool, lr: float, generator: torch.Generator) -> None:
        self.names = tuple(names)
        self.reciprocal = reciprocal
        self.lr = lr
        keys = [*self.names, *(_inverse(name) for name in self.names if reciprocal)]
        self.values: dict[str, dict[str, Tensor]] = {key: model.initial_relation(generator) for key in keys}
        self.state: dict[str, dict[str, Tensor]] = {
            key: {name: torch.zeros_like(value) for name, value in parameters.items()}
            for key, parameters in self.values.items()
        }

    def query(self, relation: str, side: Side) -> tuple[str, Side]:
        """Give the key of the parameters that answer for one side, and the side that the model translates to."""
        if self.reciprocal and side == "head":
            return _inverse(relation), "tail"
        return relation, side

    def leaves(self, key: str) -> dict[str, Tensor]:
        """Give one relation's parameters as leaves of a new graph."""
        return {name: value.detach().requires_grad_() for name, value in self.values[key].items()}

    def step(self, key: str, gradients: Mapping[str, Tensor]) -> None:
        """Apply one Adagrad step to one relation's parameters, in place."""
        for name, gradient in gradients.items():
            state = self.state[key][name]
            state.addcmul_(gradient, gradient)
            self.values[key][name].addcdiv_(gradient, state.sqrt().add_(1e-10), value=-self.lr)


def _inverse(name: str) -> str:
    return f"{name}^-1"
