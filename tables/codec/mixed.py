"""A quantised table on disk, all rows of one precision or each row of its own: more bits for ids that are seen often."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import torch
from torch import Tensor

from multifacet.artifacts import Artifact, ArtifactError, ArtifactWriter
from multifacet.inputs import kind, takes, whole
from multifacet.tables.codec.rows import Precision, Rounding, decode, encode, row_bytes

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

KIND: Final = "quantized-table"
PRECISIONS: Final[tuple[Precision, ...]] = ("int4", "int8", "fp16", "fp32")
_CHUNK_ROWS: Final = 1 << 16
_TIER_BITS: Final = 2
_SLOT_BITS: Final = 32 - _TIER_BITS
_ADDRESS_BYTES: Final = 4


@takes(vectors=kind(Tensor), frequencies=kind(np.ndarray, list, tuple, Tensor), budget_bytes=whole())
def plan_precision(
    vectors: Tensor,
    frequencies: NDArray[Any],
    budget_bytes: int,
    *,
    precisions: Sequence[Precision] = ("int4", "int8", "fp16"),
    rounding: Rounding = "refit",
) -> NDArray[np.uint8]:
    """Chooses each row's precision so that the error, weighted by frequency, is least within a budget.

    Every row starts at the first precision; then steps up are taken in the order of what they save for a byte,
    ``frequency * (error before - error after) / (bytes after - bytes before)``, as long as they fit. The budget holds
    the rows and, if there is more than one precision, 4 bytes a row that say where it is.

    Args:
        vectors: float32 [n, D].
        frequencies: How often each row is read, not negative, [n].
        budget_bytes: Most bytes of the table.
        precisions: What to choose from, in rising size.
        rounding: As the table will be encoded.

    Returns:
        uint8 [n]: each row's position in `PRECISIONS`.

    Raises:
        ValueError: Even the smallest precision is beyond the budget, or an argument is malformed.
    """
    num_rows, dim = vectors.shape
    weights = np.asarray(frequencies, np.float64)
    sizes = [row_bytes(dim, precision) for precision in precisions]
    if sizes != sorted(set(sizes)):
        raise ValueError(f"precisions are {list(precisions)} of {sizes} bytes; expected rising sizes.")
    if weights.shape != (num_rows,) or not (weights >= 0).all():
        raise ValueError(f"frequencies are {list(weights.shape)}; expected [{num_rows}], none negative or NaN.")
    addresses = _ADDRESS_BYTES * num_rows if len(precisions) > 1 else 0
    left = budget_bytes - addresses - sizes[0] * num_rows
    if left < 0:
        raise ValueError(
            f"{num_rows} {precisions[0]} rows take {budget_bytes - left} bytes with their addresses; the budget is "
            f"{budget_bytes}. Raise it, or choose from fewer precisions."
        )
    errors = [_row_errors(vectors, precision, rounding) for precision in precisions]
    steps = [
        weights * np.maximum(errors[step] - errors[step + 1], 0) / (sizes[step + 1] - sizes[step])
        for step in range(len(precisions) - 1)
    ]
    # A row's second step must not come before its first, whatever rounding did to its errors.
    for step in range(1, len(steps)):
        steps[step] = np.minimum(steps[step], steps[step - 1])
    chosen = np.zeros(num_rows, np.int64)
    if steps:
        savings = np.concatenate(steps)
        # Stable, so that of equal savings a row's earlier step and lower rows go first.
        order = np.argsort(-savings, kind="stable")
        costs = np.repeat([after - before for before, after in pairwise(sizes)], num_rows)[order]
        taken = order[(np.cumsum(costs) <= left) & (savings[order] > 0)]
        np.add.at(chosen, taken % num_rows, 1)
    return np.array([PRECISIONS.index(precision) for precision in precisions], np.uint8)[chosen]


def _row_errors(vectors: Tensor, precision: Precision, rounding: Rounding) -> NDArray[np.float64]:
    errors = np.empty(len(vectors))
    for start in range(0, len(vectors), _CHUNK_ROWS):
        chunk = vectors[start : start + _CHUNK_ROWS]
        decoded = decode(encode(chunk, precision, _rounding(precision, rounding)), chunk.shape[1], precision)
        errors[start : start + len(chunk)] = (decoded - chunk).double().square().sum(1)
    return errors


class MixedTable:
    """Encoded rows, mapped from an artefact: one block of rows for each precision that occurs.

    On disk::

        manifest.json        rows, dim, rounding, tiers, and the files' sha256
        rows.int4 ...        the rows of that precision, in order: rows x row_bytes(dim, precision) bytes, nothing else
        addresses.u32        uint32 [rows]: place in `PRECISIONS` (2 bits), position in that file (30 bits);
                             absent if all rows have one precision, as then row i is at position i

    Attributes:
        num_rows: Rows.
        dim: Elements a row.
        rounding: How INT8 and INT4 rows were rounded.
        tiers: Rows of each precision that occurs.
    """

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        self.num_rows: int = manifest["rows"]
        self.dim: int = manifest["dim"]
        self.rounding: Rounding = manifest["rounding"]
        self.tiers: Mapping[Precision, int] = manifest["tiers"]
        self._blocks: dict[Precision, Tensor] = {}
        for precision, count in self.tiers.items():
            path, width = artifact.file(f"rows.{precision}"), row_bytes(self.dim, precision)
            if path.stat().st_size != count * width:
                raise ArtifactError(
                    f"{path} has {path.stat().st_size} bytes; {count} rows of {width} bytes are {count * width}."
                )
            mapped = np.memmap(path, np.uint8, mode="c", shape=(count, width)) if count else np.empty((0, width), np.uint8)
            self._blocks[precision] = torch.from_numpy(mapped)
        self._addresses: NDArray[np.uint32] | None = None
        if len(self.tiers) > 1:
            self._addresses = np.fromfile(artifact.file("addresses.u32"), np.uint32)
            if len(self._addresses) != self.num_rows:
                raise ArtifactError(f"{artifact.path}: {len(self._addresses)} addresses for {self.num_rows} rows.")

    def __repr__(self) -> str:
        tiers = ", ".join(f"{precision}={count}" for precision, count in self.tiers.items())
        return f"{type(self).__name__}([{self.num_rows}, {self.dim}], {tiers}, bytes={self.num_bytes})"

    @property
    def num_bytes(self) -> int:
        """Bytes of rows and addresses."""
        rows = sum(count * row_bytes(self.dim, precision) for precision, count in self.tiers.items())
        return rows + (0 if self._addresses is None else self._addresses.nbytes)

    @classmethod
    def write(
        cls,
        path: str | os.PathLike[str],
        vectors: Tensor,
        precision: Precision | NDArray[np.uint8],
        *,
        rounding: Rounding = "refit",
        replace: bool = False,
    ) -> Self:
        """Encodes a table, in chunks, and opens it.

        Args:
            path: The directory to create.
            vectors: float32 [n, D] on the CPU; may be mapped.
            precision: One for all rows, or each row's position in `PRECISIONS` (see `plan_precision`).
            rounding: How INT8 and INT4 rows are rounded.
            replace: Whether a table that is already there is replaced.

        Raises:
            ValueError: A row cannot be encoded, or an argument is malformed.
            ArtifactError: The path exists.
        """
        num_rows, dim = vectors.shape
        if isinstance(precision, str):
            tier_of = np.full(num_rows, PRECISIONS.index(precision), np.uint8)
        else:
            tier_of = np.asarray(precision)
        if tier_of.shape != (num_rows,) or tier_of.dtype != np.uint8 or (tier_of >= len(PRECISIONS)).any():
            raise ValueError(f"precisions are {tier_of.dtype}{list(tier_of.shape)}; expected uint8[{num_rows}] below 4.")
        if num_rows > 1 << _SLOT_BITS:
            raise ValueError(f"there are {num_rows} rows; addresses hold {1 << _SLOT_BITS}.")
        tiers = {PRECISIONS[tier]: int(count) for tier, count in zip(*np.unique(tier_of, return_counts=True), strict=True)}
        with ArtifactWriter(path, kind=KIND, replace=replace) as writer:
            for kept in tiers:
                rows = np.flatnonzero(tier_of == PRECISIONS.index(kept))
                with (writer.directory / f"rows.{kept}").open("wb") as stream:
                    for start in range(0, len(rows), _CHUNK_ROWS):
                        chosen = rows[start : start + _CHUNK_ROWS]
                        try:
                            encoded = encode(vectors[chosen], kept, _rounding(kept, rounding))
                        except ValueError as error:
                            raise ValueError(f"among the {kept} rows {chosen[0]} to {chosen[-1]}: {error}") from error
                        stream.write(encoded.numpy().data)
            if len(tiers) > 1:
                (writer.directory / "addresses.u32").write_bytes(_addresses(tier_of).tobytes())
            writer.manifest |= {"rows": num_rows, "dim": dim, "rounding": rounding, "tiers": tiers}
        return cls(Artifact.open(path, kind=KIND, verify=False))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Self:
        """Opens a table.

        Raises:
            ArtifactError: There is no such table, or it is not what its manifest says.
        """
        return cls(Artifact.open(path, kind=KIND, verify=verify))

    def lookup(self, rows: NDArray[np.integer[Any]]) -> Tensor:
        """Decodes rows.

        Args:
            rows: Row numbers [n].

        Returns:
            float32 [n, D].

        Raises:
            IndexError: A row is out of range. (FBGEMM's kernels give row 0 then.)
        """
        wanted = np.asarray(rows)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < self.num_rows):
            outside = wanted[(wanted < 0) | (wanted >= self.num_rows)]
            raise IndexError(f"row {int(outside[0])} is out of range; the table has rows 0 to {self.num_rows - 1}.")
        if self._addresses is None:
            if not self._blocks:
                return torch.empty((0, self.dim))
            ((precision, block),) = self._blocks.items()
            return decode(block[wanted], self.dim, precision)
        addresses = self._addresses[wanted]
        tiers, slots = addresses >> _SLOT_BITS, addresses & np.uint32((1 << _SLOT_BITS) - 1)
        vectors = torch.empty((len(wanted), self.dim))
        for precision, block in self._blocks.items():
            chosen = np.flatnonzero(tiers == PRECISIONS.index(precision))
            vectors[chosen] = decode(block[slots[chosen].astype(np.int64)], self.dim, precision)
        return vectors


def _rounding(precision: Precision, rounding: Rounding) -> Rounding:
    """Gives the rounding as it applies to a precision of several."""
    applies = precision == "int4" or (precision == "int8" and rounding == "refit")
    return rounding if applies else "minmax"


def _addresses(tier_of: NDArray[np.uint8]) -> NDArray[np.uint32]:
    addresses = tier_of.astype(np.uint32) << np.uint32(_SLOT_BITS)
    for tier in np.unique(tier_of):
        rows = np.flatnonzero(tier_of == tier)
        addresses[rows] |= np.arange(len(rows), dtype=np.uint32)
    return addresses
