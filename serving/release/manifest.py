"""What a release's manifest says: tables, features, and the sequence that a model reads.

This module does not import torch: a lookup server ships bytes and never decodes them.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from multifacet.serving.release.parts import shard_folder

Precision = Literal["fp32", "fp16", "int8", "int4"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
"""A name that may become a file's name."""


class ReleaseTable(BaseModel):
    """One quantised embedding table of a release."""

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
    reads: Literal["id", "sequence", "both"] = Field(
        default="id",
        description="What its rows are of: the feature's id, the ids of the sequence, or both, of a table that they share.",
    )
    list_length: NonNegativeInt = Field(
        default=0,
        description="Ids that the feature has at most (the first of a longer list); their rows' mean is the slot. 0: one id.",
    )
    shard_rows: tuple[PositiveInt, ...] = Field(
        default=(),
        description="Number of rows in each shard, an out-of-vocabulary row included; empty if every lookup host has all rows.",
    )

    def folder(self, shard: int | None) -> str:
        """Folder of its rows within the release, and of its id map's folder; a shard matters to a split table only."""
        return shard_folder(shard, len(self.shard_rows)) if self.shard_rows and shard is not None else "lookup"

    def file(self, shard: int | None = None) -> str:
        """Name of the file of its rows within the release, or within one shard of it."""
        return f"{self.folder(shard)}/{self.name}.rows"

    def rows_of(self, shard: int | None) -> int:
        """Number of rows in that file."""
        return self.shard_rows[shard] if self.shard_rows and shard is not None else self.rows


class ReleaseSequence(BaseModel):
    """The sequence of ids that a model reads of its user, such as recent pins.

    Its rows come from the tables that read "sequence" or "both", one a facet and in that order; the candidate's rows, which
    choose among them, from the tables of `candidate_feature`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    feature: str = Field(description="Name under which requests carry it: recent_pins.")
    candidate_feature: str = Field(description="Id feature whose rows it is pooled for: pin.")
    length: PositiveInt = Field(description="Most ids that the model reads, the latest first; a longer sequence is cut.")
    slots: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=1, description="Slots of the upper model's input that its pooled rows go to, one a facet."
    )


class ReleaseManifest(BaseModel):
    """What a release's manifest says beside its list of files."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(description="Name of the trained model (the arm).")
    parents: tuple[str, ...] = Field(min_length=1, description="Fingerprint of the trained model.")
    precision: Precision = Field(description="Precision asked for at publishing.")
    dim: PositiveInt = Field(description="Dimension of every embedding.")
    dense_features: tuple[str, ...] = Field(description="Names of the dense features, in the order of the columns.")
    tasks: tuple[Literal["ctr"], Literal["cvr"]] = Field(description="Tasks, in the order of the logits' columns.")
    tables: tuple[ReleaseTable, ...] = Field(
        min_length=1,
        description="Tables. Those that read an id fill the upper's slots in their order, less the sequence's.",
    )
    id_types: dict[str, Literal["int64", "string"]] = Field(description="Type of the ids of each feature.")
    num_shards: PositiveInt = Field(default=1, description="How many lookup hosts the split tables are split over.")
    sequence: ReleaseSequence | None = Field(default=None, description="The sequence that the model reads, if any.")
    knows_until: str | None = Field(
        default=None, description="Time until which the model knows of events, ISO 8601; UTC without a zone."
    )

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
        lengths = {(table.feature, table.list_length) for table in self.tables}
        if len(lengths) > len(self.id_types):
            raise ValueError(f"features have tables of several list lengths: {sorted(lengths)}")
        asking = self.sequence.candidate_feature if self.sequence is not None else None
        odd = [table.name for table in self.tables if table.list_length and (table.reads != "id" or table.feature == asking)]
        if odd:
            raise ValueError(f"tables {odd} are of lists of ids, and a sequence or its candidate has one id a place")
        odd = [table.name for table in self.tables if table.shard_rows and len(table.shard_rows) != self.num_shards]
        if odd or (self.num_shards > 1) != any(table.shard_rows for table in self.tables):
            raise ValueError(f"num_shards is {self.num_shards}, but other numbers of shards have rows of tables {odd or 'all'}")
        return self

    @model_validator(mode="after")
    def _fit_sequence(self) -> Self:
        sequence, history = self.sequence, self.history_tables
        if sequence is None:
            if history:
                raise ValueError(f"tables {[table.name for table in history]} read a sequence, and there is none")
            return self
        asking = self.asking_tables
        facets = [table.facet for table in asking]
        if [table.facet for table in history] != facets or len(sequence.slots) != len(facets):
            raise ValueError(
                f"the sequence has tables of {[table.facet for table in history]} and slots {sequence.slots}, its candidates "
                f"have tables of {facets}: expected one of each a facet"
            )
        kinds = {(table.reads, table.feature) for table in history}
        if kinds not in ({("both", sequence.candidate_feature)}, {("sequence", sequence.feature)}):
            raise ValueError(
                f"the sequence's tables are {sorted(kinds)}: expected all ('both', {sequence.candidate_feature!r}) or all "
                f"('sequence', {sequence.feature!r})"
            )
        if sequence.feature in {table.feature for table in self.tables if table.reads != "sequence"}:
            raise ValueError(f"{sequence.feature!r} is an id feature and a sequence")
        if len(set(sequence.slots)) != len(sequence.slots) or max(sequence.slots) >= self.num_slots:
            raise ValueError(f"the sequence's slots are {sequence.slots}: expected others of {self.num_slots}, each once")
        return self

    @property
    def slot_tables(self) -> tuple[ReleaseTable, ...]:
        """The tables whose rows are slots of the upper model, in the order of these slots."""
        return tuple(table for table in self.tables if table.reads != "sequence")

    @property
    def history_tables(self) -> tuple[ReleaseTable, ...]:
        """The tables of the sequence's rows, one a facet."""
        return tuple(table for table in self.tables if table.reads != "id")

    @property
    def asking_tables(self) -> tuple[ReleaseTable, ...]:
        """The tables of the candidate's rows that the sequence is pooled for, one a facet."""
        feature = self.sequence.candidate_feature if self.sequence is not None else None
        return tuple(table for table in self.slot_tables if table.feature == feature)

    @property
    def num_slots(self) -> int:
        """Slots of the upper model's input."""
        return len(self.slot_tables) + (len(self.sequence.slots) if self.sequence is not None else 0)

    @property
    def id_features(self) -> dict[str, Literal["int64", "string"]]:
        """The type of the ids of each feature that a request has one id of, or one a candidate; or a list of them."""
        return {table.feature: self.id_types[table.feature] for table in self.slot_tables}

    @property
    def list_lengths(self) -> dict[str, int]:
        """Ids that each feature of several ids has at most."""
        return {table.feature: table.list_length for table in self.slot_tables if table.list_length}
