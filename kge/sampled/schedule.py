"""What changes from step to step: learning rates, and the seed of what a step draws by counter."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from multifacet.kge.config import KgeConfig
    from multifacet.kge.models.model import Model
    from multifacet.training import Position

__all__ = ["count_plateaus", "rate_factor", "relation_rates", "step_factor", "step_seed"]

_GOLDEN: Final = 0x9E3779B97F4A7C15  # odd: steps count through all 64-bit numbers before one comes again
_MASK: Final = (1 << 62) - 1


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


def step_factor(config: KgeConfig, position: Position, num_steps: int) -> float:
    """Give what the learning rates of the next step are multiplied by: by the schedule, and by what validation has said.

    Args:
        config: the schedule.
        position: where the training stands, with the validations so far.
        num_steps: steps of an epoch.
    """
    progress = (position.epoch + position.step / num_steps) / config.epochs
    factor = rate_factor(progress, config.lr_schedule, warmup=config.warmup)
    if config.plateau is None:
        return factor
    values = [row["filtered_mrr"] for row in position.history if "filtered_mrr" in row]
    return factor * config.plateau.factor ** count_plateaus(values, config.plateau.patience)


def count_plateaus(values: Sequence[float], patience: int) -> int:
    """Count how often `patience` values in a row were no better than the best before them; each time counts anew.

    Example:
        >>> count_plateaus([0.1, 0.3, 0.2, 0.3, 0.2, 0.1, 0.4], patience=2)
        2
    """
    best, num_worse, num_plateaus = -math.inf, 0, 0
    for value in values:
        num_worse = 0 if value > best else num_worse + 1
        best = max(best, value)
        if num_worse == patience:
            num_plateaus, num_worse = num_plateaus + 1, 0
    return num_plateaus


def step_seed(seed: int, position: Position) -> int:
    """Give a step's own seed, below 2^62: the same in a run that was killed and resumed."""
    return (_epoch_seed(seed, position.epoch) + position.step * _GOLDEN) >> 2 & _MASK


def relation_rates(config: KgeConfig, model: Model, num_parameters: int) -> Tensor | None:
    """Give each relation parameter's learning rate as a multiple of `relation_lr`, float32 [P]; None where all are 1."""
    if config.projection_lr is None:
        return None
    rates = torch.ones(num_parameters)
    rates[: model.projection.num_parameters] = config.projection_lr / config.relation_lr
    return rates


@functools.lru_cache(maxsize=1)
def _epoch_seed(seed: int, epoch: int) -> int:
    (drawn,) = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    return int(drawn)
