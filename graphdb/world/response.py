"""The law of responses: how affinity becomes the probability of a click or a conversion."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from multifacet.graphdb.schema import Surface
from multifacet.graphdb.world.config import WorldConfig

_NUM_ANGLES: Final = 4001
_NUM_BISECTIONS: Final = 80


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
    """A user with interests z responds to a shown pin with appeal x with probability

        (1 - noise) * sigmoid(bias + slope * <z, x>) + noise * rate

    where z and x have length 1. Over random directions the affinity sqrt(dim) * <z, x> has mean 0 and variance 1; the bias is
    such that the mean probability is `rate`.

    Attributes:
        bias: Log-odds at affinity 0.
        slope: Log-odds for the whole cosine, strength * sqrt(dim).
        noise: Probability that interests play no part.
        rate: Mean probability.
    """  # noqa: D415 - the sentence holds a formula

    bias: float
    slope: float
    noise: float
    rate: float

    @classmethod
    def of(cls, config: WorldConfig, surface: Surface) -> Self:
        """The law on one surface of a world."""
        slope = config.interest_strength * math.sqrt(config.dim)
        rate = config.rate(surface)
        return cls(bias=_solve_bias(rate, slope, config.dim), slope=slope, noise=config.noise_share, rate=rate)

    def probability(self, cosine: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability of a response, of any shape, from the cosine of interests and appeal."""
        return (1 - self.noise) * _sigmoid(self.bias + self.slope * cosine) + self.noise * self.rate

    @property
    def parameters(self) -> tuple[float, float, float, float]:
        """What kernels take: bias, slope, noise, rate."""
        return self.bias, self.slope, self.noise, self.rate


def _sigmoid(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.clip(log_odds, -700, 700))))


@functools.cache
def _solve_bias(rate: float, slope: float, dim: int) -> float:
    """Finds the bias for which a pair of random directions responds with probability `rate`."""
    # The angle between random directions of R^dim has density proportional to sin^(dim - 2).
    angles = (np.arange(_NUM_ANGLES) + 0.5) * (math.pi / _NUM_ANGLES)
    weights = np.sin(angles) ** (dim - 2)
    weights /= weights.sum()
    cosines = np.cos(angles)
    low, high = -slope - 20, slope + 20
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        if float(weights @ _sigmoid(middle + slope * cosines)) < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2
