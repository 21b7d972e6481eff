"""Choosing a configuration on held-out pairs, within a budget of CPU time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from multifacet.contrastive.config import ContrastiveConfig
from multifacet.contrastive.positives.pairs import Pairs
from multifacet.contrastive.positives.positives import Positives
from multifacet.contrastive.presets import PRESETS, RECIPES, SPACES
from multifacet.contrastive.training import fingerprint, train_pairs
from multifacet.inputs import expect_type, number, takes, whole
from multifacet.training import Family, Lifecycle, Recipe, SearchReport, family_of_space, run_search

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from multifacet.training import Choice, Range, Record, Space

__all__ = ["ContrastiveSearch", "default_space", "search"]

logger = logging.getLogger(__name__)

# What decides the trials' data or budget, and so cannot differ between them.
_FIXED: Final = ("epochs", "seed", "validation", "query_type", "item_type", "relation_weights", "half_life_days", "preset")
_MOST_EPOCHS: Final = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastiveSearch:
    """What a search of contrastive tables has found.

    Attributes:
        config: the winner: what to train and to write into a snapshot.
        report: trials, seeds, importance and advice.
    """

    config: ContrastiveConfig
    report: SearchReport


def default_space(base: ContrastiveConfig) -> dict[str, Space]:
    """Give where a search looks: the name of a preset -> its fields that `base` has not set itself.

    Args:
        base: a configuration; what was set in it, and not left to a default, stays as it is.
    """
    expect_type("base", base, ContrastiveConfig)
    return {name: family.space for name, family in _families(base).items()}


@takes(minutes=number(above=0.0), num_seeds=whole(0))
def search(
    positives: Positives | Pairs,
    held_out: Positives,
    base: ContrastiveConfig | None = None,
    space: Mapping[str, Range | Choice | Sequence[Any]] | None = None,
    *,
    minutes: float = 20.0,
    num_seeds: int = 3,
    progress: Callable[[Record], None] | None = None,
    lifecycle: Lifecycle | None = None,
) -> ContrastiveSearch:
    """Try configurations for some CPU minutes, the best of them for longer, and train the winner in new seeds.

    Trials are compared by ndcg@k of the held-out pairs. What their popularity is, is what the winner is good at: hold out
    pairs as the task will ask for them.

    Args:
        positives: the pairs to learn from.
        held_out: the pairs to choose by.
        base: what all trials share: the fields that were set in it. None: nothing. Its epochs, if set, are the most that a
            trial has. Composed towers are trained with the winner, not in trials.
        space: name of a field -> range, choice or list of values. None for `default_space`.
        minutes: CPU minutes in all, over all threads.
        num_seeds: how often the winner is trained anew.
        progress: called with each trial, those of an interrupted search included.
        lifecycle: its checkpoint folder keeps finished trials, and the state of the one that runs; a search that was
            killed goes on from there. Remove the folder once the result is used.

    Returns:
        The winner, with as many epochs as its longest trial had, and the report.

    Raises:
        ValueError: if there is nothing to choose by, a field's name or value is wrong, or every trial failed.
        CheckpointError: if the folder holds another search, or any while `resume` is not set.
        ImportError: if Optuna is not installed.
    """
    expect_type("positives", positives, Positives, Pairs, hint="contrastive.read_pairs makes them of plain pairs")
    expect_type("held_out", held_out, Positives)
    base = ContrastiveConfig() if base is None else base
    expect_type("base", base, ContrastiveConfig)
    lifecycle = lifecycle or Lifecycle()
    expect_type("lifecycle", lifecycle, Lifecycle)
    if not len(held_out):
        raise ValueError("a search chooses by held-out pairs, and held_out is empty")
    _check_held_out(positives if isinstance(positives, Positives) else positives.positives, held_out)
    if lifecycle.warm_start is not None:
        raise ValueError("a search compares trainings from scratch: leave the warm start out")
    if space is None:
        families = _families(base)
        recipes = _recipes(families)
    else:
        expect_type("space", space, Mapping)
        settings = {name: value for name, value in _given(base).items() if name not in _FIXED}
        families, recipes = family_of_space(settings, space, fixed=_FIXED, check=ContrastiveConfig.model_validate)
    data = fingerprint(positives, held_out) if lifecycle.checkpoint else ""
    program = _Program(positives, held_out, base, families, recipes, data=data)
    report = run_search(program, minutes=minutes, num_seeds=num_seeds, seed=base.seed, lifecycle=lifecycle, progress=progress)
    best = report.best
    config = program.configure(best.family, best.values, epochs=best.epochs, every=1, seed=base.seed)
    document = {name: getattr(base, name) for name in ("validation", "relation_weights", "half_life_days", "composed")}
    return ContrastiveSearch(config=config.model_copy(update=document), report=report)


class _Program:
    """Contrastive tables, as a search sees them; see `training.Program`."""

    def __init__(
        self,
        positives: Positives | Pairs,
        held_out: Positives,
        base: ContrastiveConfig,
        families: Mapping[str, Family],
        recipes: Sequence[Recipe],
        *,
        data: str,
    ) -> None:
        self.families = families
        self.recipes = recipes
        self.max_epochs = base.epochs if "epochs" in base.model_fields_set else _MOST_EPOCHS
        self.data = data
        self._base = base
        self._positives = positives
        self._held_out = held_out

    def configure(self, family: str, values: Mapping[str, Any], *, epochs: int, every: int, seed: int) -> ContrastiveConfig:
        validation = self._base.validation.model_copy(update={"every": every})
        document = dict(self.families[family].settings) | dict(values)
        document |= {"epochs": epochs, "seed": seed, "validation": validation}
        document |= {"query_type": self._base.query_type, "item_type": self._base.item_type}
        # Several positives of a query are drawn from a batch, and logQ counts the batch's own.
        if not document.get("in_batch", True):
            document.pop("logq", None)
        return ContrastiveConfig.model_validate(document)

    def train(
        self, config: ContrastiveConfig, *, lifecycle: Lifecycle, on_score: Callable[[float, float], None] | None
    ) -> float:
        metric = f"ndcg@{min(config.validation.k, self._held_out.num_items)}"  # a ranking is no longer than there are items

        def on_epoch(row: Mapping[str, float]) -> None:
            if on_score is not None and metric in row:
                on_score(row["epoch"] / config.epochs, row[metric])

        try:
            result = train_pairs(self._positives, config, held_out=self._held_out, progress=on_epoch, lifecycle=lifecycle)
        except ValueError as error:
            if "loss" not in str(error) and "not finite" not in str(error):
                raise
            logger.warning("contrastive search: %s", error)
            return 0.0
        if metric not in result.metrics:
            raise ValueError("no held-out pair can be ranked among what its query has not come to: hold out others")
        return result.metrics[metric]


def _check_held_out(positives: Positives, held_out: Positives) -> None:
    """Refuse pairs to choose by that a ranking could not hold."""
    sizes = [(part.num_queries, part.num_items) for part in (positives, held_out)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"held_out counts in other tables, of {sizes[1]} queries and items, than positives, of {sizes[0]}")
    learned, asked = (part.queries.astype(np.int64) * part.num_items + part.items for part in (positives, held_out))
    if np.isin(asked, learned).all():
        raise ValueError("all held-out pairs are learned from as well, and a ranking leaves those out: hold out others")


def _given(base: ContrastiveConfig) -> dict[str, Any]:
    """Give the fields that were set, and not left to a default; what is of graphs is left to the last training."""
    return base.model_dump(exclude_unset=True, exclude={"composed", "validation"})


def _families(base: ContrastiveConfig) -> dict[str, Family]:
    given = _given(base)
    preset = PRESETS.get(base.preset or "", {})
    own = {name for name in given if given[name] != preset.get(name)} - set(_FIXED)
    names = [base.preset] if base.preset else list(SPACES)
    if not base.preset and "loss" in own:
        names = [name for name in names if PRESETS[name].get("loss", "softmax") == base.loss]
    families = {}
    for name in names:
        settings = {**PRESETS[name], **{field: given[field] for field in own}}
        families[name] = Family(settings=settings, space={part: kind for part, kind in SPACES[name].items() if part not in own})
    # A loss or optimiser that no preset has: only what was given, around it.
    return families or {"base": Family(settings={name: given[name] for name in own})}


def _recipes(families: Mapping[str, Family]) -> list[Recipe]:
    found = []
    for name, family in families.items():
        for place, values in enumerate(RECIPES.get(name, ({},))):
            found.append((place, Recipe(family=name, values={part: values[part] for part in family.space})))
    return [recipe for _, recipe in sorted(found, key=lambda pair: pair[0])]
