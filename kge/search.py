"""Choosing a configuration on validation, within a budget of CPU time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from multifacet.inputs import expect_type, number, takes, whole
from multifacet.kge.config import ONLY_SAMPLED, KgeConfig
from multifacet.kge.presets import PRESETS, fill_in
from multifacet.kge.spaces import families_for, recipes_of, space_of
from multifacet.kge.statistics import GraphStatistics
from multifacet.kge.training import train_triples
from multifacet.kge.triples.triples import TripleSplit
from multifacet.training import Family, Lifecycle, SearchReport, family_of_space, run_search

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from multifacet.training import Choice, Range, Recipe, Record, Space

__all__ = ["Search", "default_space", "search"]

logger = logging.getLogger(__name__)

# What decides the trials' data or budget, and so cannot differ between them.
_FIXED: Final = ("epochs", "seed", "validation", "distinct_edges", "preset")
# What is not a trial's own, but the search's.
_OF_SEARCH: Final = ("epochs", "seed", "validation", "preset")
# Triples that a trial is ranked by; the winner's seeds are ranked by all of them.
_MOST_RANKED: Final = 4000
_MOST_EPOCHS: Final = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What a search of knowledge graph embeddings has found.

    Attributes:
        config: the winner: what to train and to write into a snapshot.
        report: trials, seeds, importance and advice.
    """

    config: KgeConfig
    report: SearchReport


def default_space(base: KgeConfig, statistics: GraphStatistics) -> dict[str, Space]:
    """Give where a search looks on a graph: the name of a preset -> its fields that `base` has not set itself.

    Args:
        base: a configuration; what was set in it, and not left to a default, stays as it is.
        statistics: of the triples to learn from.
    """
    expect_type("base", base, KgeConfig)
    expect_type("statistics", statistics, GraphStatistics)
    return {name: family.space for name, family in _families(base, statistics).items()}


@takes(minutes=number(above=0.0), num_seeds=whole(0))
def search(
    split: TripleSplit,
    base: KgeConfig | None = None,
    space: Mapping[str, Range | Choice | Sequence[Any]] | None = None,
    *,
    minutes: float = 20.0,
    num_seeds: int = 3,
    progress: Callable[[Record], None] | None = None,
    lifecycle: Lifecycle | None = None,
) -> Search:
    """Try configurations for some CPU minutes, the best of them for longer, and train the winner in new seeds.

    The test part of the split is not looked at, but that its triples are filtered from rankings as ever.

    Args:
        split: what is learned from, and what is chosen by (`valid`).
        base: what all trials share: the fields that were set in it. None: nothing. Its epochs, if set, are the most that a
            trial has.
        space: name of a field -> range, choice or list of values; a field of `full_softmax` is named "full_softmax.dropout".
            None for `default_space`.
        minutes: CPU minutes in all, over all threads.
        num_seeds: how often the winner is trained anew.
        progress: called with each trial, those of an interrupted search included.
        lifecycle: its checkpoint folder keeps finished trials, and the state of the one that runs; a search that was
            killed goes on from there. Remove the folder once the result is used.

    Returns:
        The winner, with as many epochs as its longest trial had, and the report.

    Raises:
        ValueError: if there is nothing to validate on, a field's name or value is wrong, or every trial failed.
        CheckpointError: if the folder holds another search, or any while `resume` is not set.
        ImportError: if Optuna is not installed.
    """
    expect_type("split", split, TripleSplit, hint="kge.read_split makes one of plain triples")
    base = KgeConfig() if base is None else base
    expect_type("base", base, KgeConfig)
    lifecycle = lifecycle or Lifecycle()
    expect_type("lifecycle", lifecycle, Lifecycle)
    if not len(split.valid):
        raise ValueError("a search chooses on validation, and split.valid is empty")
    if lifecycle.warm_start is not None:
        raise ValueError("a search compares trainings from scratch: leave the warm start out")
    statistics = GraphStatistics.of(split.train)
    if space is None:
        families = _families(base, statistics)
        recipes = recipes_of(families, statistics)
    else:
        expect_type("space", space, Mapping)
        settings = {name: value for name, value in base.given().items() if name not in (*_OF_SEARCH, *space)}
        for name in {"relation_lr", "relation_lr_factor"} & set(space):
            settings.pop({"relation_lr": "relation_lr_factor", "relation_lr_factor": "relation_lr"}[name], None)
        families, recipes = family_of_space(
            _flat(settings), space, fixed=_FIXED, check=lambda flat: KgeConfig.model_validate(_nested(flat))
        )
    program = _Program(split, base, families, recipes, data=split.fingerprint() if lifecycle.checkpoint else "")
    report = run_search(program, minutes=minutes, num_seeds=num_seeds, seed=base.seed, lifecycle=lifecycle, progress=progress)
    best = report.best
    config = program.configure(best.family, best.values, epochs=best.epochs, every=1, seed=base.seed)
    return Search(config=config.model_copy(update={"validation": base.validation}), report=report)


