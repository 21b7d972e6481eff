"""Choosing a configuration on validation: successive halving over a small space."""

from __future__ import annotations

import itertools
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from multifacet.inputs import expect_type, whole
from multifacet.kge.config import KgeConfig
from multifacet.kge.training import train_triples
from multifacet.kge.trials import Search, Trial
from multifacet.kge.triples.triples import TripleSplit
from multifacet.training import Checkpoint, CheckpointError, Lifecycle, SavedState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


__all__ = ["default_space", "search"]

logger = logging.getLogger(__name__)

# What decides the trials' data or budget, and so cannot differ between them.
_FIXED: Final = ("epochs", "seed", "validation", "distinct_edges")


def default_space(base: KgeConfig) -> dict[str, tuple[Any, ...]]:
    """Give values around those that public graphs were tuned to, for the fields that `base` has not set itself."""
    expect_type("base", base, KgeConfig)
    lengths = (0.01, 0.1, 0.3)
    if base.full_softmax is not None:
        space: dict[str, tuple[Any, ...]] = {"lr": (0.1, 0.3, 0.5), "init_scale": lengths, "n3": (0.0, 0.02, 0.1, 0.2)}
    else:
        space = {
            "lr": (0.1, 0.2, 0.5, 1.0),
            "relation_lr_factor": (0.25, 0.5, 1.0),
            "init_scale": lengths,
            "l2": (0.0, 0.005, 0.02, 0.1),
            "num_uniform": (128, 256, 1024),
        }
    if base.model in {"distmult", "complex"}:
        space["relation_init"] = ("identity", "signs")
    chosen = set(base.model_fields_set)
    if "relation_lr" in chosen:
        chosen.add("relation_lr_factor")
    return {name: values for name, values in space.items() if name not in chosen}


def search(
    split: TripleSplit,
    base: KgeConfig,
    space: Mapping[str, Sequence[Any]] | None = None,
    *,
    num_trials: int = 9,
    reduction: int = 3,
    progress: Callable[[Trial], None] | None = None,
    lifecycle: Lifecycle | None = None,
) -> Search:
    """Try configurations for a few epochs, and the best ones for more (Jamieson and Talwalkar, AISTATS 2016).

    The first round trains `num_trials` configurations; each further round keeps the best of every `reduction`, and trains
    them anew for `reduction` times as long, so that the last one is trained for all of the base's epochs. The test part
    of the split is not looked at.

    Args:
        split: what is learned from, and what is chosen by (`valid`).
        base: everything that the space leaves open. Its seed also draws the trials.
        space: name of a field -> values to try; a field of `full_softmax` is named "full_softmax.dropout". None for
            `default_space`.
        num_trials: configurations drawn from the space, without repeats; the whole space where it has no more.
        reduction: share of trials that ends with each round, and how much longer the others go on.
        progress: called with each trial, those of an interrupted search included.
        lifecycle: its checkpoint folder keeps finished trials, and the state of the one that runs; a search that was
            killed goes on with the same trials, bit by bit. Remove the folder once the result is used.

    Returns:
        The winner and all trials.

    Raises:
        ValueError: if there is nothing to validate on, a field's name or value is wrong, or every trial failed.
        CheckpointError: if the folder holds another search, or any while `resume` is not set.
    """
    expect_type("split", split, TripleSplit, hint="kge.read_split makes one of plain triples")
    expect_type("base", base, KgeConfig)
    whole()("num_trials", num_trials)
    whole()("reduction", reduction)
    if space is not None:
        expect_type("space", space, Mapping)
        for name, values in space.items():
            expect_type(f"space[{name!r}]", values, list, tuple, hint="the values to try")
    space = default_space(base) if space is None else space
    lifecycle = lifecycle or Lifecycle()
    if num_trials < 1 or reduction < 2:
        raise ValueError(f"need num_trials >= 1 and reduction >= 2, got {num_trials} and {reduction}")
    _check(split, space, lifecycle)
    names = list(space)
    combinations = [dict(zip(names, values, strict=True)) for values in itertools.product(*space.values())]
    order = np.random.default_rng(base.seed).permutation(len(combinations))[:num_trials]
    candidates = [(combinations[place], _with_values(base, combinations[place])) for place in order]
    identity = {
        "base": base.model_dump(mode="json"),
        "space": {name: list(values) for name, values in space.items()},
        "num_trials": num_trials,
        "reduction": reduction,
        "split": split.fingerprint() if lifecycle.checkpoint else "",
    }
    journal = _Journal(lifecycle, identity)
    num_rounds, num_left = 1, len(candidates)
    while num_left > 1:
        num_rounds, num_left = num_rounds + 1, math.ceil(num_left / reduction)
    trials: list[Trial] = []
    for round_number in range(num_rounds):
        epochs = max(1, round(base.epochs / reduction ** (num_rounds - 1 - round_number)))
        tried = []
        for values, candidate in candidates:
            config = candidate.model_copy(update={"epochs": epochs})
            filtered_mrr = journal.score(len(trials), lambda life, config=config: _try(split, config, life))  # type: ignore[misc]
            trial = Trial(config=config, values=values, filtered_mrr=filtered_mrr)
            logger.info("kge search: filtered MRR %.4f after %d epochs of %s", filtered_mrr, epochs, values)
            trials.append(trial)
            tried.append(trial)
            if progress is not None:
                progress(trial)
        tried.sort(key=lambda trial: -trial.filtered_mrr)  # stable: of equals the one drawn first
        if tried[0].filtered_mrr == 0.0:
            raise ValueError("every configuration of the space diverged; give smaller learning rates")
        candidates = [(trial.values, trial.config) for trial in tried[: math.ceil(len(tried) / reduction)]]
    return Search(config=tried[0].config, trials=tuple(trials), space=space)


