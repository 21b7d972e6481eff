"""Bringing a snapshot's vectors to a table's dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

_SAMPLE: Final = 200_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """A matrix that vectors are multiplied by from the right.

    Attributes:
        kind: "pca" or "matrix".
        matrix: float32 [D of the snapshot, D of the table].
        energy: Share of the sampled vectors' sum of squares that the matrix keeps.
    """

    kind: Literal["pca", "matrix"]
    matrix: Tensor
    energy: float


def make_projection(
    projection: Literal["pca"] | Tensor | None, vectors: Tensor, dim: int, *, table: str, trained: Tensor | None = None
) -> Projection | None:
    """Decide how vectors come to a table's dimension.

    Args:
        projection: "pca", a matrix [D, dim], or None where the dimensions must be equal.
        vectors: The snapshot's vectors [n, D].
        dim: The table's dimension.
        table: The table's name, for errors.
        trained: Which vectors a gradient has reached, bool [n]; a PCA looks at those alone. None: all.

    Returns:
        The projection; None where none is needed.

    Raises:
        ValueError: If dimensions differ and no projection is given, a PCA would have to add dimensions, or the matrix
            has another shape or values that are not finite.
    """
    width = vectors.shape[1]
    if isinstance(projection, Tensor):
        if projection.shape != (width, dim) or not bool(projection.isfinite().all()):
            raise ValueError(
                f"table {table}: the projection is {list(projection.shape)}; expected finite [{width}, {dim}], from the "
                "snapshot's dimension to the table's"
            )
        return Projection(kind="matrix", matrix=projection.detach().float().cpu(), energy=1.0)
    if projection is not None and projection != "pca":
        raise ValueError(f"table {table}: projection is {projection!r}; expected 'pca', a matrix or None")
    if width == dim:
        return None
    if projection is None or width < dim:
        pca = " or projection='pca'" if width > dim else ""
        raise ValueError(
            f"table {table} has {dim} elements a row, the snapshot's vectors have {width}: pass a projection, a matrix "
            f"[{width}, {dim}]{pca}, or give the table the snapshot's dimension"
        )
    return _principal(vectors, dim, trained)


def _principal(vectors: Tensor, dim: int, trained: Tensor | None) -> Projection:
    """Find the directions that keep most of the dot products: a PCA without centring, over evenly spaced rows.

    Not centred, because tables are read through dot products, which centring would change.
    """
    step = max(1, len(vectors) // _SAMPLE)
    sample = vectors[::step] if trained is None else vectors[::step][trained[::step]]
    sample = sample.double()
    values, directions = torch.linalg.eigh(sample.T @ sample)
    kept = directions[:, -dim:].flip(1)
    # An eigenvector's sign is arbitrary: the largest element is made positive, so that every rank gets the same matrix.
    peak = kept.gather(0, kept.abs().argmax(0, keepdim=True))
    energy = float(values[-dim:].sum() / values.sum().clamp(min=torch.finfo(torch.float64).tiny))
    return Projection(kind="pca", matrix=(kept * peak.sign()).float().contiguous(), energy=energy)