class _Program:
    """Knowledge graph embeddings, as a search sees them; see `training.Program`."""

    def __init__(
        self, split: TripleSplit, base: KgeConfig, families: Mapping[str, Family], recipes: Sequence[Recipe], *, data: str
    ) -> None:
        self.families = families
        self.recipes = recipes
        self.max_epochs = base.epochs if "epochs" in base.given() else _MOST_EPOCHS
        self.data = data
        self._base = base
        self._split = split
        self._quick = _with_fewer_ranked(split, base.seed)

    def configure(self, family: str, values: Mapping[str, Any], *, epochs: int, every: int, seed: int) -> KgeConfig:
        document = _nested(dict(self.families[family].settings) | dict(values))
        document = fill_in({"epochs": epochs, "seed": seed}, document)
        if "relation_lr_factor" in values:
            document.pop("relation_lr", None)
        validation = self._base.validation.model_copy(update={"every": every, "patience": None})
        return KgeConfig.model_validate(document | {"validation": validation})

    def train(self, config: KgeConfig, *, lifecycle: Lifecycle, on_score: Callable[[float, float], None] | None) -> float:
        def on_epoch(row: Mapping[str, float]) -> None:
            if on_score is not None and "filtered_mrr" in row:
                on_score(row["epoch"] / config.epochs, row["filtered_mrr"])

        split = self._split if on_score is None else self._quick
        try:
            return train_triples(split, config, progress=on_epoch, lifecycle=lifecycle).metrics["filtered_mrr"]
        except ValueError as error:
            if "loss" not in str(error):
                raise
            logger.warning("kge search: %s", error)
            return 0.0


def _families(base: KgeConfig, statistics: GraphStatistics) -> dict[str, Family]:
    """Give the families that a base leaves open."""
    given, named = base.given(), base.preset or "none"
    own = {name for name in given if given[name] != PRESETS.get(named, {}).get(name)}
    models = {str(base.model)} if "model" in given else {"complex", "rotate", "transe"}
    names: list[str]
    if named in PRESETS:
        names = [named]
    else:
        names = families_for(statistics, models)
        if base.full_softmax is not None:
            optimizer = base.full_softmax.optimizer
            full = (
                {"adam": "complex-adam", "adagrad": "complex-full"}[optimizer] if base.model == "complex" else "distmult-full"
            )
            names = [full]
        elif own & set(ONLY_SAMPLED):
            names = [name for name in names if "full_softmax" not in PRESETS[name]]
            names += ["complex-sampled"] if "complex" in models and "complex-sampled" not in names else []
    families = {}
    for name in names or ["base"]:
        preset = PRESETS.get(name, {})
        settings = fill_in({key: given[key] for key in given if key in own and key not in _OF_SEARCH}, preset)
        space = {part: kind for part, kind in space_of(name).items() if not _is_set(part, own, given)} if name != "base" else {}
        families[name] = Family(settings=_flat(settings), space=space)
    return families


def _is_set(part: str, own: set[str], given: Mapping[str, Any]) -> bool:
    if part == "relation_lr_factor":
        return bool(own & {"relation_lr", "relation_lr_factor"})
    name, _, nested = part.partition(".")
    if nested:
        return isinstance(given.get(name), Mapping) and nested in given[name] and name in own
    return name in own


def _flat(document: Mapping[str, Any]) -> dict[str, Any]:
    """Name nested fields by dots."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if name == "full_softmax" and isinstance(value, Mapping):
            flat |= {f"{name}.{part}": nested for part, nested in value.items()} or {name: {}}
        else:
            flat[name] = value
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `_flat`."""
    document: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        target = document
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return document


def _with_fewer_ranked(split: TripleSplit, seed: int) -> TripleSplit:
    """Give the split with at most so many triples to rank; the others of its valid part are still filtered from rankings."""
    if len(split.valid) <= _MOST_RANKED:
        return split
    order = np.random.default_rng(seed).permutation(len(split.valid))
    kept, left = np.sort(order[:_MOST_RANKED]), np.sort(order[_MOST_RANKED:])
    others = split.valid.take(left)
    test = replace(
        split.test,
        heads=np.concatenate([split.test.heads, others.heads]),
        relations=np.concatenate([split.test.relations, others.relations]),
        tails=np.concatenate([split.test.tails, others.tails]),
        times=None,
        weights=None,
    )
    return replace(split, valid=split.valid.take(kept), test=test)