def _check(split: TripleSplit, space: Mapping[str, Sequence[Any]], lifecycle: Lifecycle) -> None:
    if not len(split.valid):
        raise ValueError("a search chooses on validation, and split.valid is empty")
    if lifecycle.warm_start is not None:
        raise ValueError("a search compares trainings from scratch: leave the warm start out")
    if fixed := [name for name in space if name.split(".")[0] in _FIXED]:
        raise ValueError(f"the space names {fixed}, which all trials share: leave them out")
    if empty := [name for name in space if not space[name]]:
        raise ValueError(f"the space has no values for {empty}: give at least one")


class _Journal:
    """What a search has finished, on disk: the trials' scores in order, as the trials themselves follow from them."""

    def __init__(self, lifecycle: Lifecycle, identity: Mapping[str, Any]) -> None:
        self._lifecycle = lifecycle
        self._identity = identity
        self.scores: list[float] = []
        self._path: Path | None = None
        if lifecycle.checkpoint is None:
            return
        self._path = lifecycle.checkpoint / "trials"
        if not lifecycle.resume and lifecycle.checkpoint.exists():
            raise CheckpointError(
                f"{lifecycle.checkpoint} holds a search that did not end. Go on from it with resume=True (--resume), or "
                "remove it to start anew."
            )
        if self._path.exists():
            self.scores = list(Checkpoint.load(self._path, identity=identity).fields["scores"])
            logger.info("kge search: going on after %d trials", len(self.scores))

    def score(self, number: int, run: Callable[[Lifecycle], float]) -> float:
        """Give a trial's score, of the folder or by running it."""
        if number < len(self.scores):
            return self.scores[number]
        if self._path is None:
            self.scores.append(run(self._lifecycle))
            return self.scores[number]
        running = self._path.with_name(f"trial-{number}")
        self.scores.append(run(replace(self._lifecycle, checkpoint=running, resume=True)))
        Checkpoint.write(self._path, SavedState(tensors={}, fields={"scores": self.scores}), identity=self._identity)
        shutil.rmtree(running, ignore_errors=True)
        return self.scores[number]


def _with_values(base: KgeConfig, values: Mapping[str, Any]) -> KgeConfig:
    # Only what was set: a default that is written out would count as a choice.
    document = base.model_dump(exclude_unset=True)
    if base.relation_lr_factor is not None:
        document["relation_lr_factor"] = base.relation_lr_factor
    # Both say how fast relations learn: a trial's own word replaces the base's.
    for name, other in (("relation_lr", "relation_lr_factor"), ("relation_lr_factor", "relation_lr")):
        if name in values:
            document.pop(other, None)
    for name, value in values.items():
        *parents, last = name.split(".")
        target = document
        for parent in parents:
            if target.get(parent) is None:
                target[parent] = {}
            target = target[parent]
        target[last] = value
    return KgeConfig.model_validate(document)


def _try(split: TripleSplit, config: KgeConfig, lifecycle: Lifecycle) -> float:
    """Train and give the validation's filtered MRR; 0 if the loss stopped being a number."""
    # Validated once, at its end.
    validation = config.validation.model_copy(update={"every": config.epochs})
    try:
        result = train_triples(split, config.model_copy(update={"validation": validation}), lifecycle=lifecycle)
    except ValueError as error:
        if "loss" not in str(error):
            raise
        logger.warning("kge search: %s", error)
        return 0.0
    return result.metrics["filtered_mrr"]
