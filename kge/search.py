"""Choosing a configuration on validation: successive halving over a small space."""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kge.config import KgeConfig
from kge.training import train_triples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kge.triples import TripleSplit

__all__ = ["Search", "Trial", "search"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One training of a search.

    Attributes:
        config: what was trained, with the epochs that its round gave it.
        filtered_mrr: of validation, at its end; 0 where the loss stopped being a number.
    """

    config: KgeConfig
    filtered_mrr: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What a search found.

    Attributes:
        config: the winner, with the last round's epochs: what to train and to write into a snapshot.
        trials: every training, round by round.
    """

    config: KgeConfig
    trials: tuple[Trial, ...]


def search(
    split: TripleSplit,
    base: KgeConfig,
    space: Mapping[str, Sequence[Any]],
    *,
    num_trials: int = 9,
    min_epochs: int = 2,
    reduction: int = 3,
    progress: Callable[[Trial], None] | None = None,
) -> Search:
    """Try configurations for a few epochs, and the best ones for more (Jamieson and Talwalkar, AISTATS 2016).

    The first round trains `num_trials` configurations for `min_epochs`; each further round keeps the best of every
    `reduction`, and trains them anew for `reduction` times as long. The test part of the split is not looked at.

    Args:
        split: what is learned from, and what is chosen by (`valid`).
        base: everything that the space leaves open; its epochs are replaced. Its seed also draws the trials.
        space: name of a field -> values to try; a field of `full_softmax` is named "full_softmax.dropout".
        num_trials: configurations drawn from the space, without repeats; the whole space where it has no more.
        min_epochs: epochs of the first round.
        reduction: share of trials that ends with each round, and how much longer the others go on.
        progress: called with each trial.

    Returns:
        The winner and all trials.

    Raises:
        ValueError: if there is nothing to validate on, a field's name or value is wrong, or every trial failed.
    """
    if not len(split.valid):
        raise ValueError("a search chooses on validation, and split.valid is empty")
    if num_trials < 1 or min_epochs < 1 or reduction < 2:
        raise ValueError(f"need num_trials >= 1, min_epochs >= 1, reduction >= 2, got {num_trials}, {min_epochs}, {reduction}")
    names = list(space)
    combinations = list(itertools.product(*(space[name] for name in names)))
    order = np.random.default_rng(base.seed).permutation(len(combinations))[:num_trials]
    configs = [_with_values(base, dict(zip(names, combinations[place], strict=True))) for place in order]
    trials: list[Trial] = []
    epochs = min_epochs
    while True:
        tried = []
        for config in configs:
            trial = _try(split, config.model_copy(update={"epochs": epochs}))
            logger.info("kge search: filtered MRR %.4f after %d epochs of %s", trial.filtered_mrr, epochs, config)
            tried.append(trial)
            if progress is not None:
                progress(trial)
        trials += tried
        tried.sort(key=lambda trial: -trial.filtered_mrr)  # stable: of equals the one drawn first
        if tried[0].filtered_mrr == 0.0:
            raise ValueError("every configuration of the space diverged; give smaller learning rates")
        if len(tried) == 1:
            return Search(config=tried[0].config, trials=tuple(trials))
        configs = [trial.config for trial in tried[: math.ceil(len(tried) / reduction)]]
        epochs *= reduction


def _with_values(base: KgeConfig, values: Mapping[str, Any]) -> KgeConfig:
    # Only what was set: a default that is written out would count as a choice.
    document = base.model_dump(exclude_unset=True)
    for name, value in values.items():
        *parents, field = name.split(".")
        target = document
        for parent in parents:
            if target.get(parent) is None:
                target[parent] = {}
            target = target[parent]
        target[field] = value
    return KgeConfig.model_validate(document)


def _try(split: TripleSplit, config: KgeConfig) -> Trial:
    # Validated once, at its end.
    validation = config.validation.model_copy(update={"every": config.epochs})
    try:
        result = train_triples(split, config.model_copy(update={"validation": validation}))
    except ValueError as error:
        if "loss" not in str(error):
            raise
        logger.warning("kge search: %s", error)
        return Trial(config=config, filtered_mrr=0.0)
    return Trial(config=config, filtered_mrr=result.metrics["filtered_mrr"])
