"""What a synthetic world is made of."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from multifacet.graphdb.recipe import Splits
from multifacet.graphdb.schema import GraphSchema, NodeType, Relation, Surface

#: Days of a month of the world: four whole weeks, so that no ranking period straddles two months.
MONTH_DAYS: Final = 28
PERIOD_DAYS: Final = 7
DAY_US: Final = 86_400_000_000
#: Enters every world's fingerprint: a change of what a configuration generates needs another number.
FORMAT: Final = 1

InteractionName = Literal["clicks", "converts"]

#: Relation of user-pin interactions -> where it is seen.
INTERACTIONS: Final[dict[InteractionName, Surface]] = {"clicks": "onsite", "converts": "offsite"}

SCHEMA: Final = GraphSchema(
    nodes=(NodeType(name="user"), NodeType(name="pin"), NodeType(name="advertiser"), NodeType(name="category")),
    relations=(
        Relation(src="user", name="clicks", dst="pin", surface="onsite"),
        Relation(src="user", name="converts", dst="pin", surface="offsite"),
        Relation(src="pin", name="made_by", dst="advertiser", timed=False),
        Relation(src="pin", name="in", dst="category", timed=False),
    ),
)


class WorldConfig(BaseModel):
    """The settings of a synthetic world; equal settings give equal worlds.

    Example:
        >>> config = WorldConfig(days=364, num_edges=1_000_000, conversion_share=0.1)
        >>> config.num_months, config.num_interactions("converts")
        (13, 100000)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, lt=1 << 63, description="seed of all that is drawn")
    start: dt.datetime = Field(default=dt.datetime(2025, 1, 1), description="start of the world; a time without a zone is UTC")
    days: int = Field(default=364, ge=1, le=36_500, description="length of the world in days; a month has 28, a period 7")

    num_users: int = Field(default=10_000, ge=1, le=1 << 30, description="users alive at any time")
    num_pins: int = Field(default=20_000, ge=1, le=1 << 30, description="pins alive at any time")
    num_advertisers: int = Field(default=500, ge=1, le=1 << 30, description="advertisers, who make the pins")
    num_categories: int = Field(default=30, ge=1, le=10_000, description="categories, which part the space of pins")
    num_edges: int = Field(default=1_000_000, ge=0, description="clicks and conversions together")
    conversion_share: float = Field(default=0.1, ge=0, le=1, description="share of the edges that are offsite conversions")

    activity_exponent: float = Field(
        default=2.5, gt=1, le=20, description="exponent of the power law of users' activity (density k^-exponent)"
    )
    popularity_exponent: float = Field(default=2.2, gt=1, le=20, description="exponent of the power law of pins' popularity")
    advertiser_exponent: float = Field(default=2.2, gt=1, le=20, description="exponent of the power law of advertisers' sizes")

    dim: int = Field(default=16, ge=2, le=1024, description="dimension of the latent interests")
    interest_strength: float = Field(
        default=2.5,
        ge=0,
        le=20,
        description="log-odds of a response for one standard deviation of affinity; at 0 only popularity and activity matter",
    )
    click_rate: float = Field(default=0.1, ge=0.01, le=0.9, description="mean probability of a click on a pin that is shown")
    conversion_rate: float = Field(
        default=0.1, ge=0.01, le=0.9, description="mean probability that a pin brought before a user converts"
    )
    surface_correlation: float = Field(
        default=0.6, ge=-1, le=1, description="correlation of the affinities onsite and offsite over users and pins"
    )
    advertiser_coherence: float = Field(
        default=0.3, ge=0, le=1, description="share of a pin's latent variance that it has from its advertiser"
    )
    drift_per_month: float = Field(
        default=0.05, ge=0, le=1, description="one minus the cosine of a user's interests with those of a month before"
    )
    user_churn_per_month: float = Field(
        default=0.02, ge=0, le=1, description="share of the living users who die at a month's turn, each followed by a new one"
    )
    pin_churn_per_month: float = Field(default=0.05, ge=0, le=1, description="the same for pins")
    noise_share: float = Field(
        default=0.05, ge=0, le=1, description="share of the interactions in which interests play no part"
    )

    num_visits: int = Field(default=20_000, ge=0, description="visits to contexts, in which placed pins are shown (ranking)")
    contexts_per_period: int = Field(default=10, ge=1, le=100_000, description="contexts of a period, each with its placements")
    placements_per_context: int = Field(
        default=50, ge=1, le=100_000, description="pins drawn for a context; one that is drawn twice is placed once"
    )

    @field_validator("start")
    @classmethod
    def _in_utc(cls, start: dt.datetime) -> dt.datetime:
        return start if start.tzinfo is None else start.astimezone(dt.UTC).replace(tzinfo=None)

    @property
    def num_months(self) -> int:
        """Months, of which the last may be shorter."""
        return -(-self.days // MONTH_DAYS)

    @property
    def num_periods(self) -> int:
        """Periods of the ranking task, of which the last may be shorter."""
        return -(-self.days // PERIOD_DAYS)

    @property
    def start_us(self) -> int:
        """Start of the world in microseconds since 1970."""
        return (self.start - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1)

    @property
    def end_us(self) -> int:
        """End of the world, not within it."""
        return self.start_us + self.days * DAY_US

    @property
    def splits(self) -> Splits:
        """Periods of a ranking task's parts, in the proportions of The Complete Journey's year.

        Raises:
            ValueError: The world has fewer than eight periods.
        """
        last = self.num_periods
        if last < 8:
            msg = f"a world of {self.days} days has {last} periods; a ranking task needs 8, which are {8 * PERIOD_DAYS} days"
            raise ValueError(msg)
        validated = min(round(last * 48 / 53), last - 1)
        trained = min(round(last * 46 / 53), validated - 1)
        pretrained = min(round(last * 36 / 53), trained - 1)
        return Splits(
            pretraining=(1, pretrained),
            training=(pretrained + 1, trained),
            validation=(trained + 1, validated),
            test=(validated + 1, last),
        )

    @property
    def fingerprint(self) -> str:
        """Hash of the settings, and so of the world that they give."""
        document = {"format": FORMAT, **self.model_dump(mode="json")}
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()

    def num_interactions(self, relation: InteractionName) -> int:
        """Edges of `clicks` or `converts` over the whole world."""
        conversions = round(self.num_edges * self.conversion_share)
        return conversions if relation == "converts" else self.num_edges - conversions

    def rate(self, surface: Surface) -> float:
        """Mean probability of a response on a surface."""
        return self.click_rate if surface == "onsite" else self.conversion_rate

    def month_us(self, month: int) -> tuple[int, int]:
        """Start and end of a month."""
        return self._span_us(month, MONTH_DAYS)

    def period_us(self, period: int) -> tuple[int, int]:
        """Start and end of a period; the first is number 1."""
        return self._span_us(period - 1, PERIOD_DAYS)

    def _span_us(self, index: int, days: int) -> tuple[int, int]:
        start = self.start_us + index * days * DAY_US
        return start, min(start + days * DAY_US, self.end_us)

    def share_until(self, total: int, time_us: int) -> int:
        """How many of `total` things, spread evenly over the world, come before a time."""
        return total * (time_us - self.start_us) // (self.end_us - self.start_us)
