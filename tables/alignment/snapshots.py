"""Snapshots in the basis of older ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from multifacet.inputs import PATH, expect_attributes, takes
from multifacet.tables.alignment.fitting import fit_alignment
from multifacet.tables.drift import match_ids
from multifacet.tables.snapshot import Snapshot
from multifacet.tables.snapshot_table import SnapshotTable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from multifacet.tables.alignment.alignment import Alignment, Symmetry

__all__ = ["align_snapshot"]


@takes(path=PATH)
def align_snapshot(
    path: str | Path,
    new: Snapshot,
    to: Snapshot,
    symmetry: Symmetry,
    *,
    parameters: Callable[[Alignment], dict[str, Tensor]] | None = None,
) -> Snapshot:
    """Writes a snapshot anew in the basis of an older one.

    Rows are matched by id; of those, the ones that both trainings reached are aligned by. The older snapshot becomes a parent,
    the alignment and how near it came are among the metrics, and its matrices among the parameters.

    Args:
        path: Directory to write; it must not exist.
        new: The snapshot to write anew.
        to: The older one, of the same facet.
        symmetry: What leaves the facet's scores as they are; the pretrainers know it (`kge.align`, `contrastive.align`).
        parameters: Gives what was trained beside the tables in the new basis; by default it is kept as it is.

    Returns:
        The aligned snapshot.

    Raises:
        ValueError: The snapshots are of other facets or widths, or share no trained row.
        ArtifactError: Something is at `path`.
    """
    for name, given in (("new", new), ("to", to)):
        expect_attributes(name, given, ("facet", "vectors", "trained"), "Snapshot")
    if new.facet != to.facet:
        raise ValueError(
            f"{new.path} holds {new.facet!r} vectors and {to.path} {to.facet!r} ones: such bases have nothing in common"
        )
    pairs = {}
    for node_type in new.node_types:
        dim = new.dim(node_type)
        if node_type not in to.node_types:
            pairs[node_type] = (torch.empty(0, dim), torch.empty(0, dim))
            continue
        if to.dim(node_type) != dim:
            raise ValueError(f"table {node_type!r} has dimension {to.dim(node_type)} in {to.path} and {dim} in {new.path}")
        pairs[node_type] = _matched(new, to, node_type)
    try:
        alignment = fit_alignment(symmetry, pairs)
    except ValueError as error:
        raise ValueError(f"{new.path} cannot be aligned to {to.path}: {error}") from error
    tables = {
        name: SnapshotTable(
            ids=new.ids(name),
            vectors=alignment.apply(name, new.vectors(name)),
            optimizer=new.optimizer(name),
            trained=new.trained(name),
        )
        for name in new.node_types
    }
    kept = parameters(alignment) if parameters is not None else new.parameters()
    kept = {name: value for name, value in kept.items() if not name.startswith(("alignment/", "alignment_shift/"))}
    told: dict[str, Any] = {
        "to": to.fingerprint,
        "symmetry": symmetry,
        "tables": {name: _nearness(alignment, name, *rows) for name, rows in pairs.items()},
    }
    return Snapshot.write(
        path,
        facet=new.facet,
        tables=tables,
        parents=[*new.parents, *([to.fingerprint] if to.fingerprint not in new.parents else [])],
        window=new.window,
        metrics={**new.metrics, "alignment": told},
        config=new.config,
        parameters=kept | alignment.to_tensors(),
        precision="fp16" if new.vectors(new.node_types[0]).dtype == torch.float16 else "fp32",
    )


def _matched(new: Snapshot, to: Snapshot, node_type: str) -> tuple[Tensor, Tensor]:
    """Gives the old and the new rows of the ids that both trainings reached."""
    old_row_of = torch.from_numpy(match_ids(to.ids(node_type), new.ids(node_type)))
    rows = torch.nonzero(old_row_of >= 0).flatten()
    before, after = to.vectors(node_type)[old_row_of[rows]].float(), new.vectors(node_type)[rows].float()
    kept = before.any(1) & after.any(1)
    for marks, found in ((to.trained(node_type), old_row_of[rows]), (new.trained(node_type), rows)):
        if marks is not None:
            kept &= marks[found]
    return before[kept], after[kept]


def _nearness(alignment: Alignment, node_type: str, old: Tensor, new: Tensor) -> dict[str, float]:
    """Gives the squared distance of new from old rows as a share of the old ones' squares, before and after."""
    squares = max(float(old.double().square().sum()), torch.finfo(torch.float64).tiny)
    return {
        "rows": len(old),
        "residual_before": float((new.double() - old).square().sum()) / squares,
        "residual_after": float((alignment.apply(node_type, new).double() - old).square().sum()) / squares,
    }
