"""Paired effects over seeds and users, with the corrections that a referee asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

if TYPE_CHECKING:
    from numpy.typing import NDArray

_POWER = 0.8


class Effect(BaseModel):
    """A difference between two arms that were run with the same seeds on the same users."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    difference: float = Field(description="mean over seeds of the difference in ROC-AUC")
    low: float = Field(description="lower end of its interval")
    high: float = Field(description="upper end of its interval")
    standard_error: float = Field(description="of the mean: users and seeds together")
    users_error: float = Field(description="the part that other users of the same kind would bring")
    seeds_error: float = Field(description="the part that other seeds would bring")
    effect_size: float = Field(description="difference over its standard error")
    p_value: float = Field(description="two-sided, of no difference")
    adjusted_p_value: float = Field(description="the same by Holm's method over the experiment's comparisons")
    detectable: float = Field(description="smallest true difference that this data would have shown with 80% power")
    num_seeds: int = Field(description="seeds that the arms were run with")


def paired_effect(differences: Sequence[float], resampled: NDArray[Any], *, confidence: float = 0.95) -> Effect:
    """The mean difference of two arms, with an interval over users and seeds.

    The variance of the mean is that of a bootstrap over users, of the mean over seeds, plus that of the seeds' mean. The
    interval is Student's, its degrees of freedom by Welch and Satterthwaite: with few seeds whose differences scatter, it is
    wide. The users' part counts as known exactly.

    Args:
        differences: Difference of each seed, [S].
        resampled: The same on each resample of users, [S, R]; the resamples are the same users for every seed. NaN where a
            resample has no value.
        confidence: Coverage of the interval.

    Returns:
        The effect, its p-value not yet adjusted.

    Raises:
        ValueError: If there is no seed, or the shapes do not fit.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) == 0 or resampled.ndim != 2 or len(resampled) != len(values):
        raise ValueError(
            f"differences of {len(values)} seeds and resamples of shape {list(resampled.shape)}; expected [S], [S, R]"
        )
    num_seeds = len(values)
    users_variance = float(np.nanvar(resampled.mean(axis=0), ddof=1))
    seeds_variance = float(values.var(ddof=1) / num_seeds) if num_seeds > 1 else 0.0
    variance = users_variance + seeds_variance
    error = float(np.sqrt(variance))
    freedom = variance**2 * (num_seeds - 1) / seeds_variance**2 if seeds_variance > 0 else np.inf
    law = stats.t(freedom) if np.isfinite(freedom) else stats.norm()
    mean = float(values.mean())
    margin = float(law.ppf(0.5 + confidence / 2)) * error
    p_value = float(2 * law.sf(abs(mean) / error)) if error > 0 else float(mean == 0)
    return Effect(
        difference=mean,
        low=mean - margin,
        high=mean + margin,
        standard_error=error,
        users_error=float(np.sqrt(users_variance)),
        seeds_error=float(np.sqrt(seeds_variance)),
        effect_size=mean / error if error > 0 else 0.0,
        p_value=p_value,
        adjusted_p_value=p_value,
        detectable=float(law.ppf(0.5 + confidence / 2) + law.ppf(_POWER)) * error,
        num_seeds=num_seeds,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values so that the chance of any false finding among them stays below the level (Holm 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = highest
    return adjusted
