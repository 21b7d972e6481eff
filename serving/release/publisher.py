"""Cuts a trained model into a release: quantised rows for the lookup servers, the upper model for the rankers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator
from safetensors import safe_open

from multifacet.artifacts import Artifact, ArtifactError
from multifacet.serving.release.manifest import Name, Precision, ReleaseSequence
from multifacet.serving.release.pooling import Pooling
from multifacet.serving.release.release import Release
from multifacet.serving.release.upper import UpperModel, load_program
from multifacet.serving.release.writer import Layout, ReleaseWriter
from multifacet.tables.codec import encode
from multifacet.tables.ids import IdMap

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

logger = logging.getLogger(__name__)

MODEL_KIND = "ranking-model"
_CHUNK_BYTES = 64 << 20  # of float32 rows in memory at a time
_WEIGHTS = ("F32", "F16")  # as safetensors names them


class ModelTable(BaseModel):
    """One trained embedding table of a model artefact."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Name = Field(description="Unique name of the table.")
    feature: str = Field(description="Id feature whose ids choose the rows.")
    node_type: str = Field(description="Node type of the ids.")
    facet: str | None = Field(default=None, description="Pretraining that the table started from, if any.")
    rows: PositiveInt = Field(description="Number of rows, the out-of-vocabulary row included.")
    dim: PositiveInt = Field(description="Dimension.")
    vectors: str = Field(description="safetensors file with the key `weights`, float32 or float16 [rows, dim].")
    id_map: Name = Field(description="Name of the id map under `id_maps/`.")
    list_length: NonNegativeInt = Field(default=0, description="Ids that the feature has at most; 0: one id.")


class ModelSlot(BaseModel):
    """One of the rows that the upper model sees of a candidate."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    feature: str = Field(description="Id feature, or the sequence's name.")
    facet: str | None = Field(default=None, description="Facet of the row.")


class ModelSequence(BaseModel):
    """The sequence that a model reads."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    feature: str = Field(description="Its name, and the feature of its own tables, if it has any.")
    candidate_feature: str = Field(description="Id feature that it is pooled for; the feature of its tables otherwise.")
    length: PositiveInt = Field(description="Most ids that are read.")
    facets: tuple[str, ...] = Field(min_length=1, description="Facets, in the order of the pooling's rows.")
    request_pooling: str = Field(description="The exported pooling of one user's sequence.")


class ModelLineage(BaseModel):
    """Of which time a model's tables and examples are."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    knows_until: str | None = Field(default=None, description="Time until which the model knows of events, ISO 8601.")


class ModelManifest(BaseModel):
    """What serving reads of a trained model's manifest."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(description="Name of the arm.")
    dense_features: tuple[str, ...] = Field(description="Dense features, in the order of the columns.")
    dim: PositiveInt = Field(description="Dimension of every table.")
    tables: tuple[ModelTable, ...] = Field(min_length=1, description="Tables; those of ids in the order of the upper's slots.")
    slots: tuple[ModelSlot, ...] = Field(default=(), description="The upper's slots; empty if they are the tables.")
    sequence: ModelSequence | None = Field(default=None, description="The sequence that it reads, if any.")
    upper: str = Field(description="The exported upper model.")
    tasks: tuple[Literal["ctr"], Literal["cvr"]] = Field(description="Tasks in the order of the logits' columns.")
    lineage: ModelLineage = Field(default=ModelLineage(), description="Of which time it is.")

    @model_validator(mode="after")
    def _name_tables_once(self) -> Self:
        names = [table.name for table in self.tables]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"table names repeat: {repeated}")
        return self

    @model_validator(mode="after")
    def _match_slots(self) -> Self:
        pooled = self.sequence.feature if self.sequence is not None else None
        tables = [(table.feature, table.facet) for table in self.tables if table.feature != pooled]
        slots = [(slot.feature, slot.facet) for slot in self.slots if slot.feature != pooled]
        if self.slots and tables != slots:
            raise ValueError(f"tables are of {tables}, the upper's slots of {slots}: expected the same, in this order")
        if self.sequence is not None:
            facets = tuple(slot.facet for slot in self.slots if slot.feature == pooled)
            if facets != self.sequence.facets:
                raise ValueError(f"the sequence has the facets {self.sequence.facets}, its slots in the upper {facets}")
        return self

    def reads(self, table: ModelTable) -> Literal["id", "sequence", "both"]:
        """What a table's rows are of."""
        if self.sequence is None:
            return "id"
        if table.feature == self.sequence.feature:
            return "sequence"
        has_own = any(other.feature == self.sequence.feature for other in self.tables)
        return "both" if table.feature == self.sequence.candidate_feature and not has_own else "id"

    def release_sequence(self) -> ReleaseSequence | None:
        """The sequence as a release describes it."""
        if self.sequence is None:
            return None
        return ReleaseSequence(
            feature=self.sequence.feature,
            candidate_feature=self.sequence.candidate_feature,
            length=self.sequence.length,
            slots=tuple(place for place, slot in enumerate(self.slots) if slot.feature == self.sequence.feature),
        )


