"""What a new version must keep to, and whether it did."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from multifacet.serving.protocol import admin_pb2


class Limits(BaseModel):
    """What a new version must keep to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shadow_share: float = Field(
        default=0.1, ge=0, le=1, description="Share of the requests that both versions score; 0 skips it."
    )
    min_compared: PositiveInt = Field(default=1000, description="Candidates that each ranker must have scored with both.")
    shadow_timeout_s: PositiveFloat = Field(default=600.0, description="Longest wait for so many, in seconds.")
    max_mean_abs_difference: PositiveFloat = Field(
        default=0.05, description="Most that a probability may differ between the versions, on average."
    )
    max_mean_difference: PositiveFloat = Field(
        default=0.01, description="Most that the mean of the probabilities may move, up or down."
    )
    max_failure_rate: NonNegativeFloat = Field(
        default=0.01, description="Share of the requests (shadowed ones before the switch, all after it) that may fail."
    )
    min_requests: PositiveInt = Field(
        default=20, description="Requests after the switch without which a ranker's share of failures says nothing."
    )
    watch_s: NonNegativeFloat = Field(default=30.0, description="Seconds after the switch in which failures are watched.")


def describe_shadow(shadow: admin_pb2.ShadowReport) -> str:
    """A shadow's report in one line."""
    return (
        f"{shadow.compared} candidates compared, {shadow.failed} requests failed, mean |difference| "
        f"{shadow.mean_abs_difference:.3g}, mean difference {shadow.mean_difference:.3g}"
    )


def judge_shadow(shadow: admin_pb2.ShadowReport, limits: Limits) -> str:
    """What is wrong with a shadow's report, or nothing."""
    if shadow.failed > limits.max_failure_rate * (shadow.failed + shadow.requests):
        return f"the new version failed on {shadow.failed} of {shadow.failed + shadow.requests} shadowed requests"
    if shadow.compared < limits.min_compared:
        return f"only {shadow.compared} candidates were compared in time, {limits.min_compared} are asked for"
    if shadow.mean_abs_difference > limits.max_mean_abs_difference:
        return (
            f"scores differ by {shadow.mean_abs_difference:.3g} on average, at most {limits.max_mean_abs_difference:g} may be"
        )
    if abs(shadow.mean_difference) > limits.max_mean_difference:
        return f"the mean score moved by {shadow.mean_difference:.3g}, at most {limits.max_mean_difference:g} may be"
    return ""
