"""The main job: raw interactions to a served INT4 model, every stage real, on The Complete Journey."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from multifacet import ranking
from multifacet.artifacts import write_file
from multifacet.contrastive import ComposedTower, ContrastiveConfig
from multifacet.graphdb import Recipe
from multifacet.kge import KgeConfig
from multifacet.pipeline.experiments.comparison import compare
from multifacet.pipeline.report import page as report
from multifacet.pipeline.runs import stages
from multifacet.pipeline.runs.workspace import Stage, Task, Watcher, Workspace
from multifacet.tables import Precision

logger = logging.getLogger(__name__)

_ARMS: tuple[ranking.Arm, ...] = ("no_ids", "scratch", "pretrained")
_TABLES = {"scratch": "tables from scratch", "pretrained": "pretrained tables"}
_BASELINE: ranking.Arm = "no_ids"
#: How negatives are drawn for the figures that count: by demand, so that popularity alone tells nothing.
_PRIMARY = "demand"
SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"


class DemoConfig(BaseModel):
    """What a demo runs on and how; all of it is written beside the results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = Field(default="completejourney", description="recipe of the data")
    source: Path | None = Field(default=None, description="folder of the raw files; the installed package's by default")
    kge: KgeConfig = Field(default=KgeConfig(distinct_edges=True), description="knowledge graph embedding")
    contrastive: ContrastiveConfig = Field(
        default=ContrastiveConfig(
            composed=(ComposedTower(node_type="advertiser", through="made_by"),),
        ),
        description="contrastive pretraining of users, pins and, through their pins, advertisers",
    )
    # What the validation weeks chose: `multifacet experiment tasks`.
    ranking: dict[str, Any] = Field(
        default={"heads": "esmm_dense"}, description="fields of RankingConfig to change in every arm"
    )
    pretrained: dict[str, Any] = Field(
        default={"freeze_tables": True, "id_dropout": 0.3},
        description="fields of RankingConfig to change in the arm of pretrained tables",
    )
    precision: Precision = Field(default="int4", description="precision of the release")
    num_seeds: int = Field(default=3, ge=1, description="seeds of each arm's training; differences are over all")
    num_resamples: int = Field(default=400, ge=20, description="bootstrap resamples of users behind each interval")
    seed: int = Field(default=0, ge=0, description="seed of the negatives of the ranking task")

    @classmethod
    def quick(cls) -> DemoConfig:
        """The same flow on the sample that comes with the project, in under a minute."""
        full = cls()
        return cls(
            source=SAMPLE,
            kge=full.kge.model_copy(update={"epochs": 2, "max_edges_per_relation": 20_000}),
            contrastive=full.contrastive.model_copy(update={"epochs": 2}),
            ranking=full.ranking | {"max_epochs": 3},
            num_seeds=2,
            num_resamples=100,
        )


def run_demo(config: DemoConfig, work_dir: Path, watcher: Watcher, *, quick: bool = False) -> dict[str, Any]:
    """Runs the stages that are not done yet and returns the document that `multifacet demo --json` prints.

    Args:
        config: What to run.
        work_dir: Folder of the stages and of `report.html`.
        watcher: Told of the progress.
        quick: Whether to say in the report that this is the sample.

    Raises:
        WorkspaceError: Another run is using the folder.
    """
    started = time.perf_counter()
    workspace = Workspace(work_dir, watcher)
    with workspace.locked():
        done = _run_stages(config, workspace)
        document = _document(config, workspace, done)
        document["quick"] = quick
        document["report"] = str(workspace.root / "report.html")
        document["seconds"] = time.perf_counter() - started
        write_file(workspace.root / "results.json", json.dumps(document, indent=2), durable=False)
        write_file(workspace.root / "report.html", report.render(document), durable=False)
    return document


def _run_stages(config: DemoConfig, workspace: Workspace) -> dict[str, Stage]:
    recipe = Recipe.load(config.recipe)
    if recipe.splits is None:
        msg = f"recipe {recipe.name!r} declares no [splits], which the demo needs"
        raise ValueError(msg)
    graph = workspace.make(
        Task(
            name="graph",
            run=partial(stages.build_graph, recipe=recipe, source=config.source),
            config={"recipe": recipe.model_dump(mode="json"), "files": stages.source_fingerprint(recipe, config.source)},
            rooms=("graphdb",),
        )
    )
    done = {"graph": graph}

    def make_together(tasks: Sequence[Task]) -> None:
        done.update({stage.name: stage for stage in workspace.make_together(tasks)})

    make_together([*_pretraining(config, graph, recipe.splits.training[0]), *_examples(config, recipe, graph)])
    make_together(_arms(config, done))
    make_together([*_comparisons(config, done), _quantization(config, done), _release(config, done)])
    done["serving"] = workspace.make(_serving(config, done))
    return done


