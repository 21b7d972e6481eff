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

    def to_tensors(self) -> dict[str, Tensor]:
        """Give the values and their Adagrad state by name, `relation/<key>/<parameter>` and `relation_adagrad/...`."""
        return {
            f"{kind}/{key}/{name}": value
            for kind, tables in (("relation", self.values), ("relation_adagrad", self.state))
            for key, parameters in tables.items()
            for name, value in parameters.items()
        }

    def copy_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `to_tensors` gave, in place."""
        for name, value in self.to_tensors().items():
            value.copy_(tensors[name])

    def warm_start(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the relations that an older training knew; others begin as from scratch.

        Args:
            tensors: from `to_tensors` of that training.

        Raises:
            ValueError: if a relation's parameters are of another model.
        """
        for key, parameters in self.values.items():
            old = {
                name.split("/")[-1]: value for name, value in tensors.items() if name.rpartition("/")[0] == f"relation/{key}"
            }
            if not old:
                continue
            shapes = {name: tuple(value.shape) for name, value in parameters.items()}
            if {name: tuple(value.shape) for name, value in old.items()} != shapes:
                raise ValueError(
                    f"relation {key!r} has the parameters { {name: tuple(value.shape) for name, value in old.items()} } in the "
                    f"older snapshot, and {shapes} here: start from one of the same model, dim and rank"
                )
            for name, value in parameters.items():
                value.copy_(old[name])
                self.state[key][name].copy_(tensors[f"relation_adagrad/{key}/{name}"])

    def step(self, key: str, gradients: Mapping[str, Tensor]) -> None:
        """Apply one Adagrad step to one relation's parameters, in place."""
        for name, gradient in gradients.items():
            state = self.state[key][name]
            state.addcmul_(gradient, gradient)
            self.values[key][name].addcdiv_(gradient, state.sqrt().add_(1e-10), value=-self.lr)


def _inverse(name: str) -> str:
    return f"{name}^-1"
