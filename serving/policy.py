"""How a client of several lookup servers that hold the same behaves: retries, hedges, ejection."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator


class ReplicaPolicy(BaseModel):
    """What to do when a replica fails or is slow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_attempts: PositiveInt = Field(
        default=3, description="Most replicas that one request is sent to, the first, retries and the hedge together."
    )
    retry_ratio: NonNegativeFloat = Field(
        default=0.1,
        description="Retries and hedges that each request earns for all that come: 0.1 lets one request in ten be sent twice. "
        "When all servers fail, the load on them grows by this share and no more.",
    )
    retry_reserve: PositiveInt = Field(
        default=100, description="Retries and hedges that are there at the start, and at most saved up: one failure's worth."
    )
    hedge_after_s: PositiveFloat | None = Field(
        default=None, description="Seconds after which a second replica is asked as well; the first answer counts."
    )
    hedge_quantile: Annotated[float, Field(ge=0.5, lt=1)] | None = Field(
        default=None,
        description="Instead of `hedge_after_s`: ask a second replica once a request takes longer than this share of the last "
        "ones did, such as 0.95.",
    )
    eject_after: PositiveInt = Field(
        default=5,
        description="Requests in a row that a replica answered too late, or later than the hedge, until it is left out. One "
        "that cannot be reached is left out at once.",
    )
    probe_after_s: PositiveFloat = Field(
        default=0.1, description="Seconds until a replica that was left out is asked whether it is well; doubles each time."
    )
    probe_at_most_s: PositiveFloat = Field(default=5.0, description="Longest time between two such questions, in seconds.")

    @model_validator(mode="after")
    def _hedge_one_way(self) -> Self:
        if self.hedge_after_s is not None and self.hedge_quantile is not None:
            raise ValueError("hedge_after_s and hedge_quantile are two ways to say the same: give one of them")
        return self

    @property
    def hedges(self) -> bool:
        """Whether a second replica is ever asked before the first has failed."""
        return self.hedge_after_s is not None or self.hedge_quantile is not None
