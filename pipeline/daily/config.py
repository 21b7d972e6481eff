"""What a pipeline's file says, section by section."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from multifacet.contrastive import ContrastiveConfig
from multifacet.inputs import Configuration
from multifacet.kge import KgeConfig
from multifacet.pipeline.diagnosis.gates import GatesSection
from multifacet.ranking import FeatureConfig, LabelledColumns, RankingConfig, Weighting, arm_config
from multifacet.serving import Limits
from multifacet.training import WarmStartConfig

__all__ = [
    "EvaluateSection",
    "ExamplesSection",
    "FacetSection",
    "GatesSection",
    "LoadSection",
    "Pipeline",
    "RankerSection",
    "ReleaseSection",
    "RolloutSection",
    "StoreSection",
]


class StoreSection(Configuration):
    """`[store]`: the graph, and what a day is."""

    path: Path = Field(description="the store's file; it is made on the first day")
    recipe: str | None = Field(default=None, description="recipe that makes it: a name, or a TOML file's path")
    source: Path | None = Field(default=None, description="folder of the recipe's raw files")
    graph_schema: Path | None = Field(
        default=None, alias="schema", description="TOML file of node types and relations, for a store that loads fill"
    )
    timezone: str = Field(default="UTC", description="zone in which a day begins at midnight, such as America/New_York")
    folder: Path | None = Field(default=None, description="folder of stages, releases and history; PATH.daily by default")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.recipe is not None and self.graph_schema is not None:
            raise ValueError("recipe and schema both say what the store holds: give one of them")
        if self.source is not None and self.recipe is None:
            raise ValueError("source is the folder of a recipe's files: give recipe too")
        return self

    @field_validator("timezone")
    @classmethod
    def _check_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"{name!r} is no time zone that this machine knows: expected a name such as UTC") from error
        return name


class LoadSection(Configuration):
    """`[[load]]`: files or rows of a day, and what they hold; `{day}` is the day, and `{next_day}` the one after it."""

    nodes: str | None = Field(default=None, description="node type that they hold")
    relation: str | None = Field(default=None, description="relation that they hold")
    table: str | None = Field(default=None, description="plain table that they replace")
    files: str | None = Field(default=None, min_length=1, description="path or glob, such as events/{day}/*.parquet")
    where: str | None = Field(
        default=None, description="of files: SQL condition that chooses rows, such as clicked = 1; all by default"
    )
    address: str | None = Field(
        default=None,
        min_length=1,
        description="in place of files: iceberg:CATALOG/NAMESPACE.TABLE, delta:PATH, s3://BUCKET/FOLDER, sqlite:///FILE, ...",
    )
    conditions: tuple[str, ...] = Field(
        default=(), description="of an address: rows of the day, such as time >= {day} and time < {next_day}, one a condition"
    )
    query: str | None = Field(default=None, description="of a database's address: one SELECT of the day's rows")
    options: dict[str, str] = Field(default_factory=dict, description="of an address: its catalogue's or storage's properties")
    missing: Literal["stop", "skip"] = Field(default="stop", description="what to do on a day without such files")
    id: str = Field(default="id", description="column of a node's external id")
    src: str = Field(default="src", description="column of an edge's head")
    dst: str = Field(default="dst", description="column of an edge's tail")
    time: str | None = Field(default=None, description="column of an edge's time (default: time), or of a node's")
    weight: str = Field(default="weight", description="column of an edge's weight")
    missing_nodes: Literal["create", "hold", "reject"] = Field(
        default="create", description="what becomes of an edge whose node is unknown"
    )
    max_rejected: int | None = Field(default=None, ge=0, description="rows that may be set aside; with more the run stops")
    reading: dict[str, Any] = Field(default_factory=dict, description="how files are read, such as delimiter or time_unit")

    @model_validator(mode="after")
    def _check(self) -> Self:
        named = [name for name in ("nodes", "relation", "table") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"expected one of nodes, relation and table, got {named or 'none'}")
        if (self.files is None) == (self.address is None):
            raise ValueError("expected files or an address, one of the two")
        if self.address is None and (self.conditions or self.query is not None or self.options):
            raise ValueError("conditions, query and options are of an address: of files, where chooses rows")
        if self.address is not None and self.where is not None:
            raise ValueError("where is of files: of an address, conditions choose rows")
        if self.address is not None and self.missing == "skip":
            raise ValueError("missing is of files: an address has rows of a day, or none")
        if self.where is not None and self.reading:
            raise ValueError("where is for files that read themselves, so reading means nothing with it: leave one out")
        return self

    @property
    def target(self) -> str:
        """What is loaded, in words."""
        kind = next(name for name in ("nodes", "relation", "table") if getattr(self, name) is not None)
        return f"{kind} {getattr(self, kind)}"


class FacetSection(Configuration):
    """`[facets.NAME]`: one pretraining, its window and its schedule."""

    kind: Literal["contrastive", "kge"] = Field(description="pretrainer")
    settings: dict[str, Any] = Field(default_factory=dict, description="fields of its configuration")
    relations: tuple[str, ...] | None = Field(default=None, description="relations of the window; all by default")
    window_days: int | None = Field(default=None, ge=1, description="days of events before the window's end; all by default")
    every_days: int = Field(default=1, ge=1, description="days between two trainings; the last tables serve between them")
    start: Literal["warm", "anew"] = Field(default="warm", description="go on from the last tables, or train from scratch")
    warm_window_days: int | None = Field(
        default=None, ge=1, description="days of events that a warm training learns from; window_days by default"
    )
    warm_settings: dict[str, Any] = Field(default_factory=dict, description="settings to change in a warm training")
    pull: float = Field(default=0.0, ge=0, description="warm: weight of the pull of old rows towards where they were")
    keep_state: float = Field(default=1.0, ge=0, le=1, description="warm: share of the optimizer's state that old rows keep")
    new_rows: Literal["random", "mean"] = Field(default="random", description="warm: where new ids begin")

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.config(warm=False)
        if self.warm_settings and self.start == "anew":
            raise ValueError("warm_settings and start='anew' contradict each other: leave one out")
        if self.start == "anew" and (self.warm_window_days is not None or self.pull):
            raise ValueError("warm_window_days and pull are of a warm start, and start='anew': leave them out")
        dim = self.config(warm=False).dim
        if self.start == "warm" and self.config(warm=True).dim != dim:
            raise ValueError("warm_settings changes dim, and a warm start keeps the tables' width: leave it out")
        return self

    def config(self, *, warm: bool) -> KgeConfig | ContrastiveConfig:
        """Gives the pretrainer's configuration.

        Args:
            warm: Whether the training goes on from older tables.
        """
        fields = self.settings | (self.warm_settings if warm else {})
        return KgeConfig(**fields) if self.kind == "kge" else ContrastiveConfig(**fields)

    @property
    def warm_start(self) -> WarmStartConfig:
        """How a warm training begins."""
        return WarmStartConfig(pull=self.pull, keep_state=self.keep_state, new_rows=self.new_rows)


class ExamplesSection(Configuration):
    """`[ranker.examples]`: labelled rows of one's own, by a query or from files; without it the store's periods are used."""

    files: str | None = Field(default=None, description="Parquet or CSV files; {day} is not replaced: rows are chosen by time")
    query: str | None = Field(default=None, description="SQL query of the store")
    columns: LabelledColumns = Field(description="which column is what; time is needed")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.files is None) == (self.query is None):
            raise ValueError("give one of files and query")
        if self.columns.time is None:
            raise ValueError("rows are divided by time: name the column as columns.time")
        return self


class RankerSection(Configuration):
    """`[ranker]`: the model, and the days that it learns from."""

    settings: dict[str, Any] = Field(default_factory=dict, description="fields of RankingConfig")
    train_days: int = Field(default=70, ge=1, description="days of examples to learn from")
    validate_days: int = Field(default=14, ge=1, description="days behind them, on which training is stopped")
    evaluate_days: int = Field(default=7, ge=1, description="the last days, which no training sees, and gates judge by")
    every_days: int = Field(default=1, ge=1, description="days between two trainings; between them nothing is released")
    weighting: Weighting = Field(default="demand", description="periods: how negatives are drawn")
    negatives: int = Field(default=4, ge=1, description="periods: negatives a positive")
    features: FeatureConfig = Field(default_factory=FeatureConfig, description="periods: what dense features count")
    examples: ExamplesSection | None = Field(default=None, description="labelled rows of one's own, in place of periods")
    seed: int = Field(default=0, ge=0, description="seed of the negatives")

    def config(self, facets: tuple[str, ...]) -> RankingConfig:
        """Gives the ranker's configuration.

        Args:
            facets: The pipeline's facets.
        """
        filled: dict[str, Any] = {"facets": facets, "pretrained_facets": facets}
        if self.examples is not None:
            columns = self.examples.columns
            filled["features"] = ("user", "pin", *(("advertiser",) if columns.advertiser else ()), *columns.features)
        return arm_config("pretrained", **(filled | self.settings))


class EvaluateSection(Configuration):
    """`[evaluate]`: how a ranker is measured."""

    num_resamples: int = Field(default=200, ge=20, description="bootstrap resamples of users behind each interval")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="coverage of the intervals")


class ReleaseSection(Configuration):
    """`[release]`: what is published."""

    precision: Literal["int4", "int8", "fp16", "fp32"] = Field(default="int4", description="precision of the rows")
    shards: int = Field(default=1, ge=1, description="lookup hosts that rows are split over")
    deltas: bool = Field(
        default=False, description="publish what differs from the last release, if that is little; docs/serving.md, Deltas"
    )
    tolerance: float = Field(
        default=0.0, ge=0, le=1, description="deltas: rows that moved by at most this share of their length stay as they are"
    )

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.tolerance and not self.deltas:
            raise ValueError("tolerance says which rows a delta leaves out: set deltas = true, or leave it out")
        return self


class RolloutSection(Configuration):
    """`[rollout]`: the servers that a release is moved to; without it the release only lies there."""

    rankers: tuple[str, ...] = Field(min_length=1, description="addresses of the rankers")
    lookups: tuple[str, ...] = Field(min_length=1, description="gRPC addresses of the lookup servers")
    token_file: Path = Field(description="file with the servers' admin token")
    state: Path | None = Field(default=None, description="folder of the rollout's state; FOLDER/rollout by default")
    timeout_s: float = Field(default=120.0, gt=0, description="how long one server may take for one change, in seconds")
    tls_ca: Path | None = Field(default=None, description="PEM file of the authority that signed their certificates")
    tls_certificate: Path | None = Field(default=None, description="PEM file of a certificate of one's own")
    tls_key: Path | None = Field(default=None, description="PEM file of its private key")
    limits: Limits = Field(default_factory=Limits, description="what a new version must keep to")


class Pipeline(Configuration):
    """A whole pipeline; `read_pipeline` makes one of a file.

    Example:
        >>> pipeline = Pipeline(
        ...     store=StoreSection(path=Path("shop.duckdb"), recipe="completejourney"),
        ...     facets={"kge": FacetSection(kind="kge", every_days=7)},
        ...     ranker=RankerSection(),
        ... )
        >>> pipeline.folder, pipeline.end_of(dt.date(2026, 11, 29))
        (PosixPath('shop.duckdb.daily'), datetime.datetime(2026, 11, 30, 0, 0))
    """

    store: StoreSection = Field(description="the graph")
    load: tuple[LoadSection, ...] = Field(default=(), description="what each day brings")
    facets: dict[str, FacetSection] = Field(default_factory=dict, description="pretrainings, by name")
    align: bool = Field(default=True, description="whether tables are given in the basis of the last ones")
    ranker: RankerSection = Field(description="the model")
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection, description="how it is measured")
    gates: GatesSection = Field(default_factory=GatesSection, description="what stops a release")
    release: ReleaseSection = Field(default_factory=ReleaseSection, description="what is published")
    rollout: RolloutSection | None = Field(default=None, description="where it goes")
    keep_days: int = Field(default=30, ge=1, description="days of stages and releases that are kept")

    @model_validator(mode="after")
    def _check(self) -> Self:
        kinds = [facet.kind for facet in self.facets.values()]
        odd = [name for name, facet in self.facets.items() if name != facet.kind and kinds.count(facet.kind) == 1]
        if any(kinds.count(kind) > 1 for kind in kinds):
            raise ValueError("facets: a pretrainer's snapshots carry its name, so each kind can be there once")
        if odd:
            kind = self.facets[odd[0]].kind
            raise ValueError(f"facets.{odd[0]}: a snapshot of kind {kind!r} is named so: call the section [facets.{kind}]")
        config = self.ranker.config(tuple(self.facets))
        for name, facet in self.facets.items():
            if name in config.facets and facet.config(warm=False).dim != config.dim:
                raise ValueError(
                    f"facets.{name} has dim={facet.config(warm=False).dim}, the ranker's tables dim={config.dim}: set "
                    "them equal under settings"
                )
        return self

    @property
    def folder(self) -> Path:
        """Where stages, releases and the history are."""
        return self.store.folder or self.store.path.with_name(f"{self.store.path.name}.daily")

    def end_of(self, day: dt.date, *, days_before: int = 0) -> dt.datetime:
        """Gives the end of a day, in UTC without a zone, as the store's times are.

        Args:
            day: The day.
            days_before: Whole days to go back from there.
        """
        local = dt.datetime.combine(day + dt.timedelta(days=1 - days_before), dt.time(), ZoneInfo(self.store.timezone))
        return local.astimezone(dt.UTC).replace(tzinfo=None)
