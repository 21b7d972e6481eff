"""Learning rates over a run."""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["rate_factor"]


def rate_factor(progress: float, schedule: Literal["constant", "linear", "cosine"], *, warmup: float = 0.0) -> float:
    """Give what the learning rates are multiplied by.

    Args:
        progress: share of the run that is done, 0 to 1.
        schedule: what follows the warm-up: 1 throughout, or a straight line or half a cosine from 1 to 0.
        warmup: share of the run in which the factor rises from 0 to 1 in a straight line.

    Example:
        >>> [rate_factor(progress, "linear", warmup=0.2) for progress in (0.1, 0.2, 0.6, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return progress / warmup
    done = min(1.0, (progress - warmup) / (1.0 - warmup))
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return 0.5 + 0.5 * math.cos(math.pi * done)
    return 1.0
