"""What a release's manifest says: tables, features, and the sequence that a model reads.

This module does not import torch: a lookup server ships bytes and never decodes them.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from multifacet.serving.release.parts import shard_folder

Precision = Literal["fp32", "fp16", "int8", "int4"]
KEY_BYTES: Final = 8
"""Of the id that stands before a row, in a table that has slots."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
"""A name that may become a file's name."""


class TableDelta(BaseModel):
    """What a delta's table holds of its own; the other rows are the base's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    changed: tuple[NonNegativeInt, ...] = Field(
        min_length=1, description="How many of the base's rows are others now; of a split table in each shard."
    )
    added: tuple[NonNegativeInt, ...] = Field(
        min_length=1, description="How many rows of new ids stand behind the base's rows; of a split table in each shard."
    )


class ReleaseBase(BaseModel):
    """The release that a delta is laid over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str = Field(pattern=r"^[0-9a-f]{64}$", description="Its version.")
    depth: PositiveInt = Field(description="How many deltas there are from the whole release to this one.")


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
    slot_bytes: NonNegativeInt = Field(
        default=0,
        description="Bytes from one row to the next, each of which has its id before it, int64; the ids of the table's map are "
        "there. 0: rows lie back to back, without ids.",
    )
    delta: TableDelta | None = Field(default=None, description="Of a delta: which of its rows are in its own files.")

    def folder(self, shard: int | None) -> str:
        """Folder of its rows within the release, and of its id map's folder; a shard matters to a split table only."""
        return shard_folder(shard, len(self.shard_rows)) if self.shard_rows and shard is not None else "lookup"

    def file(self, shard: int | None = None) -> str:
        """Name of the file of its rows within the release, or within one shard of it."""
        return f"{self.folder(shard)}/{self.name}.rows"

    def rows_of(self, shard: int | None) -> int:
        """Number of rows that its ids may have there; all of them are in that file, but for a delta's."""
        return self.shard_rows[shard] if self.shard_rows and shard is not None else self.rows

    def changed_file(self, shard: int | None = None) -> str:
        """Name of the file of the row numbers that a delta changes."""
        return f"{self.folder(shard)}/{self.name}.changed"

    def changes(self, shard: int | None) -> tuple[int, int]:
        """How many rows a delta changes and adds there; none if the release is whole."""
        if self.delta is None:
            return 0, 0
        part = shard if self.shard_rows and shard is not None else 0
        return self.delta.changed[part], self.delta.added[part]

    @property
    def stored_bytes(self) -> int:
        """Bytes from one row of its file to the next."""
        return self.slot_bytes or self.row_bytes

    def stored_rows(self, shard: int | None) -> int:
        """Number of rows in that file."""
        return self.rows_of(shard) if self.delta is None else sum(self.changes(shard))


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
    base: ReleaseBase | None = Field(default=None, description="The release that it is laid over; None for a whole release.")
    knows_until: str | None = Field(
        default=None, description="Time until which the model knows of events, ISO 8601; UTC without a zone."
    )

    @model_validator(mode="after")
    def _fit_base(self) -> Self:
        for table in self.tables:
            if (table.delta is None) != (self.base is None):
                raise ValueError(f"table {table.name!r} is a delta without a base, or whole in a delta")
            if table.delta is None:
                continue
            num_parts = len(table.shard_rows) or 1
            if {len(table.delta.changed), len(table.delta.added)} != {num_parts}:
                raise ValueError(f"table {table.name!r} has {num_parts} parts, its delta others: {table.delta}")
            for part in range(num_parts):
                shard = part if table.shard_rows else None
                changed, added = table.changes(shard)
                if added >= table.rows_of(shard) or changed > table.rows_of(shard) - added:
                    raise ValueError(f"table {table.name!r} has {table.rows_of(shard)} rows, its delta more: {table.delta}")
        return self

    @model_validator(mode="after")
    def _fit_slots(self) -> Self:
        keyed = [table for table in self.tables if table.slot_bytes]
        for table in keyed:
            if self.base is not None or self.id_types.get(table.feature) != "int64":
                raise ValueError(f"table {table.name!r} has slots with ids: only whole tables of int64 ids have them")
            if table.slot_bytes < KEY_BYTES + table.row_bytes or table.slot_bytes % KEY_BYTES:
                raise ValueError(
                    f"table {table.name!r} has slots of {table.slot_bytes} bytes: {KEY_BYTES} + {table.row_bytes} or more, a "
                    f"multiple of {KEY_BYTES}, were expected"
                )
        if len({table.id_map for table in keyed}) != len(keyed):
            raise ValueError(f"the ids of one map stand in several tables: {[table.name for table in keyed]}")
        return self

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

    def keyed_table(self, id_map: str) -> ReleaseTable | None:
        """The table in which the ids of a map stand; None if the map has an index, or is hashed."""
        return next((table for table in self.tables if table.id_map == id_map and table.slot_bytes), None)

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