def _pretraining(config: DemoConfig, graph: Stage, before_period: int) -> list[Task]:
    return [
        Task(
            name=facet,
            run=partial(stages.pretrain, store_path=graph.path / stages.STORE, config=pretrainer, as_of_period=before_period),
            config={"pretrainer": pretrainer.model_dump(mode="json"), "before_period": before_period},
            rooms=(facet, "training", "tables", "graphdb"),
            parents=(graph,),
        )
        for facet, pretrainer in (("kge", config.kge), ("contrastive", config.contrastive))
    ]


def _examples(config: DemoConfig, recipe: Recipe, graph: Stage) -> list[Task]:
    return [
        Task(
            name=f"examples_{weighting}",
            run=partial(
                stages.sample_examples,
                store_path=graph.path / stages.STORE,
                recipe=recipe,
                weighting=weighting,
                seed=config.seed,
            ),
            config={"weighting": weighting, "seed": config.seed},
            rooms=("ranking", "training", "graphdb"),
            parents=(graph,),
        )
        for weighting in ranking.WEIGHTINGS
    ]


def _arms(config: DemoConfig, done: Mapping[str, Stage]) -> list[Task]:
    return [
        _arm(config, done, arm, weighting, seed)
        for weighting in ranking.WEIGHTINGS
        for seed in range(config.num_seeds if weighting == _PRIMARY else 1)
        for arm in _ARMS
    ]


def _arm(config: DemoConfig, done: Mapping[str, Stage], arm: ranking.Arm, weighting: str, seed: int) -> Task:
    examples = done[f"examples_{weighting}"]
    own = config.pretrained if arm == "pretrained" else {}
    arm_config = ranking.arm_config(arm, **{"seed": seed, **config.ranking, **own})
    facets = [done[facet] for facet in arm_config.pretrained_facets]
    return Task(
        name=_arm_name(arm, weighting, seed),
        run=partial(
            stages.train_arm,
            examples_path=examples.path,
            config=arm_config,
            snapshot_paths=[facet.path / stages.SNAPSHOT for facet in facets],
            num_resamples=config.num_resamples,
            export=seed == 0,
        ),
        config={"arm": arm_config.model_dump(mode="json"), "num_resamples": config.num_resamples, "export": seed == 0},
        rooms=("ranking", "training", "tables"),
        parents=(examples, *facets),
    )


def _arm_name(arm: str, weighting: str, seed: int) -> str:
    """The first seed's model is the one that is quantised, published and served."""
    return f"{arm}_{weighting}" + (f"_seed{seed}" if seed else "")


def _comparisons(config: DemoConfig, done: Mapping[str, Stage]) -> list[Task]:
    tasks = []
    for weighting in ranking.WEIGHTINGS:
        examples = done[f"examples_{weighting}"]
        num_seeds = config.num_seeds if weighting == _PRIMARY else 1
        arms = {arm: [done[_arm_name(arm, weighting, seed)] for seed in range(num_seeds)] for arm in _ARMS}
        tasks.append(
            Task(
                name=f"comparison_{weighting}",
                run=partial(
                    compare,
                    examples_paths=[examples.path] * num_seeds,
                    scores={arm: [stage.path / stages.SCORES for stage in seeds] for arm, seeds in arms.items()},
                    pairs=[(arm, _BASELINE) for arm in _ARMS if arm != _BASELINE],
                    num_resamples=config.num_resamples,
                    slices=("all",),
                ),
                config={"num_resamples": config.num_resamples},
                rooms=("ranking", "training", "tables", "pipeline"),
                parents=(examples, *(stage for seeds in arms.values() for stage in seeds)),
            )
        )
    return tasks


def _quantization(config: DemoConfig, done: Mapping[str, Stage]) -> Task:
    examples, model = done["examples_demand"], done["pretrained_demand"]
    return Task(
        name="quantization",
        run=partial(
            stages.quantize,
            model_path=model.path / stages.MODEL,
            examples_path=examples.path,
            num_resamples=config.num_resamples,
        ),
        config={"num_resamples": config.num_resamples},
        rooms=("ranking", "training", "tables"),
        parents=(model, examples),
    )


