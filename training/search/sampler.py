"""What to try next, by Optuna, from what has been tried so far."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from multifacet.training.search.space import Choice, Range

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from multifacet.training.search.space import Family, Space
    from multifacet.training.search.trials import Record

__all__ = ["load_optuna", "measure_importance", "should_prune", "suggest"]

_FAMILY = "family"


def load_optuna() -> ModuleType:
    """Import Optuna, quietly.

    Raises:
        ImportError: if it is not installed; the message has the line that installs it.
    """
    try:
        import optuna  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError("a search needs Optuna: pip install 'multifacet[search]', or pip install 'optuna>=5,<6'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def suggest(
    families: Mapping[str, Family], records: Sequence[Record], *, seed: int, num_random: int = 8
) -> tuple[str, dict[str, Any]]:
    """Choose a family and values for its space, by the tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011).

    Nothing is kept between two calls: Optuna's study is built from the records, so that a search that was killed goes on by
    what it has written down, and ranges may have been widened since.

    Args:
        families: what may be chosen, by name.
        records: what has been tried.
        seed: of this choice.
        num_random: trials before the estimator is used.

    Returns:
        The family's name and the values.
    """
    optuna = load_optuna()
    with warnings.catch_warnings():
        # Conditional spaces, one a family, are an experimental feature of a stable sampler.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(multivariate=True, group=True, n_startup_trials=num_random, seed=seed)
    study = _study(optuna, families, records, sampler)
    trial = study.ask()
    family = trial.suggest_categorical(_FAMILY, list(families))
    values = {name: _suggest(trial, f"{family}/{name}", part) for name, part in families[family].space.items()}
    return family, values


def should_prune(records: Sequence[Record], curve: Sequence[tuple[float, float]]) -> bool:
    """Say whether a trial is worse, at its last validation, than half of the trials before it were there.

    Args:
        records: trials of the same round.
        curve: the trial's share of training and score, so far.
    """
    optuna = load_optuna()
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
    study = optuna.create_study(direction="maximize", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
    for record in records:
        state = optuna.trial.TrialState.PRUNED if record.pruned else optuna.trial.TrialState.COMPLETE
        points = {number: score for number, (_, score) in enumerate(record.curve)}
        study.add_trial(
            optuna.trial.create_trial(state=state, value=record.score, params={}, distributions={}, intermediate_values=points)
        )
    trial = study.ask()
    for number, (_, score) in enumerate(curve):
        trial.report(score, number)
    return bool(trial.should_prune())


def measure_importance(family: Family, records: Sequence[Record]) -> dict[str, float]:
    """Give what share of the variance of scores each field explains, by fANOVA (Hutter et al., ICML 2014).

    Args:
        family: the family.
        records: its finished trials, of one round; others would differ by their length.

    Returns:
        Field -> share, the largest first; empty with fewer than six trials, from which nothing can be said.
    """
    if len(records) < 6 or not family.space or len({record.score for record in records}) < 2:
        return {}
    optuna = load_optuna()
    # One space for all: recipes may lie outside of it, and fANOVA compares trials of one space.
    for record in records:
        family = replace(family, space=_including(family.space, record.values))
    study = _study(optuna, {records[0].family: family}, records, optuna.samplers.RandomSampler(seed=0))
    prefix = f"{records[0].family}/"
    names = [f"{prefix}{name}" for name in family.space]
    found = optuna.importance.get_param_importances(
        study, params=names, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    return {name.removeprefix(prefix): round(float(share), 4) for name, share in found.items()}


def _study(optuna: ModuleType, families: Mapping[str, Family], records: Sequence[Record], sampler: Any) -> Any:
    study = optuna.create_study(direction="maximize", sampler=sampler)
    kinds = {_FAMILY: optuna.distributions.CategoricalDistribution(list(families))}
    for record in records:
        if record.family not in families:
            continue
        space = _including(families[record.family].space, record.values)
        distributions = {f"{record.family}/{name}": _distribution(optuna, part) for name, part in space.items()}
        params = {f"{record.family}/{name}": _plain(space[name], record.values[name]) for name in space}
        points = {number: score for number, (_, score) in enumerate(record.curve)}
        state = optuna.trial.TrialState.PRUNED if record.pruned and points else optuna.trial.TrialState.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=record.score,
                params={_FAMILY: record.family, **params},
                distributions=kinds | distributions,
                intermediate_values=points,
            )
        )
    return study


def _including(space: Space, values: Mapping[str, Any]) -> Space:
    return {name: part.including(values[name]) if isinstance(part, Range) else part for name, part in space.items()}


def _plain(part: Range | Choice, value: Any) -> Any:
    if isinstance(part, Range):
        return round(value) if part.whole else value
    return repr(value)


def _distribution(optuna: ModuleType, part: Range | Choice) -> Any:
    if isinstance(part, Choice):
        return optuna.distributions.CategoricalDistribution([repr(value) for value in part.values])
    if part.whole:
        return optuna.distributions.IntDistribution(round(part.low), round(part.high), log=True)
    return optuna.distributions.FloatDistribution(part.low, part.high, log=True)


def _suggest(trial: Any, name: str, part: Range | Choice) -> Any:
    if isinstance(part, Choice):
        words = {repr(value): value for value in part.values}
        return words[trial.suggest_categorical(name, list(words))]
    if part.whole:
        return trial.suggest_int(name, round(part.low), round(part.high), log=True)
    # Three digits say all that a search can know, and are what one would write into a configuration.
    return float(f"{trial.suggest_float(name, part.low, part.high, log=True):.3g}")
