"""A release: both halves of a trained model, ready to serve, under one version.

On disk::

    manifest.json              kind "release"; the sha256 of its canonical bytes IS the version
    lookup/<table>.rows        quantised rows back to back, row i at byte i x row_bytes: made to be mapped
    lookup/id_maps/...         external id -> row
    ranker/upper.pt2           torch.export program: dense, embeddings -> logits

This module does not import torch: a lookup server ships bytes and never decodes them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from tables.artifact import Artifact, ArtifactError
from tables.idmap import IdMap

KIND = "release"
UPPER = "ranker/upper.pt2"
ID_MAPS = "lookup/id_maps"

Precision = Literal["fp32", "fp16", "int8", "int4"]
Half = Literal["lookup", "ranker"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
"""A name that may become a file's name."""


class ReleaseTable(BaseModel):
    """One quantised embedding table of a release; its position is its slot in the upper model's input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="Unique name of the table.")
    feature: str = Field(description="Id feature whose ids choose the rows: user, pin, advertiser.")
    node_type: str = Field(description="Node type of the graph that the ids belong to.")
    facet: str | None = Field(description="Pretraining that the table started from, if any.")
    rows: PositiveInt = Field(description="Number of rows, the out-of-vocabulary row included.")
    dim: PositiveInt = Field(description="Dimension of a decoded row.")
    precision: Precision = Field(description="Format of the rows.")
    row_bytes: PositiveInt = Field(description="Bytes of one row.")
    id_map: Name = Field(description="Id map that finds the row of an id.")

    @property
    def file(self) -> str:
        """Name of the file of rows within the release."""
        return f"lookup/{self.name}.rows"


class ReleaseManifest(BaseModel):
    """What a release's manifest says beside its list of files."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(description="Name of the trained model (the arm).")
    parents: tuple[str, ...] = Field(min_length=1, description="Fingerprint of the trained model.")
    precision: Precision = Field(description="Precision asked for at publishing.")
    dim: PositiveInt = Field(description="Dimension of every embedding.")
    dense_features: tuple[str, ...] = Field(description="Names of the dense features, in the order of the columns.")
    tasks: tuple[Literal["ctr"], Literal["cvr"]] = Field(description="Tasks, in the order of the logits' columns.")
    tables: tuple[ReleaseTable, ...] = Field(min_length=1, description="Tables, in the order of the upper's slots.")
    id_types: dict[str, Literal["int64", "string"]] = Field(description="Type of the ids of each feature.")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        names = [table.name for table in self.tables]
        if len(set(names)) != len(names):
            raise ValueError(f"table names repeat: {names}")
        if {table.feature for table in self.tables} != set(self.id_types):
            raise ValueError(f"id_types {sorted(self.id_types)} are not the features of the tables")
        odd = [table.name for table in self.tables if table.dim != self.dim]
        if odd:
            raise ValueError(f"tables {odd} have another dim than {self.dim}")
        return self


class Release:
    """A published model, opened.

    Attributes:
        version: sha256 (hex) of the manifest: equal content has an equal version.
        manifest: The release's description.
    """

    def __init__(self, artifact: Artifact, manifest: ReleaseManifest):
        self._artifact = artifact
        self.manifest = manifest
        self.version: str = artifact.fingerprint

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True, half: Half | None = None) -> Release:
        """Open a release.

        Args:
            path: Its directory.
            verify: Whether to read the files and compare their checksums. Names and sizes are compared in any case.
            half: Verify the files of this half only: a ranker need not read tables that another host serves.

        Raises:
            ArtifactError: A file is missing, extra, truncated or changed (named in the message), the manifest is not
                a release's, or a table's file does not have rows x row_bytes bytes.
        """
        artifact = Artifact.open(path, kind=KIND, verify=verify and half is None)
        try:
            manifest = ReleaseManifest.model_validate(artifact.manifest)
        except ValidationError as error:
            raise ArtifactError(f"{artifact.path}: the manifest is not a release's: {error}") from error
        files: Mapping[str, Mapping[str, object]] = artifact.manifest["files"]
        for table in manifest.tables:
            expected = table.rows * table.row_bytes
            if table.file not in files or files[table.file]["bytes"] != expected:
                given = files.get(table.file, {}).get("bytes", "no")
                raise ArtifactError(
                    f"{artifact.path}: {table.file} has {given} bytes: {table.rows} rows of {table.row_bytes} bytes "
                    f"take {expected}. Publish the model again."
                )
        if UPPER not in files:
            raise ArtifactError(f"{artifact.path}: there is no {UPPER}. Publish the model again.")
        if verify and half is not None:
            for name, entry in files.items():
                if name.startswith(f"{half}/"):
                    _verify_file(artifact.file(name), name, str(entry["sha256"]))
        return cls(artifact, manifest)

    @property
    def path(self) -> Path:
        """The release's directory."""
        return self._artifact.path

    @property
    def precision(self) -> Precision:
        """The precision asked for at publishing."""
        return self.manifest.precision

    @property
    def tables(self) -> tuple[ReleaseTable, ...]:
        """The tables, in the order of the upper model's embedding slots."""
        return self.manifest.tables

    @property
    def lookup_bytes(self) -> int:
        """Bytes of the lookup half: what it takes of memory once all of it was read."""
        files: Mapping[str, Mapping[str, int]] = self._artifact.manifest["files"]
        return sum(entry["bytes"] for name, entry in files.items() if name.startswith("lookup/"))

    @property
    def upper_path(self) -> Path:
        """The exported upper model."""
        return self._artifact.file(UPPER)

    def map_rows(self, table: ReleaseTable, *, populate: bool = False) -> npt.NDArray[np.uint8]:
        """Map a table's rows into memory, read-only.

        Args:
            table: One of `tables`.
            populate: Whether to map every page at once instead of at its first use.

        Returns:
            uint8 [rows, row_bytes]; the file stays mapped as long as the array lives.
        """
        flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
        with self._artifact.file(table.file).open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
        mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, dtype=np.uint8).reshape(table.rows, table.row_bytes)

    def id_map(self, name: str) -> IdMap:
        """Load an id map by its name.

        Raises:
            ArtifactError: Another release has taken this one's place since it was opened.
        """
        loaded = IdMap.load(self.path / ID_MAPS, name)
        self._artifact.check_unreplaced()
        return loaded

    def __repr__(self) -> str:
        num_rows = sum(table.rows for table in self.tables)
        return (
            f"Release({self.manifest.name}, tables={len(self.tables)}, rows={num_rows}, dim={self.manifest.dim}, "
            f"precision={self.precision}, version={self.version[:12]})"
        )


def _verify_file(path: Path, name: str, sha256: str) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise ArtifactError(
            f"{path}: {name} has sha256 {found}, the manifest says {sha256}. Fetch an intact copy, or publish again."
        )
