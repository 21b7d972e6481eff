"""A snapshot: the vectors that one pretraining gave to the ids of a graph, as an artefact."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final, Self, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from multifacet.artifacts import Artifact, ArtifactError, ArtifactWriter
from multifacet.tables.ids.column import IdColumn, IdType, to_arrow
from multifacet.tables.ids.id_map import IdMap
from multifacet.tables.snapshot_table import OptimizerRows, SnapshotPrecision, SnapshotTable, check_table, write_table

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

KIND: Final = "snapshot"

_DTYPES: Final[dict[str, torch.dtype]] = {"fp32": torch.float32, "fp16": torch.float16}
_PARAMETERS: Final = "parameters.safetensors"


class _Entry(BaseModel):
    """What the manifest says of one table."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rows: int = Field(ge=0, description="Rows of ids and vectors.")
    dim: int = Field(ge=1, description="The vectors' dimension.")
    precision: SnapshotPrecision = Field(description="How the vectors are stored.")
    id_type: IdType = Field(description="The external ids' type.")
    vectors: str = Field(description="The safetensors file.")
    ids: str = Field(description="The Parquet file.")
    optimizer: str | None = Field(default=None, description="The safetensors file of what a warm start needs.")
    untrained: int | None = Field(
        default=None, ge=1, description="Rows that no gradient has reached: false in the Parquet file's column 'trained'."
    )


