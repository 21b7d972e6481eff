"""Releases whose rows say which release and id they are of, and whose upper models tell when any of them is another's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from multifacet.serving import DeltaWriter
from multifacet.serving.release.release import Release
from multifacet.serving.release.writer import ReleaseWriter
from multifacet.tables import IdMap, encode

if TYPE_CHECKING:
    from torch.export import ExportedProgram

IDS = 500
FEATURES = ("user", "pin")
DIM = 4


class Witness(nn.Module):
    """Scores 1/2 if every row is of its own release and of the id that the dense features name; else near 0 or 1.

    A row is (release, id, 0, 0), with ids small enough to be exact in float32.
    """

    number: Tensor

    def __init__(self, number: int):
        super().__init__()
        self.register_buffer("number", torch.tensor(float(number)))

    def forward(self, dense: Tensor, embeddings: Tensor) -> Tensor:
        """Logits [B, 2] of the ids [B, 2] and the embeddings [B, 2, DIM]."""
        wrong = (embeddings[:, :, 0] - self.number).abs() + (embeddings[:, :, 1] - dense).abs()
        return wrong.amax(dim=1, keepdim=True) * 100 + torch.zeros(2)


def write_witness(path: Path, number: int, *, replace: bool = False) -> Release:
    """Write the release of a number; each number is another version.

    Args:
        path: Where to.
        number: What its rows say.
        replace: Whether a release that is there may be replaced.
    """
    rows = _rows(number)
    writer = ReleaseWriter(
        path,
        name=f"witness-{number}",
        parents=("0" * 64,),
        dense_features=tuple(f"{feature}_id" for feature in FEATURES),
        dim=DIM,
        precision="fp32",
        id_maps={"ids": IdMap.exact(list(range(IDS)))},
        replace=replace,
    )
    with writer:
        for feature in FEATURES:
            chunks = [encode(rows, "fp32")]
            writer.add_table(feature, chunks, feature=feature, node_type=feature, facet=None, id_map="ids")
        writer.add_upper(_export(number))
    return writer.open()


def write_witness_delta(path: Path, number: int, base: Path) -> Release:
    """Write the release of a number as a delta over that of another one: every row differs, so a mixed one is seen."""
    rows = encode(_rows(number), "fp32")
    with DeltaWriter(path, base, parents=("0" * 64,)) as writer:
        for feature in FEATURES:
            writer.change_rows(feature, range(IDS + 1), rows)
        writer.add_upper(_export(number))
    return writer.open()


def _rows(number: int) -> Tensor:
    rows = torch.zeros(IDS + 1, DIM)
    rows[:, 0] = number
    rows[:, 1] = torch.arange(IDS + 1)
    return rows


def _export(number: int) -> ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    example = (torch.zeros(3, len(FEATURES)), torch.zeros(3, len(FEATURES), DIM))
    return torch.export.export(Witness(number).eval(), example, dynamic_shapes=({0: batch}, {0: batch}))
