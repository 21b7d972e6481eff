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
    """Parameters of every relation, a row each of one table, learned with Adagrad (a state for each number).

    Args:
        model: the scoring model, which knows the parameters' shapes.
        names: the relations' names, in the order of their numbers.
        reciprocal: whether head queries have parameters of their own. A head query is then a tail query of the inverse.
        generator: source of the first values.

    Attributes:
        table: float32 [K, P]: the relations in order, then their inverses if there are any.
        state: accumulated squares, float32 [K, P].
        shapes: name of a parameter -> its shape, in the order in which they lie in a row.
        values: key (a relation's name, or its inverse's) -> its parameters by name, views of the table.
        squares: likewise, views of the state.
    """

    def __init__(self, model: Model, names: Sequence[str], *, reciprocal: bool, generator: torch.Generator) -> None:
        self.names = tuple(names)
        self.reciprocal = reciprocal
        keys = [*self.names, *(_inverse(name) for name in self.names if reciprocal)]
        drawn = [model.initial_relation(generator) for _ in keys]
        self.table: Tensor = torch.stack([torch.cat([value.flatten() for value in values.values()]) for values in drawn])
        self.state: Tensor = torch.zeros_like(self.table)
        shapes = self.shapes = {name: value.shape for name, value in drawn[0].items()}
        self.values: dict[str, dict[str, Tensor]] = _name_parts(self.table, keys, shapes)
        self.squares: dict[str, dict[str, Tensor]] = _name_parts(self.state, keys, shapes)

    def query(self, relation: str, side: Side) -> tuple[str, Side]:
        """Give the key of the parameters that answer for one side, and the side that the model translates to."""
        if self.reciprocal and side == "head":
            return _inverse(relation), "tail"
        return relation, side

    def to_tensors(self) -> dict[str, Tensor]:
        """Give the values and their Adagrad state by name, `relation/<key>/<parameter>` and `relation_adagrad/...`."""
        return {
            f"{kind}/{key}/{name}": value
            for kind, tables in (("relation", self.values), ("relation_adagrad", self.squares))
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
                self.squares[key][name].copy_(tensors[f"relation_adagrad/{key}/{name}"])

    def __repr__(self) -> str:
        return f"RelationParameters(relations={len(self.names)}, reciprocal={self.reciprocal}, numbers={self.table.numel()})"


def _inverse(name: str) -> str:
    return f"{name}^-1"


def _name_parts(table: Tensor, keys: Sequence[str], shapes: Mapping[str, torch.Size]) -> dict[str, dict[str, Tensor]]:
    return {
        key: {
            name: part.view(shape)
            for part, (name, shape) in zip(row.split([shape.numel() for shape in shapes.values()]), shapes.items(), strict=True)
        }
        for key, row in zip(keys, table, strict=True)
    }
