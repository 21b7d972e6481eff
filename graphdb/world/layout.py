"""Where a world's files are, and how they come to be there whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import save_file

from multifacet.graphdb.sql import GraphError

MANIFEST: Final = "world.json"
_LOCK: Final = ".lock"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Paths within a world's folder.

    ```
    world.json                                  settings, counts, names and sizes of the files
    nodes/<type>.parquet                        id
    edges/made_by.parquet, in.parquet           src, dst
    edges/<clicks|converts>/month-000.parquet   src, dst, time; ascending in time
    tables/periods.parquet
    tables/<placements|visits|responses>/month-000.parquet
    truth/nodes.safetensors                     what never changes: appeals, lives, weights
    truth/interests/month-000.safetensors       interests of the users
    truth/noise/<clicks|converts>/month-000.safetensors    is_noise of the edges of the same month, in order
    ```
    """

    folder: Path

    def nodes(self, node_type: str) -> Path:
        """Ids of one node type."""
        return self.folder / "nodes" / f"{node_type}.parquet"

    def edges(self, relation: str, month: int | None = None) -> Path:
        """Edges of an untimed relation, or of a timed one in a month."""
        return self._monthly(Path("edges") / relation, month, "parquet")

    def table(self, name: str, month: int | None = None) -> Path:
        """A table, or its rows of a month."""
        return self._monthly(Path("tables") / name, month, "parquet")

    @property
    def truth(self) -> Path:
        """What never changes of the truth."""
        return self.folder / "truth" / "nodes.safetensors"

    def interests(self, month: int) -> Path:
        """Interests of the users in a month."""
        return self._monthly(Path("truth/interests"), month, "safetensors")

    def noise(self, relation: str, month: int) -> Path:
        """Which edges of a month are noise."""
        return self._monthly(Path("truth/noise") / relation, month, "safetensors")

    def _monthly(self, stem: Path, month: int | None, suffix: str) -> Path:
        name = Path(f"{stem}.{suffix}") if month is None else stem / f"month-{month:03d}.{suffix}"
        return self.folder / name


@contextlib.contextmanager
def unfinished(folder: Path, fingerprint: str) -> Iterator[Path]:
    """Yields a hidden folder beside `folder`, which a later run of the same settings takes up; renames it at the end.

    Raises:
        GraphError: Another process is generating the same world.
    """
    work = folder.with_name(f".{folder.name}.unfinished-{fingerprint[:16]}")
    work.mkdir(parents=True, exist_ok=True)
    with (work / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"another process is generating {folder} with the same settings; wait for it, or choose another folder"
            raise GraphError(msg) from error
        yield work
        (work / _LOCK).unlink()
        work.rename(folder)
    _sync(folder.parent)


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> None:
    """Writes the manifest with the name and size of every other file."""
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, _LOCK)
    }
    with (folder / MANIFEST).open("w") as file:
        json.dump({**fields, "files": files}, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest, and looks whether the files that it names are there.

    Raises:
        GraphError: There is no world in the folder, or a file of it is missing or cut off.
    """
    path = folder / MANIFEST
    if not path.is_file():
        msg = f"{folder} holds no world: {MANIFEST} is missing; make one with World.generate(config, folder)"
        raise GraphError(msg)
    manifest: dict[str, Any] = json.loads(path.read_text())
    for name, size in manifest["files"].items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes, not {size}"
            msg = f"{folder / name} {state}; remove {folder} and generate the world again"
            raise GraphError(msg)
    return manifest


def save_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Writes a safetensors file whole or not at all."""
    with _replacing(path) as part:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, part)


@contextlib.contextmanager
def writing(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Yields a writer of a Parquet file that is there whole or not at all."""
    # Ids are drawn at random: a dictionary would not pay, packing their few bits does.
    packed = {field.name: "DELTA_BINARY_PACKED" for field in schema}
    with (
        _replacing(path) as part,
        pq.ParquetWriter(part, schema, use_dictionary=False, column_encoding=packed, compression="none") as writer,
    ):
        yield writer


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