class _Contents(BaseModel):
    """The manifest's own fields; those of every artefact are checked by `Artifact`."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    facet: str = Field(min_length=1, description="How the vectors were trained.")
    tables: dict[str, _Entry] = Field(min_length=1, description="By node type.")
    parents: list[str] = Field(description="Fingerprints of what the training read.")
    window: dict[str, Any] = Field(description="The graph window.")
    metrics: dict[str, Any] = Field(description="What the training measured.")
    config: dict[str, Any] = Field(description="The effective configuration.")
    parameters: str | None = Field(default=None, description="The safetensors file of what was trained beside the tables.")


class Snapshot:
    """Vectors by node type, with the ids they belong to and where they came from.

    Attributes:
        facet: How the vectors were trained, e.g. "kge".
        parents: Fingerprints of what the training read.
        window: The graph window.
        metrics: What the training measured.
        config: The effective configuration.

    On disk it is an `Artifact` of kind "snapshot"::

        manifest.json               facet, tables, parents, window, metrics, config, and the files' sha256
        vectors/<node type>.safetensors     key "vectors", [rows, dim], float32 or float16
        ids/<node type>.parquet             column "id", int64 or string [rows]; column "trained", bool, only if some are not
        optimizer/<node type>.safetensors   keys "adagrad", "lengths", float32 [rows]; only if it was kept
        parameters.safetensors              what was trained beside the tables, such as relations; only if it was kept

    Row i of both belongs to idx i of the graph that was trained on.

    Example:
        >>> import tempfile
        >>> table = SnapshotTable(ids=pa.array([7, 9]), vectors=torch.eye(2))
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     Snapshot.write(f"{parent}/kge", facet="kge", tables={"user": table})
        Snapshot(facet=kge, user=[2, 2], precision=fp32)
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        contents = _validate(artifact.manifest, f"{artifact.path} is not a snapshot that this version reads")
        self.facet: str = contents.facet
        self.parents: tuple[str, ...] = tuple(contents.parents)
        self.window: Mapping[str, Any] = contents.window
        self.metrics: Mapping[str, Any] = contents.metrics
        self.config: Mapping[str, Any] = contents.config
        self._tables: Mapping[str, _Entry] = contents.tables
        self._parameters: str | None = contents.parameters

    def __repr__(self) -> str:
        tables = ", ".join(f"{name}=[{entry.rows}, {entry.dim}]" for name, entry in self._tables.items())
        precisions = "/".join(sorted({entry.precision for entry in self._tables.values()}))
        return f"{type(self).__name__}(facet={self.facet}, {tables}, precision={precisions})"

    @classmethod
    def write(
        cls,
        path: str | os.PathLike[str],
        *,
        facet: str,
        tables: Mapping[str, SnapshotTable],
        parents: Sequence[str] = (),
        window: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        precision: SnapshotPrecision = "fp32",
        replace: bool = False,
    ) -> Self:
        """Writes a snapshot, whole or not at all, and opens it.

        Args:
            path: The directory to create.
            facet: How the vectors were trained, e.g. "kge" or "contrastive".
            tables: By node type.
            parents: Fingerprints of what the training read: graph views, and the snapshot it started from.
            window: The graph window, e.g. {"since": ..., "as_of": ...}; times are written in ISO 8601.
            metrics: What the training measured.
            config: The effective configuration.
            parameters: What was trained beside the tables, by name, such as a relation's translation.
            precision: "fp32", or "fp16" for half the bytes.
            replace: Whether a snapshot that is already there is replaced.

        Raises:
            ValueError: A table's ids and vectors differ in length, an id occurs twice or is null, a vector holds NaN
                or Inf (or a value beyond FP16 for precision "fp16"); table and row are named.
            ArtifactError: The path exists, or a field is not JSON.
        """
        if precision not in get_args(SnapshotPrecision):
            raise ValueError(
                f"precision is {precision!r}; expected one of {', '.join(get_args(SnapshotPrecision))}. "
                "Serving's releases hold int8 and int4 rows."
            )
        if not facet or not tables:
            raise ValueError(f"facet is {facet!r} with {len(tables)} tables; expected a name and at least one table.")
        for name, table in tables.items():
            check_table(name, table, precision)
        with ArtifactWriter(path, kind=KIND, replace=replace) as writer:
            (writer.directory / "vectors").mkdir()
            (writer.directory / "ids").mkdir()
            if any(table.optimizer is not None for table in tables.values()):
                (writer.directory / "optimizer").mkdir()
            described = {name: write_table(writer.directory, name, table, precision) for name, table in tables.items()}
            writer.manifest |= {
                "facet": facet,
                "tables": described,
                "parents": list(parents),
                "window": {key: _iso(value) for key, value in (window or {}).items()},
                "metrics": dict(metrics or {}),
                "config": dict(config or {}),
            }
            if parameters:
                contiguous = {name: value.detach().contiguous() for name, value in parameters.items()}
                save_file(contiguous, writer.directory / _PARAMETERS)
                writer.manifest["parameters"] = _PARAMETERS
            _validate(writer.manifest, f"The snapshot {path} is not written")
        return cls.load(path, verify=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Self:
        """Opens a snapshot; vectors stay on disk until they are used.

        Args:
            path: The snapshot's directory.
            verify: Whether to compare every file's sha256 first (sizes are compared in any case).

        Raises:
            ArtifactError: There is no snapshot, or it is not what its manifest says.
        """
        return cls(Artifact.open(path, kind=KIND, verify=verify))

    @property
    def path(self) -> Path:
        """The snapshot's directory."""
        return self._artifact.path

    @property
    def manifest(self) -> dict[str, Any]:
        """All fields of the manifest."""
        return self._artifact.manifest

    @property
    def fingerprint(self) -> str:
        """The sha256 (hex) of the manifest, which covers every file."""
        return self._artifact.fingerprint

    @property
    def node_types(self) -> tuple[str, ...]:
        """The node types that have a table, sorted."""
        return tuple(sorted(self._tables))

    def num_rows(self, node_type: str) -> int:
        """The rows of a table."""
        return self._entry(node_type).rows

    def dim(self, node_type: str) -> int:
        """The dimension of a table's vectors."""
        return self._entry(node_type).dim

    def ids(self, node_type: str) -> pa.Array:
        """Reads a table's external ids.

        Returns:
            int64 or string [rows]; position i belongs to row i of `vectors`.

        Raises:
            KeyError: There is no table for this node type.
            ArtifactError: The file does not hold what the manifest says, or was replaced.
        """
        entry = self._entry(node_type)
        path = self._artifact.file(entry.ids)
        try:
            ids = to_arrow(pq.read_table(path, columns=["id"]).column("id"))
            found = IdColumn.of(ids[:0]).id_type
        except (pa.ArrowException, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is not a Parquet file with a column 'id' of ids: {error}.") from error
        self._artifact.check_unreplaced()
        if (len(ids), found) != (entry.rows, entry.id_type):
            raise ArtifactError(f"{path} holds {len(ids)} {found} ids; the manifest says {entry.rows} {entry.id_type} ids.")
        return ids

    def vectors(self, node_type: str) -> Tensor:
        """Maps a table's vectors into memory.

        Returns:
            float32 or float16 [rows, dim], as stored. Pages are read when they are touched. The mapping is private:
            writing to the tensor never changes the snapshot, but copies the touched pages.

        Raises:
            KeyError: There is no table for this node type.
            ArtifactError: The file does not hold what the manifest says, or was replaced.
        """
        entry = self._entry(node_type)
        vectors = self._tensors(entry.vectors, ("vectors",))["vectors"]
        if vectors.shape != (entry.rows, entry.dim) or vectors.dtype != _DTYPES[entry.precision]:
            raise ArtifactError(
                f"{self.path / entry.vectors} holds {vectors.dtype} {list(vectors.shape)}; the manifest says {entry.precision} "
                f"[{entry.rows}, {entry.dim}]."
            )
        return vectors

    def to_embedding(self, node_type: str, *, freeze: bool = False) -> tuple[torch.nn.Embedding, IdMap]:
        """Makes a plain torch table of a node type's vectors, and the map from external ids to its rows.

        The last row is for ids that the snapshot does not know: it is zero, stays so (`padding_idx`), and so is a row that no
        gradient has reached at first. Look ids up by ``embedding(torch.from_numpy(id_map.rows(ids)))``.

        Args:
            node_type: Which table.
            freeze: Whether training leaves it as it is.

        Returns:
            The embedding, float32 [rows + 1, dim], and its exact id map.

        Raises:
            KeyError: There is no table for this node type.

        Example:
            >>> import tempfile
            >>> table = SnapshotTable(ids=pa.array(["a", "b"]), vectors=torch.eye(2))
            >>> with tempfile.TemporaryDirectory() as parent:
            ...     snapshot = Snapshot.write(f"{parent}/kge", facet="kge", tables={"pin": table})
            ...     embedding, id_map = snapshot.to_embedding("pin")
            >>> embedding(torch.from_numpy(id_map.rows(["b", "new"]))).tolist()
            [[0.0, 1.0], [0.0, 0.0]]
        """
        ids, vectors, trained = self.ids(node_type), self.vectors(node_type), self.trained(node_type)
        weights = torch.zeros(len(vectors) + 1, vectors.shape[1])
        weights[:-1] = vectors
        if trained is not None:
            weights[:-1][~trained] = 0.0
        embedding = torch.nn.Embedding(weights.shape[0], weights.shape[1], padding_idx=len(vectors), _weight=weights)
        embedding.weight.requires_grad_(not freeze)
        return embedding, IdMap.exact(ids)

    def optimizer(self, node_type: str) -> OptimizerRows | None:
        """Maps what a warm start needs of a table's rows; None if the snapshot does not keep it.

        Raises:
            KeyError: There is no table for this node type.
            ArtifactError: The file does not hold what the manifest says, or was replaced.
        """
        entry = self._entry(node_type)
        if entry.optimizer is None:
            return None
        found = self._tensors(entry.optimizer, ("adagrad", "lengths"))
        for name, values in found.items():
            if values.shape != (entry.rows,) or values.dtype != torch.float32:
                raise ArtifactError(
                    f"{self.path / entry.optimizer} holds {name} as {values.dtype} {list(values.shape)}; expected "
                    f"torch.float32 [{entry.rows}]."
                )
        return OptimizerRows(adagrad=found["adagrad"], lengths=found["lengths"])

    def num_untrained(self, node_type: str) -> int:
        """The rows that no gradient has reached, as far as the snapshot says."""
        return self._entry(node_type).untrained or 0

    def trained(self, node_type: str) -> Tensor | None:
        """Reads which rows a gradient has reached; None if all were, or the snapshot does not say.

        Returns:
            bool [rows], or None.

        Raises:
            KeyError: There is no table for this node type.
            ArtifactError: The file does not hold what the manifest says, or was replaced.
        """
        entry = self._entry(node_type)
        if entry.untrained is None:
            return None
        path = self._artifact.file(entry.ids)
        try:
            column = pq.read_table(path, columns=["trained"]).column("trained")
            trained = torch.from_numpy(column.to_numpy().astype(np.bool_))
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} has no column 'trained' of booleans, which the manifest promises: {error}.") from error
        self._artifact.check_unreplaced()
        if len(trained) != entry.rows or len(trained) - int(trained.sum()) != entry.untrained:
            raise ArtifactError(
                f"{path} does not mark {entry.untrained} of {entry.rows} rows as untrained, as the manifest says."
            )
        return trained

    def parameters(self) -> dict[str, Tensor]:
        """Maps what was trained beside the tables, by name; empty if the snapshot does not keep it."""
        return {} if self._parameters is None else self._tensors(self._parameters)

    def _tensors(self, name: str, keys: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Maps tensors of one file, all of them if no keys are given."""
        path = self._artifact.file(name)
        try:
            with safe_open(path, framework="pt") as stored:
                found = {key: stored.get_tensor(key) for key in (keys if keys is not None else stored.keys())}
        except SafetensorError as error:
            named = f" with the key{'s' * (len(keys) > 1)} {', '.join(map(repr, keys))}" if keys else ""
            raise ArtifactError(f"{path} is not a safetensors file{named}: {error}.") from error
        self._artifact.check_unreplaced()
        return found

    def _entry(self, node_type: str) -> _Entry:
        if node_type not in self._tables:
            raise KeyError(f"The snapshot has no table for {node_type!r}; it has {', '.join(self.node_types)}.")
        return self._tables[node_type]


def _validate(manifest: dict[str, Any], failure: str) -> _Contents:
    try:
        return _Contents.model_validate(manifest)
    except ValidationError as error:
        raise ArtifactError(f"{failure}: {error}") from error


def _iso(value: object) -> object:
    return value.isoformat() if isinstance(value, dt.date) else value
