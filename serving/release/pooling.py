"""The pooling of a release that reads a sequence: an exported program, as the upper model is.

::

    rows [1, L, S, D], num_recent [1], candidate [B, S, D] -> pooled [B, S, D]

S facets. One user's sequence is read once, whatever the number of candidates that it is pooled for. Places beyond
``num_recent`` hold zeros, which the program ignores; a sequence without rows is pooled too, to what the model learned for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from multifacet.artifacts import ArtifactError
from multifacet.serving.release.upper import run_graph

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class Pooling:
    """Pools one user's sequence for each candidate.

    Args:
        program: The call above.
        length: Rows of a sequence, L.
        num_facets: Facets, S.
        dim: Dimension of a row, D.
        device: ``cpu`` or ``cuda``.

    Raises:
        ArtifactError: The program does not take these shapes, or any number of candidates, or answers in another shape.
    """

    def __init__(self, program: ExportedProgram, *, length: int, num_facets: int, dim: int, device: str = "cpu"):
        self.length = length
        self._device = torch.device(device)
        signature = program.graph_signature
        if len(signature.user_inputs) != 3 or len(signature.user_outputs) != 1:
            raise ArtifactError(
                f"the pooling takes {list(signature.user_inputs)} and answers {list(signature.user_outputs)}: expected three "
                "tensors, rows, num_recent and candidate, and one of pooled rows"
            )
        self._module = run_graph(program, self._device)
        for num_candidates, num_recent in ((1, 0), (2, 1), (50, length)):  # also warms up the allocator and the kernels
            rows = torch.zeros(num_recent, num_facets, dim, device=self._device)
            candidate = torch.zeros(num_candidates, num_facets, dim, device=self._device)
            try:
                shape = tuple(self.pool(rows, candidate).shape)
            except Exception as error:  # whatever the program's operators raise
                raise ArtifactError(
                    f"the pooling fails on a sequence of {num_recent} of {length} rows and candidates "
                    f"{list(candidate.shape)}: {error}. Export it for one user and any number of candidates."
                ) from error
            if shape != tuple(candidate.shape):
                raise ArtifactError(f"the pooling answers {list(shape)}: expected {list(candidate.shape)}, as its candidates")

    def pool(self, rows: Tensor, candidate: Tensor) -> Tensor:
        """Pool.

        Args:
            rows: The sequence's rows, the latest first, float32 [n, S, D] with n up to L.
            candidate: The candidates' rows, float32 [B, S, D].

        Returns:
            float32 [B, S, D].
        """
        padded = rows.new_zeros(1, self.length, *rows.shape[1:])
        padded[0, : len(rows)] = rows
        num_recent = torch.tensor([len(rows)], dtype=torch.int32, device=self._device)
        with torch.inference_mode():
            (pooled,) = self._module.forward(padded, num_recent, candidate)
            answer: Tensor = pooled
            return answer
