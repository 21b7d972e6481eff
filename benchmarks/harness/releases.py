"""Releases of drawn rows, of any size, for measurements of serving."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from multifacet.ranking.export.programs import export_pooling
from multifacet.serving.release.manifest import ReleaseSequence
from multifacet.serving.release.writer import Layout, ReleaseWriter
from multifacet.tables import IdMap

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from multifacet.ranking.model.sequence import SequencePooling
    from multifacet.serving.release.release import Release

DIM = 64
ROW_BYTES = DIM // 2 + 4
"""Of one INT4 row of DIM values."""
NUM_DENSE = 16
_CHUNK_ROWS = 1 << 20


class Upper(nn.Module):
    """A small CTR and CVR model: dense features and slots, their products with the first slot, two hidden layers."""

    def __init__(self, num_tables: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(NUM_DENSE + num_tables * DIM + (num_tables - 1) * DIM, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden // 2),
            nn.ReLU(),
            nn.Linear(hidden // 2, 2),
        )

    def forward(self, dense: Tensor, embeddings: Tensor) -> Tensor:
        """Logits [B, 2] of dense features [B, NUM_DENSE] and embeddings [B, num_tables, DIM]."""
        products = embeddings[:, 1:] * embeddings[:, :1]
        logits: Tensor = self.layers(torch.cat([dense, embeddings.flatten(1), products.flatten(1)], dim=1))
        return logits


def drawn_chunks(generator: np.random.Generator, num_rows: int) -> Iterator[Tensor]:
    """Encoded rows whose codes are uniform: values from -0.08 to 0.07."""
    for start in range(0, num_rows, _CHUNK_ROWS):
        size = min(_CHUNK_ROWS, num_rows - start)
        rows = generator.integers(0, 1 << 32, (size, ROW_BYTES // 4), np.uint32).view(np.uint8)
        rows[:, -4:] = np.array([0.01, -0.08], np.float16).view(np.uint8)
        yield torch.from_numpy(rows)


def write_release(
    path: Path,
    id_maps: dict[str, IdMap],
    *,
    hidden: int = 64,
    chunks: Callable[[np.random.Generator, int], Iterator[Tensor]] = drawn_chunks,
    pooling: SequencePooling | None = None,
    layout: Layout = "plain",
    replace: bool = False,
) -> Release:
    """Write a release with an INT4 table of drawn rows for each feature.

    Args:
        path: Where to.
        id_maps: The id map of each feature.
        hidden: Width of the upper model.
        chunks: Gives the encoded rows of a table from a generator and their number.
        pooling: How recent pins are pooled, of one facet; they read the table of the feature pin. None: the model reads none.
        layout: How rows lie; see `ReleaseWriter`.
        replace: Whether a release that is there already may be replaced.
    """
    sequence = None
    if pooling is not None:
        slots = (len(id_maps),)
        sequence = ReleaseSequence(feature="recent_pins", candidate_feature="pin", length=pooling.length, slots=slots)
    generator = np.random.default_rng(0)
    writer = ReleaseWriter(
        path,
        name="drawn",
        parents=("0" * 64,),
        dense_features=tuple(f"dense_{number}" for number in range(NUM_DENSE)),
        dim=DIM,
        precision="int4",
        id_maps=id_maps,
        sequence=sequence,
        layout=layout,
        replace=replace,
    )
    with writer:
        for feature, id_map in id_maps.items():
            rows = chunks(generator, id_map.num_rows)
            reads: Literal["id", "both"] = "both" if pooling is not None and feature == "pin" else "id"
            writer.add_table(feature, rows, feature=feature, node_type=feature, facet=None, id_map=feature, reads=reads)
        writer.add_upper(_export(len(id_maps) + (pooling is not None), hidden))
        if pooling is not None:
            writer.add_pooling(export_pooling(pooling, one_user=True))
    return writer.open()


def _export(num_tables: int, hidden: int) -> ExportedProgram:
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=1)
    example = (torch.zeros(3, NUM_DENSE), torch.zeros(3, num_tables, DIM))
    return torch.export.export(Upper(num_tables, hidden).eval(), example, dynamic_shapes=({0: batch}, {0: batch}))