def publish(
    model_path: str | os.PathLike[str],
    release_path: str | os.PathLike[str],
    *,
    precision: Precision = "int4",
    shards: int = 1,
    layout: Layout = "plain",
    replace: bool = False,
) -> Release:
    """Write a release from a trained model.

    Tables are encoded and written in chunks, so that memory does not grow with them. The same model and precision
    give the same version wherever and whenever they are published.

    Args:
        model_path: Directory of a trained model (artefact of kind "ranking-model").
        release_path: Directory to write; it appears whole or not at all.
        precision: Format of the rows: int4, int8, fp16 or fp32.
        shards: How many lookup hosts to split the tables over; see `serving.release.sharding.split`.
        layout: How rows of exact int64 ids lie: one behind the other with an index beside them (plain), or each where its id
            says, with its id (placed): faster lookups, and more memory, 64 bytes a row instead of 50 for INT4 rows of 64
            values. See `docs/release-format.md`.
        replace: Whether a release that is there already may be replaced.

    Returns:
        The release, opened; its files were written and hashed just now.

    Raises:
        ArtifactError: The model is damaged, its parts contradict each other, or the release exists already.
        ValueError: A table cannot be encoded (a value that is not finite, or leaves the format's range).
    """
    model = TrainedModel.open(model_path)
    writer = ReleaseWriter(
        release_path,
        name=model.manifest.name,
        parents=(model.artifact.fingerprint,),
        dense_features=model.manifest.dense_features,
        dim=model.manifest.dim,
        precision=precision,
        id_maps=model.id_maps,
        num_shards=shards,
        sequence=model.manifest.release_sequence(),
        knows_until=model.manifest.lineage.knows_until,
        layout=layout,
        replace=replace,
    )
    with writer:
        for table in model.manifest.tables:
            writer.add_table(
                table.name,
                model.encoded(table, precision),
                feature=table.feature,
                node_type=table.node_type,
                facet=table.facet,
                id_map=table.id_map,
                reads=model.manifest.reads(table),
                list_length=table.list_length,
            )
        writer.add_upper(model.upper)
        if model.pooling is not None:
            writer.add_pooling(model.pooling)
    release = writer.open()
    logger.info("published %s at %s", release, release.path)
    return release


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, opened for publishing.

    Attributes:
        artifact: Its artefact.
        manifest: What serving reads of its manifest.
        upper: The exported upper model, checked.
        pooling: The exported pooling of its sequence, checked; None if it reads none.
        id_maps: Its id maps by name.
    """

    artifact: Artifact
    manifest: ModelManifest
    upper: ExportedProgram
    pooling: ExportedProgram | None
    id_maps: dict[str, IdMap]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a trained model, and check that its parts belong together.

        Raises:
            ArtifactError: It is damaged, or its parts contradict each other.
        """
        artifact = Artifact.open(path, kind=MODEL_KIND)
        try:
            if "request_pooling" not in (artifact.manifest.get("sequence") or {"request_pooling": ""}):
                raise ArtifactError(
                    f"{artifact.path}: the model reads a sequence, and an older version exported it without what serving "
                    "needs: train it again"
                )
            model = ModelManifest.model_validate(artifact.manifest)
        except ValidationError as error:
            raise ArtifactError(f"{artifact.path}: the manifest is not a trained model's: {error}") from error
        program = load_program(artifact.file(model.upper), allow_sample_inputs=True)
        num_slots = len(model.slots) or len(model.tables)
        # Before the tables, which take long to write: they are written behind them.
        UpperModel(program, num_dense=len(model.dense_features), num_slots=num_slots, dim=model.dim)
        pooling: ExportedProgram | None = None
        if model.sequence is not None:
            pooling = load_program(artifact.file(model.sequence.request_pooling), allow_sample_inputs=True)
            Pooling(pooling, length=model.sequence.length, num_facets=len(model.sequence.facets), dim=model.dim)
        return cls(artifact, model, program, pooling, _load_id_maps(artifact, model))

    def encoded(self, table: ModelTable, precision: Precision) -> Iterator[Tensor]:
        """A table's rows, encoded chunk by chunk: uint8 [n, row_bytes] each.

        Raises:
            ArtifactError: The file is not what the manifest says.
            ValueError: A value cannot be encoded.
        """
        return _encoded(self.artifact, table, precision)


def _load_id_maps(artifact: Artifact, model: ModelManifest) -> dict[str, IdMap]:
    id_maps = {table.id_map: IdMap.load(artifact.path / "id_maps", table.id_map) for table in model.tables}
    feature_types: dict[str, str] = {}
    for table in model.tables:
        id_map = id_maps[table.id_map]
        where = f"{artifact.path}: table {table.name!r}"
        if id_map.num_hashes != 1:
            raise ArtifactError(
                f"{where} uses an id map of {id_map.num_hashes} hashes: a release holds one row an id; train with one"
            )
        if id_map.num_rows != table.rows:
            raise ArtifactError(f"{where} has {table.rows} rows, but its id map {table.id_map!r} maps to {id_map.num_rows}")
        if feature_types.setdefault(table.feature, id_map.id_type) != id_map.id_type:
            raise ArtifactError(f"{where}: feature {table.feature!r} has id maps of both id types")
        if table.dim != model.dim:
            raise ArtifactError(f"{where} has dim {table.dim}, the model {model.dim}")
    return id_maps


def _encoded(artifact: Artifact, table: ModelTable, precision: Precision) -> Iterator[Tensor]:
    """A table's rows, encoded chunk by chunk."""
    chunk_rows = max(1, _CHUNK_BYTES // (4 * table.dim))
    with safe_open(artifact.file(table.vectors), framework="pt") as stored:
        weights = stored.get_slice("weights")
        shape = tuple(weights.get_shape())
        if shape != (table.rows, table.dim) or weights.get_dtype() not in _WEIGHTS:
            raise ArtifactError(
                f"{artifact.path}: {table.vectors} holds {weights.get_dtype()} {list(shape)}, the manifest says "
                f"{' or '.join(_WEIGHTS)} {[table.rows, table.dim]}"
            )
        for start in range(0, table.rows, chunk_rows):
            try:
                yield encode(weights[start : start + chunk_rows].float(), precision)
            except ValueError as error:
                raise ValueError(f"table {table.name!r}, chunk from row {start}: {error}") from error
