"""Tensors whose rows several processes hold, brought together in files that all of them map into memory."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

__all__ = ["Pieces", "assemble"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """A tensor, as one process has it.

    Attributes:
        shape: of the whole, the same in every process.
        dtype: of the whole.
        held: the parts that this process has: their first row, and the rows, of any type and device.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    held: Iterable[tuple[int, Tensor]]


def assemble(folder: Path, tensors: Mapping[str, Pieces]) -> dict[str, Tensor]:
    """Bring tensors together in files; all processes of the default group must call it, and each gets the whole ones.

    No process ever holds one: each writes its parts, and pages that are mapped from a file are the system's to drop.

    Args:
        folder: On a file system that all processes see; the files in it lose their names before this returns.
        tensors: Name -> pieces, with the same names in the same order in every process.

    Returns:
        Name -> tensor, mapped from its file.
    """
    is_first = dist.get_rank() == 0
    names: list[str] = [""]
    if is_first:
        folder.mkdir(parents=True, exist_ok=True)
        names = [tempfile.mkdtemp(prefix=".shards-", dir=folder)]
    dist.broadcast_object_list(names, src=0)
    files = {name: Path(names[0]) / str(number) for number, name in enumerate(tensors)}
    try:
        if is_first:
            for name, file in files.items():
                with file.open("wb") as created:
                    created.truncate(_size(tensors[name]) * tensors[name].dtype.itemsize)
        dist.barrier()
        mapped = {}
        for name, pieces in tensors.items():
            # A mapping has no place for no bytes.
            size, dtype = _size(pieces), pieces.dtype
            flat = (
                torch.from_file(str(files[name]), shared=True, size=size, dtype=dtype) if size else torch.empty(0, dtype=dtype)
            )
            mapped[name] = flat.view(pieces.shape)
            for begin, rows in pieces.held:
                part = mapped[name][begin : begin + len(rows)]
                part.copy_(rows.reshape(part.shape))
        dist.barrier()  # all have mapped and written
    finally:
        if is_first:
            shutil.rmtree(names[0], ignore_errors=True)
    return mapped


def _size(pieces: Pieces) -> int:
    return torch.Size(pieces.shape).numel()
