"""A change of basis of a facet's tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["SYMMETRIES", "Alignment", "Symmetry"]

#: What a facet's scores allow.
#:
#: - ``rotation``: any rotation or reflection, one for all tables, such as of dot products and cosines.
#: - ``shifted_rotation``: the same, and a shift of each table, where relations are translations and the norm is Euclidean.
#: - ``shifted_signs``: a permutation of the coordinates, a sign of each, and a shift of each table: translations, sum of
#:   absolute differences.
#: - ``signs``: a permutation of the coordinates, and a sign of each coordinate and table: products with a diagonal.
#: - ``phases``: a permutation of the complex coordinates, which may be conjugated, and a phase of each coordinate and table.
Symmetry = Literal["rotation", "shifted_rotation", "shifted_signs", "signs", "phases"]
SYMMETRIES: Final[tuple[Symmetry, ...]] = ("rotation", "shifted_rotation", "shifted_signs", "signs", "phases")

_BLOCK_ROWS: Final = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Alignment:
    """A change of basis: a row v of a table becomes v @ matrix + shift.

    Attributes:
        symmetry: What it may be.
        matrices: node type -> orthogonal matrix, float64 [D, D].
        shifts: node type -> float64 [D]; empty where there are none.

    Example:
        >>> turn = Alignment(symmetry="rotation", matrices={"pin": torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()})
        >>> turn.apply("pin", torch.tensor([[1.0, 0.0]])).tolist()
        [[0.0, 1.0]]
    """

    symmetry: Symmetry
    matrices: Mapping[str, Tensor]
    shifts: Mapping[str, Tensor] = field(default_factory=dict)

    def matrix(self, node_type: str) -> Tensor:
        """Gives a node type's matrix, float64 [D, D]."""
        return self.matrices[node_type]

    def shift(self, node_type: str) -> Tensor:
        """Gives a node type's shift, float64 [D]; zero where there is none."""
        return self.shifts.get(node_type, self.matrices[node_type].new_zeros(len(self.matrices[node_type])))

    def apply(self, node_type: str, vectors: Tensor) -> Tensor:
        """Gives rows in the new basis.

        Args:
            node_type: Their table.
            vectors: float [n, D].

        Returns:
            float32 [n, D].

        Raises:
            KeyError: There is no such table.
        """
        matrix, shift = self.matrices[node_type], self.shift(node_type)
        turned = torch.empty(vectors.shape, dtype=torch.float32)
        for begin in range(0, len(vectors), _BLOCK_ROWS):
            part = slice(begin, begin + _BLOCK_ROWS)
            turned[part] = (vectors[part].double() @ matrix + shift).float()
        return turned

    def to_tensors(self) -> dict[str, Tensor]:
        """Gives what a snapshot keeps of it, by name."""
        found = {f"alignment/{name}": matrix.clone() for name, matrix in self.matrices.items()}
        return found | {f"alignment_shift/{name}": shift for name, shift in self.shifts.items()}
