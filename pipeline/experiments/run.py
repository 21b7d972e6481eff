"""Runs an experiment: graph, pretraining, trials, fits, comparison; each a stage that a second run finds done."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from multifacet import ranking
from multifacet.pipeline.experiments.arm import Arm, Facet
from multifacet.pipeline.experiments.comparison import compare
from multifacet.pipeline.experiments.experiment import REFIT, Experiment, Settings
from multifacet.pipeline.experiments.fitting import TRAINED, fit, pretrain, quantize, sample_examples, shuffle
from multifacet.pipeline.experiments.statistics import holm
from multifacet.pipeline.runs import stages
from multifacet.pipeline.runs.workspace import Stage, Task, Workspace, content_key

logger = logging.getLogger(__name__)

_CHOICE = "valid_ctr_log_loss"


def run_experiment(experiment: Experiment, settings: Settings, workspace: Workspace) -> dict[str, Any]:
    """Runs what is not done yet and returns the experiment's document.

    Every arm gets the same number of trials on the validation periods, with the first seed; the best is run with every seed.
    The test periods are scored once a seed and arm, and compared at the end.

    Args:
        experiment: What is compared.
        settings: The data, and how thoroughly.
        workspace: Where the stages are kept; several experiments on one source share them.
    """
    return _Run(experiment, settings, workspace).document()


class _Run:
    def __init__(self, experiment: Experiment, settings: Settings, workspace: Workspace) -> None:
        self.experiment = experiment
        self.settings = settings
        self.workspace = workspace
        self.graph = workspace.make(settings.source.graph_task())
        self.store = settings.source.store(self.graph)
        self.examples: dict[str, Stage] = {}
        self.snapshots: dict[str, Stage] = {}

    def document(self) -> dict[str, Any]:
        experiment, settings = self.experiment, self.settings
        seeds = range(settings.num_seeds)
        # The first seed's are enough for the trials; making all at once keeps every core busy.
        self._make_inputs(seeds)
        trials = self._fit([(arm, trial, 0) for arm in experiment.arms for trial in range(self._num_trials(arm))])
        chosen = {arm.name: self._best(arm, trials) for arm in experiment.arms}
        fits = self._fit([(arm, chosen[arm.name], seed) for arm in experiment.arms for seed in seeds])
        scores = {
            arm.name: [fits[_fit_name(arm, chosen[arm.name], seed)].path / stages.SCORES for seed in seeds]
            for arm in experiment.arms
        }
        quantized = self._quantize(chosen, fits)
        for precision in experiment.precision_arms:
            scores[precision] = [stage.path / f"{precision}.npy" for stage in quantized]
        comparison = self._compare(scores, [*fits.values(), *quantized])
        return {
            "experiment": experiment.model_dump(mode="json"),
            "settings": settings.model_dump(mode="json"),
            "graph": {name: self.graph.result[name] for name in ("nodes", "edges", "fingerprint") if name in self.graph.result},
            "arms": self._arm_rows(chosen, trials, fits, comparison, quantized),
            "effects": self._adjusted(comparison["effects"]),
            "pretraining": {
                name: {"metrics": stage.result["metrics"], "cpu_seconds": stage.result["cpu_seconds"]}
                for name, stage in self.snapshots.items()
            },
            "seconds": sum(stage.seconds for stage in self.workspace.stages),
        }

    def _make_inputs(self, seeds: Iterable[int]) -> None:
        lineages = [facet.lineage for arm in self.experiment.arms for facet in arm.facets]
        for generation in range(max(map(len, lineages), default=0)):
            tasks: dict[str, Task] = {}
            for seed in seeds:
                for facet in (lineage[generation] for lineage in lineages if generation < len(lineage)):
                    name = _facet_name(facet, seed)
                    tasks.setdefault(name, self._pretrain_task(name, facet, seed))
            self.snapshots |= {stage.name: stage for stage in self.workspace.make_together(list(tasks.values()))}
        tasks = {}
        for seed in seeds:
            for arm in self.experiment.arms:
                name = _examples_name(arm, seed)
                tasks.setdefault(name, self._examples_task(name, arm, seed))
        self.examples |= {stage.name: stage for stage in self.workspace.make_together(list(tasks.values()))}

    def _examples_task(self, name: str, arm: Arm, seed: int) -> Task:
        source = self.settings.source
        return Task(
            name=name,
            run=partial(
                sample_examples,
                store_path=self.store,
                source=source,
                seed=seed,
                history=arm.history,
                recent_pins=arm.recent_pins,
            ),
            config={
                **({"recent_pins": arm.recent_pins} if arm.recent_pins else {}),
                "splits": source.splits.model_dump(),
                "features": source.features.model_dump(mode="json"),
                "seed": seed,
                "history": arm.history,
            },
            rooms=("ranking", "training", "graphdb"),
            parents=(self.graph,),
        )

    def _pretrain_task(self, name: str, facet: Facet, seed: int) -> Task:
        older = None if facet.parent is None else self.snapshots[_facet_name(facet.parent, seed)]
        older_path = None if older is None else older.path / TRAINED
        if facet.shuffled:
            run = partial(shuffle, facet=facet, snapshot_path=older_path, seed=seed)
        else:
            run = partial(pretrain, store_path=self.store, facet=facet, seed=seed, older_path=older_path)
        return Task(
            name=name,
            run=run,
            config={"facet": _given(facet), "seed": seed},
            rooms=(facet.method, "training", "tables", "graphdb"),
            parents=(self.graph,) if older is None else (self.graph, older),
        )

    def _num_trials(self, arm: Arm) -> int:
        return min(self.settings.num_trials, len(arm.trials))

    def _fit(self, wanted: Sequence[tuple[Arm, int, int]]) -> dict[str, Stage]:
        tasks = [self._fit_task(arm, trial, seed) for arm, trial, seed in wanted]
        return {stage.name: stage for stage in self.workspace.make_together(tasks)}

    def _fit_task(self, arm: Arm, trial: int, seed: int) -> Task:
        fields = {"max_epochs": self.settings.max_epochs, **arm.ranking_fields(arm.trials[trial], seed)}
        config = ranking.RankingConfig(**fields)
        examples = self.examples[_examples_name(arm, seed)]
        facets = [self.snapshots[_facet_name(facet, seed)] for facet in arm.facets]
        return Task(
            name=_fit_name(arm, trial, seed),
            run=partial(
                fit,
                examples_path=examples.path,
                config=config,
                snapshot_paths=[facet.path / stages.SNAPSHOT for facet in facets],
                without=arm.without,
                hashing=arm.hashing,
                export=arm.export,
            ),
            config={
                "ranking": config.model_dump(mode="json"),
                "without": list(arm.without),
                "hashing": arm.hashing and _given(arm.hashing),
                "export": arm.export,
            },
            rooms=("ranking", "training", "tables"),
            parents=(examples, *facets),
        )

    def _best(self, arm: Arm, trials: Mapping[str, Stage]) -> int:
        losses = [trials[_fit_name(arm, trial, 0)].result["validation"][_CHOICE] for trial in range(self._num_trials(arm))]
        return losses.index(min(losses))

    def _quantize(self, chosen: Mapping[str, int], fits: Mapping[str, Stage]) -> list[Stage]:
        name = self.experiment.quantized
        if name is None:
            return []
        arm = next(arm for arm in self.experiment.arms if arm.name == name)
        tasks = []
        for seed in range(self.settings.num_seeds):
            model, examples = fits[_fit_name(arm, chosen[name], seed)], self.examples[_examples_name(arm, seed)]
            tasks.append(
                Task(
                    name=f"{self.experiment.name}.{arm.name}.s{seed}",
                    run=partial(
                        quantize,
                        model_path=model.path / stages.MODEL,
                        examples_path=examples.path,
                        without=arm.without,
                        budgets=self.experiment.budgets,
                    ),
                    config={"arms": list(self.experiment.precision_arms), "budgets": list(self.experiment.budgets)},
                    rooms=("ranking", "training", "tables"),
                    parents=(model, examples),
                )
            )
        return self.workspace.make_together(tasks)

    def _compare(self, scores: Mapping[str, Sequence[Path]], parents: Sequence[Stage]) -> dict[str, Any]:
        # All arms score the same exposures.
        plain = self.experiment.arms[0].model_copy(update={"history": False})
        examples = [self.examples[_examples_name(plain, seed)] for seed in range(self.settings.num_seeds)]
        pairs = [(comparison.arm, comparison.baseline) for comparison in self.experiment.comparisons]
        stage = self.workspace.make(
            Task(
                name=f"comparison.{self.experiment.name}",
                run=partial(
                    compare,
                    examples_paths=[stage.path for stage in examples],
                    scores=scores,
                    pairs=pairs,
                    num_resamples=self.settings.num_resamples,
                ),
                config={"pairs": [list(pair) for pair in pairs], "num_resamples": self.settings.num_resamples},
                rooms=("ranking", "training", "tables", "pipeline"),
                parents=(*examples, *parents),
            )
        )
        return stage.result

    def _arm_rows(
        self,
        chosen: Mapping[str, int],
        trials: Mapping[str, Stage],
        fits: Mapping[str, Stage],
        comparison: Mapping[str, Any],
        quantized: Sequence[Stage],
    ) -> list[dict[str, Any]]:
        rows = []
        for arm in self.experiment.arms:
            first = fits[_fit_name(arm, chosen[arm.name], 0)].result
            rows.append(
                {
                    "name": arm.name,
                    "title": arm.title,
                    "chosen": arm.trials[chosen[arm.name]],
                    "trials": [
                        {
                            "settings": arm.trials[trial],
                            _CHOICE: trials[_fit_name(arm, trial, 0)].result["validation"][_CHOICE],
                        }
                        for trial in range(self._num_trials(arm))
                    ],
                    "facets": [_facet_name(facet, 0) for facet in arm.facets],
                    "pretraining_cpu_seconds": self._pretraining_cost(arm),
                    "validation": _mean_validation(
                        [fits[_fit_name(arm, chosen[arm.name], seed)] for seed in range(self.settings.num_seeds)]
                    ),
                    "table_rows": first["table_rows"],
                    "fit_cpu_seconds": first["cpu_seconds"],
                    "metrics": comparison["arms"][arm.name],
                }
            )
        rows += [
            {
                "name": precision,
                "title": _precision_title(precision),
                **quantized[0].result[precision],
                "metrics": comparison["arms"][precision],
            }
            for precision in self.experiment.precision_arms
        ]
        return rows

    def _pretraining_cost(self, arm: Arm) -> float:
        """CPU seconds of its facets' last pretrainings, mean over seeds: what one refresh costs."""
        seeds = range(self.settings.num_seeds)
        stages = [self.snapshots[_facet_name(facet, seed)] for facet in arm.facets for seed in seeds]
        return float(sum(stage.result["cpu_seconds"] for stage in stages)) / len(seeds)

    def _adjusted(
        self, effects: Mapping[str, Mapping[str, list[dict[str, Any]]]]
    ) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """The effects with Holm's adjustment over the declared comparisons of a task, each slice on its own."""
        adjusted: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for task, by_slice in effects.items():
            adjusted[task] = {}
            for name, rows in by_slice.items():
                p_values = holm([row["p_value"] for row in rows])
                adjusted[task][name] = [
                    row | {"adjusted_p_value": p_value} for row, p_value in zip(rows, p_values, strict=True)
                ]
        return adjusted


