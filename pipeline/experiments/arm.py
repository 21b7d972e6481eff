"""What an experiment compares: arms, each a way to come by id tables."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from multifacet.contrastive import ContrastiveConfig
from multifacet.contrastive.graph_facet import LightGcnConfig
from multifacet.kge import KgeConfig

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class Facet(BaseModel):
    """One pretraining, whose snapshot starts a facet's tables."""

    model_config = _FROZEN

    name: str = Field(description="the facet's name in the ranker")
    pretrainer: KgeConfig | ContrastiveConfig | LightGcnConfig = Field(
        description="how it is pretrained; the run's seed is set in it"
    )
    until_period: int = Field(description="first period that it does not see")
    since_period: int | None = Field(default=None, description="first period that it sees; None for all before")
    relations: tuple[str, ...] | None = Field(default=None, description="relations that it sees; None for all")
    shuffled: bool = Field(default=False, description="give each id another's vector: same lengths and shapes, no knowledge")
    seed_offset: int = Field(default=0, description="added to the run's seed, for a second table of the same kind")
    starts_from: Facet | None = Field(default=None, description="the older pretraining whose tables it goes on with")

    @property
    def method(self) -> Literal["kge", "contrastive"]:
        """Which pretrainer it is."""
        return "kge" if isinstance(self.pretrainer, KgeConfig) else "contrastive"

    @property
    def lineage(self) -> tuple[Facet, ...]:
        """What has to be there before it, the oldest first, and itself."""
        return (self,) if self.parent is None else (*self.parent.lineage, self)

    @property
    def parent(self) -> Facet | None:
        """The facet that it is made from: the one whose vectors it shuffles, or the one that it goes on with."""
        return self.model_copy(update={"shuffled": False}) if self.shuffled else self.starts_from


class Hashing(BaseModel):
    """Tables of fewer rows than there are ids."""

    model_config = _FROZEN

    share: float = Field(gt=0, description="rows of each table, as a share of its ids")
    num_hashes: int = Field(default=1, ge=1, description="rows that each id sums")


class Arm(BaseModel):
    """One way to rank; all arms of an experiment get as many trials on the validation periods."""

    model_config = _FROZEN

    name: str = Field(pattern=r"^[\w.]+$", description="short name")
    title: str = Field(description="what a table calls it")
    facets: tuple[Facet, ...] = Field(default=(), description="pretrained facets")
    scratch: tuple[str, ...] = Field(default=(), description="facets whose tables start at random")
    ranking: dict[str, Any] = Field(default_factory=dict, description="fields of RankingConfig that differ from the defaults")
    trials: tuple[dict[str, Any], ...] = Field(default=({},), min_length=1, description="settings tried on validation")
    recent_pins: int = Field(default=0, ge=0, description="most recent pins of a user that an example carries")
    history: bool = Field(default=False, description="train on the pretraining periods' exposures too")
    hashing: Hashing | None = Field(default=None, description="hashed tables; None for a row an id")
    without: tuple[str, ...] = Field(default=(), description="prefixes of dense features that are left out")
    export: bool = Field(default=False, description="keep the trained model, not only its scores")

    def ranking_fields(self, trial: dict[str, Any], seed: int) -> dict[str, Any]:
        """The fields of RankingConfig for one trial and seed."""
        pretrained = tuple(facet.name for facet in self.facets)
        return {
            "name": self.name,
            "facets": (*pretrained, *self.scratch),
            "pretrained_facets": pretrained,
            **self.ranking,
            **trial,
            "seed": seed,
        }


#: As many trials for every arm. A table's step and its rows' first length matter most; without tables, the upper model's step.
TABLE_TRIALS: tuple[dict[str, Any], ...] = (
    {"table_lr": 0.02, "pretrained_norm": 1.0, "scratch_norm": 1.0},
    {"table_lr": 0.005, "pretrained_norm": 1.0, "scratch_norm": 0.3},
    {"table_lr": 0.05, "pretrained_norm": 1.0, "scratch_norm": 0.3},
    {"table_lr": 0.02, "pretrained_norm": 2.5, "scratch_norm": 0.1},
)
UPPER_TRIALS: tuple[dict[str, Any], ...] = tuple({"upper_lr": rate} for rate in (1e-3, 5e-4, 2e-3, 4e-3))
FROZEN_TRIALS: tuple[dict[str, Any], ...] = tuple(
    {"freeze_tables": True, "pretrained_norm": norm} for norm in (1.0, 0.5, 2.0, 4.0)
)
THAWED_TRIALS: tuple[dict[str, Any], ...] = tuple(
    {"thaw_after_steps": steps, "pretrained_norm": 1.0, "table_lr": rate}
    for steps, rate in ((100, 0.02), (400, 0.02), (100, 0.05), (400, 0.005))
)
