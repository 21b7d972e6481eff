"""The programs that a trained ranker leaves: its upper model and its pooling of recent pins, through torch.export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from multifacet.ranking.model.sequence import SequencePooling
    from multifacet.ranking.model.upper import UpperModel


def export_upper(upper: UpperModel) -> torch.export.ExportedProgram:
    """Export an upper model, in evaluation mode, for any number of examples.

    Args:
        upper: The upper model; left in evaluation mode.

    Returns:
        Program with the call (dense [B, F], embeddings [B, T, D]) -> logits [B, 2].
    """
    upper.eval()
    batch = torch.export.Dim("batch", min=1)
    # Two examples: with one, the exporter would take the batch for a constant.
    sample = (torch.zeros(2, upper.num_dense), torch.zeros(2, upper.num_slots, upper.dim))
    return torch.export.export(upper, sample, dynamic_shapes=({0: batch}, {0: batch}), strict=False)


def export_pooling(pooling: SequencePooling, *, one_user: bool = False) -> torch.export.ExportedProgram:
    """Export the pooling of recent pins, in evaluation mode, for any number of examples.

    Args:
        pooling: The pooling; left in evaluation mode.
        one_user: Whether all candidates are one user's, as in a request: the rows come once and are read once.

    Returns:
        Program with the call (rows [U, L, S, D], num_recent int32 [U], candidate [B, S, D]) -> [B, S, D], with U = 1 for one
        user and U = B otherwise.
    """
    pooling.eval()
    batch = {0: torch.export.Dim("batch", min=1)}
    users = 1 if one_user else 2
    shape = (len(pooling.facets), pooling.dim)
    counts = torch.zeros(users, dtype=torch.int32)
    sample = (torch.zeros(users, pooling.length, *shape), counts, torch.zeros(2, *shape))
    shapes = (None, None, batch) if one_user else (batch, batch, batch)
    return torch.export.export(pooling, sample, dynamic_shapes=shapes, strict=False)


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Save a program without the places in source files that its operations came from.

    Those name folders of the machine that trained: the same model would have other bytes, and so another version, on each.
    """
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    torch.export.save(program, path)
