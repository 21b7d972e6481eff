"""A run as one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jinja2

from multifacet.pipeline.report import plots
from multifacet.pipeline.terminal.output import show, show_bytes

ARM_NAMES = {"no_ids": "no id tables", "scratch": "id tables from scratch", "pretrained": "pretrained"}
TASKS = {"ctr": "CTR: bought what was promoted", "cvr": "CVR: bought it again within 28 days"}
_HEADLINE = {
    "kge": ("filtered_mrr", "filtered_hits@1", "filtered_hits@10"),
    "contrastive": ("recall@20", "ndcg@20"),
}
_PHASES = {
    "prepare_us": "reading and checking the request",
    "lookup_us": "lookup, start to answer",
    "lookup_server_us": "of which inside the lookup server",
    "assemble_us": "feature assembly, while the lookup runs",
    "lookup_wait_us": "waiting for the lookup after that",
    "decode_us": "dequantisation",
    "pooling_us": "recent pins, read once and pooled for each candidate",
    "upper_us": "upper model",
    "total_us": "whole request inside the ranker",
}


def render(document: Mapping[str, Any]) -> str:
    """The page of a demo run.

    Args:
        document: What `multifacet demo --json` prints, and `results.json` holds.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("multifacet.pipeline", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"show": show, "bytes": show_bytes, "signed": lambda value: f"{value:+.4f}"}
    figures = {
        "loss": plots.loss_curves({facet: row["history"] for facet, row in document["pretraining"].items()}),
        "fit": plots.loss_curves({arm: row["history"] for arm, row in document["fits"].items()}),
        "auc": plots.intervals(document["metrics"], _shared_tasks(document["metrics"])),
        "auc_uniform": plots.intervals(document["metrics_uniform"], _shared_tasks(document["metrics_uniform"])),
        "quantization": plots.precision_cost(document["quantization"]),
        "latency": plots.latency_histogram(
            document["serving"]["latency_histogram"],
            {"p50": document["serving"]["p50_ms"], "p99": document["serving"]["p99_ms"]},
        ),
    }
    return environment.get_template("report.html.j2").render(
        document=document,
        figures=figures,
        arm_names=ARM_NAMES,
        headline=_HEADLINE,
        tasks=TASKS,
        phases=_PHASES,
        config=json.dumps(document["config"], indent=2),
        total_seconds=sum(stage["seconds"] for stage in document["stages"]),
    )


def _shared_tasks(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {task: title for task, title in TASKS.items() if all(task in row for row in metrics.values())}
