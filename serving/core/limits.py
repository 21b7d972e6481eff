"""What a new version must keep to, and whether it did."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from multifacet.serving.core.reports import ShadowReport

_BY_CHANCE = 0.01


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
        default=0.01,
        description="Share of the requests (shadowed ones before the switch, all after it) that may fail. More of them are a "
        "breach only if chance alone would not show as many in one case of a hundred. Requests refused as wrong "
        "(INVALID_ARGUMENT) may rise by as much above their share under the old version.",
    )
    min_requests: PositiveInt = Field(
        default=20, description="Requests after the switch without which a ranker's share of failures says nothing."
    )
    watch_s: NonNegativeFloat = Field(default=30.0, description="Seconds after the switch in which failures are watched.")


def exceeds(num: int, total: int, share: float) -> bool:
    """Whether so many of a total are more than a share of it, beyond what chance may show.

    Args:
        num: How many.
        total: Of how many.
        share: The share that is allowed.

    Example:
        >>> exceeds(1, 41, 0.01), exceeds(3, 41, 0.01), exceeds(1, 20, 0.0)
        (False, True, True)
    """
    if num <= share * total or share >= 1:
        return False
    if share <= 0:
        return True
    # P(X >= num) of a binomial law, from its largest term on: the terms fall at least as a geometric series.
    log_term = (
        math.lgamma(total + 1)
        - math.lgamma(num + 1)
        - math.lgamma(total - num + 1)
        + num * math.log(share)
        + (total - num) * math.log1p(-share)
    )
    term = math.exp(log_term)
    by_chance = 0.0
    for count in range(num, total + 1):
        by_chance += term
        if by_chance > _BY_CHANCE * (1 + 1e-9):
            return False
        term *= (total - count) / (count + 1) * share / (1 - share)
        if term < by_chance * 1e-9 or term < 1e-300:
            break
    return True


def describe_shadow(shadow: ShadowReport) -> str:
    """A shadow's report in one line."""
    return (
        f"{shadow.compared} candidates compared, {shadow.failed} requests failed, mean |difference| "
        f"{shadow.mean_abs_difference:.3g}, mean difference {shadow.mean_difference:.3g}"
    )


def judge_shadow(shadow: ShadowReport, limits: Limits) -> str:
    """What is wrong with a shadow's report, or nothing."""
    if exceeds(shadow.failed, shadow.failed + shadow.requests, limits.max_failure_rate):
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
