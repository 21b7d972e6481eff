"""The main job: raw interactions to a served INT4 model, every stage real, on The Complete Journey."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

import contrastive
import kge
import ranking
from graphdb import Recipe
from pipeline import report, stages
from pipeline.workspace import Stage, Watcher, Workspace
from tables import Precision

logger = logging.getLogger(__name__)

Weighting = Literal["demand", "uniform"]

_ARMS: tuple[ranking.Arm, ...] = ("no_ids", "scratch", "pretrained")
_SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"


class DemoConfig(BaseModel):
    """What a demo runs on and how; all of it is written beside the results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = Field(default="completejourney", description="recipe of the data")
    source: Path | None = Field(default=None, description="folder of the raw files; the installed package's by default")
    kge: kge.KgeConfig = Field(default_factory=kge.KgeConfig, description="knowledge graph embedding")
    contrastive: contrastive.ContrastiveConfig = Field(
        default=contrastive.ContrastiveConfig(
            composed=(contrastive.ComposedTower(node_type="advertiser", through="made_by"),),
        ),
        description="contrastive pretraining of users, pins and, through their pins, advertisers",
    )
    ranking: dict[str, Any] = Field(default_factory=dict, description="fields of RankingConfig to change in every arm")
    precision: Precision = Field(default="int4", description="precision of the release")
    num_resamples: int = Field(default=400, ge=20, description="bootstrap resamples of users behind each interval")
    seed: int = Field(default=0, ge=0, description="seed of the negatives of the ranking task")

    @classmethod
    def quick(cls) -> DemoConfig:
        """The same flow on the sample that comes with the project, in under a minute."""
        full = cls()
        return cls(
            source=_SAMPLE,
            kge=full.kge.model_copy(update={"epochs": 2}),
            contrastive=full.contrastive.model_copy(update={"epochs": 2}),
            ranking={"max_epochs": 3},
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
        _write(workspace.root / "results.json", json.dumps(document, indent=2))
        _write(workspace.root / "report.html", report.render(document))
    return document


def _run_stages(config: DemoConfig, workspace: Workspace) -> dict[str, Stage]:
    recipe = Recipe.load(config.recipe)
    if recipe.splits is None:
        msg = f"recipe {recipe.name!r} declares no [splits], which the demo needs"
        raise ValueError(msg)

    def say(name: str) -> stages.Say:
        return lambda message: workspace.watcher.progressed(name, message)

    done: dict[str, Stage] = {}
    done["graph"] = graph = workspace.stage(
        "graph",
        lambda folder: stages.build_graph(folder, recipe, config.source, say("graph")),
        config={"recipe": recipe.model_dump(mode="json"), "files": stages.source_fingerprint(recipe, config.source)},
        rooms=("graphdb",),
    )
    store = graph.path / stages.STORE
    first_training_period = recipe.splits.training[0]
    for facet, pretrainer in (("contrastive", config.contrastive), ("kge", config.kge)):
        done[facet] = workspace.stage(
            facet,
            lambda folder, facet=facet, pretrainer=pretrainer: stages.pretrain(
                folder, store, pretrainer, first_training_period, say(facet)
            ),
            config={"pretrainer": pretrainer.model_dump(mode="json"), "before_period": first_training_period},
            rooms=(facet, "tables", "graphdb"),
            parents=(graph,),
        )
    for weighting in ("demand", "uniform"):
        _run_ranking(config, recipe, workspace, done, weighting)
    examples = done["examples_demand"]
    model = done["pretrained_demand"]
    done["quantization"] = workspace.stage(
        "quantization",
        lambda folder: stages.quantize(
            folder, model.path / stages.MODEL, examples.path, config.num_resamples, say("quantization")
        ),
        config={"num_resamples": config.num_resamples},
        rooms=("ranking", "tables"),
        parents=(model, examples),
    )
    done["release"] = published = workspace.stage(
        "release",
        lambda folder: stages.release(folder, model.path / stages.MODEL, config.precision),
        config={"precision": config.precision},
        rooms=("serving", "tables"),
        parents=(model,),
    )
    offline = done["quantization"]
    done["serving"] = workspace.stage(
        "serving",
        lambda folder: stages.serve(
            folder,
            published.path / stages.RELEASE,
            examples.path,
            offline.path / f"{config.precision}.npy",
            say("serving"),
        ),
        config={},
        rooms=("serving", "tables"),
        parents=(published, examples, offline),
    )
    return done


def _run_ranking(
    config: DemoConfig, recipe: Recipe, workspace: Workspace, done: dict[str, Stage], weighting: Weighting
) -> None:
    def say(name: str) -> stages.Say:
        return lambda message: workspace.watcher.progressed(name, message)

    name = f"examples_{weighting}"
    done[name] = examples = workspace.stage(
        name,
        lambda folder: stages.sample_examples(
            folder, done["graph"].path / stages.STORE, recipe, weighting, config.seed, say(name)
        ),
        config={"weighting": weighting, "seed": config.seed},
        rooms=("ranking", "graphdb"),
        parents=(done["graph"],),
    )
    facets = [done["contrastive"], done["kge"]]
    for arm in _ARMS:
        arm_config = ranking.arm_config(arm, **config.ranking)
        parents = [facet for facet in facets if arm_config.pretrained_facets]
        done[f"{arm}_{weighting}"] = workspace.stage(
            f"{arm}_{weighting}",
            lambda folder, arm=arm, arm_config=arm_config, parents=parents: stages.train_arm(
                folder,
                examples.path,
                arm_config,
                [parent.path / stages.SNAPSHOT for parent in parents],
                config.num_resamples,
                say(f"{arm}_{weighting}"),
            ),
            config={"arm": arm_config.model_dump(mode="json"), "num_resamples": config.num_resamples},
            rooms=("ranking", "tables"),
            parents=(examples, *parents),
        )
    done[f"comparison_{weighting}"] = workspace.stage(
        f"comparison_{weighting}",
        lambda folder: stages.compare_arms(
            folder,
            examples.path,
            {arm: done[f"{arm}_{weighting}"].path / stages.SCORES for arm in _ARMS},
            "no_ids",
            config.num_resamples,
        ),
        config={"num_resamples": config.num_resamples},
        rooms=("ranking",),
        parents=(examples, *(done[f"{arm}_{weighting}"] for arm in _ARMS)),
    )


def _document(config: DemoConfig, workspace: Workspace, done: dict[str, Stage]) -> dict[str, Any]:
    graph = done["graph"].result
    return {
        "graph": {
            "nodes": graph["nodes"],
            "edges": graph["edges"],
            "relations": graph["relations"],
            "loads": graph["loads"],
            "fingerprint": graph["fingerprint"],
        },
        "snapshots": {facet: done[facet].result["fingerprint"] for facet in ("contrastive", "kge")},
        "pretraining": {facet: done[facet].result for facet in ("contrastive", "kge")},
        "examples": {weighting: done[f"examples_{weighting}"].result for weighting in ("demand", "uniform")},
        # Primary: negatives drawn by demand, so that popularity alone tells nothing.
        "metrics": {arm: done[f"{arm}_demand"].result["test"] for arm in _ARMS},
        "differences": done["comparison_demand"].result,
        "metrics_uniform": {arm: done[f"{arm}_uniform"].result["test"] for arm in _ARMS},
        "differences_uniform": done["comparison_uniform"].result,
        "fits": {
            arm: {key: done[f"{arm}_demand"].result[key] for key in ("history", "validation", "coverage", "config")}
            for arm in _ARMS
        },
        "quantization": done["quantization"].result,
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


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