def _mean_validation(fits: Sequence[Stage]) -> dict[str, float]:
    """Gives the mean over seeds of what the validation periods say."""
    rows = [fit.result["validation"] for fit in fits]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if all(name in row for row in rows)}


def _examples_name(arm: Arm, seed: int) -> str:
    kind = (".history" if arm.history else "") + (f".recent{arm.recent_pins}" if arm.recent_pins else "")
    return f"examples{kind}.s{seed}"


def _facet_name(facet: Facet, seed: int) -> str:
    return f"facet.{facet.name}.{_short(facet)}.s{seed}"


def _fit_name(arm: Arm, trial: int, seed: int) -> str:
    return f"fit.{arm.name}.{_short(arm)}.t{trial}.s{seed}"


def _precision_title(name: str) -> str:
    if name == REFIT:
        return "rows in INT4, rounded by least squares"
    share = name.removeprefix("mixed")
    return f"rows of mixed precision, {share} times INT4's bytes" if share != name else f"rows in {name.upper()}"


def _short(model: BaseModel) -> str:
    """Tells apart what experiments that share a workspace call alike."""
    return content_key(_given(model))[:8]


def _given(model: BaseModel) -> dict[str, Any]:
    """What of it differs from the defaults, so that a new option leaves finished stages as they are.

    Another default changes the source of its room, which is part of a stage's key too.
    """
    return model.model_dump(mode="json", exclude_defaults=True)