def _release(config: DemoConfig, done: Mapping[str, Stage]) -> Task:
    model = done["pretrained_demand"]
    return Task(
        name="release",
        run=partial(stages.release, model_path=model.path / stages.MODEL, precision=config.precision),
        config={"precision": config.precision},
        rooms=("serving", "tables"),
        parents=(model,),
    )


def _serving(config: DemoConfig, done: Mapping[str, Stage]) -> Task:
    release, examples, offline = done["release"], done["examples_demand"], done["quantization"]
    return Task(
        name="serving",
        run=partial(
            stages.serve,
            release_path=release.path / stages.RELEASE,
            examples_path=examples.path,
            offline_path=offline.path / f"{config.precision}.npy",
        ),
        config={},
        rooms=("serving", "tables"),
        parents=(release, examples, offline),
    )


def _document(config: DemoConfig, workspace: Workspace, done: dict[str, Stage]) -> dict[str, Any]:
    graph, recipe = done["graph"].result, Recipe.load(config.recipe)
    return {
        "graph": {
            "nodes": _in_order(graph["nodes"], recipe.nodes),
            "edges": _in_order(graph["edges"], recipe.relations),
            "relations": _in_order(graph["relations"], recipe.relations),
            "loads": graph["loads"],
            "fingerprint": graph["fingerprint"],
        },
        "snapshots": {facet: done[facet].result["fingerprint"] for facet in ("contrastive", "kge")},
        "pretraining": {facet: done[facet].result for facet in ("contrastive", "kge")},
        "examples": {weighting: done[f"examples_{weighting}"].result for weighting in ("demand", "uniform")},
        "metrics": {arm: done[f"{arm}_demand"].result["test"] for arm in _ARMS},
        "seeds": _by_seed(done["comparison_demand"].result),
        "differences": _differences(done["comparison_demand"].result),
        "metrics_uniform": {arm: done[f"{arm}_uniform"].result["test"] for arm in _ARMS},
        "differences_uniform": _differences(done["comparison_uniform"].result),
        "warnings": _warnings(config, done),
        "fits": {
            arm: {key: done[f"{arm}_demand"].result[key] for key in ("history", "validation", "coverage", "config")}
            for arm in _ARMS
        },
        "quantization": _in_order(done["quantization"].result, stages.PRECISIONS),
        "release": done["release"].result,
        "serving": done["serving"].result,
        "stages": [
            {
                "name": stage.name,
                "seconds": stage.seconds,
                "peak_rss_bytes": stage.peak_rss_bytes,
                "reused": stage.reused,
            }
            for stage in workspace.stages
        ],
        "config": config.model_dump(mode="json"),
    }


def _by_seed(comparison: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Gives each arm's and task's mean ROC-AUC over the seeds, and each seed's."""
    return {
        arm: {
            task: {"roc_auc": slices["all"]["roc_auc"], "roc_auc_by_seed": slices["all"]["roc_auc_by_seed"]}
            for task, slices in tasks.items()
            if "all" in slices
        }
        for arm, tasks in comparison["arms"].items()
    }


def _differences(comparison: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Gives each arm's and task's difference from the arm without tables; the interval is over seeds and users."""
    found: dict[str, dict[str, Any]] = {}
    for task, slices in comparison["effects"].items():
        for effect in slices.get("all", ()):
            found.setdefault(effect["arm"], {})[task] = {
                "difference": effect["difference"],
                "difference_low": effect["low"],
                "difference_high": effect["high"],
                "num_seeds": effect["num_seeds"],
            }
    return found


def _warnings(config: DemoConfig, done: Mapping[str, Stage]) -> list[str]:
    """Says where the validation weeks speak against an arm's tables: a task is predicted better without any."""
    warnings = []
    for task in ("ctr", "cvr"):
        losses = {
            arm: [
                done[_arm_name(arm, _PRIMARY, seed)].result["validation"].get(f"valid_{task}_log_loss")
                for seed in range(config.num_seeds)
            ]
            for arm in _ARMS
        }
        if any(loss is None for of_arm in losses.values() for loss in of_arm):
            continue
        means = {arm: sum(of_arm) / len(of_arm) for arm, of_arm in losses.items()}
        warnings += [
            f"On the validation weeks {task.upper()} is predicted worse with {_TABLES[arm]} than without tables: "
            f"log loss {means[arm]:.4f} against {means[_BASELINE]:.4f}."
            for arm in _ARMS
            if means[arm] > means[_BASELINE]
        ]
    return warnings


def _in_order(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Gives fields the order that a reader expects: a manifest keeps them by the alphabet."""
    return {name: fields[name] for name in names}
