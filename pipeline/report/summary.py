"""The closing words of a demo on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multifacet.pipeline.terminal.output import emit_rows, show_bytes, stdout


def print_summary(document: Mapping[str, Any]) -> None:
    """Prints a demo's results as tables.

    Args:
        document: What `multifacet demo --json` prints.
    """
    graph = document["graph"]
    emit_rows(
        (
            {"relation": name, "ends": f"{row['src']} → {row['dst']}", "surface": row["surface"], "edges": row["edges"]}
            for name, row in graph["relations"].items()
        ),
        title="graph",
    )
    rows = []
    for arm, tasks in document["seeds"].items():
        for task, values in tasks.items():
            by_seed = values["roc_auc_by_seed"]
            rows.append(
                {
                    "id tables": arm.replace("no_ids", "none"),
                    "task": task.upper(),
                    "ROC-AUC": f"{values['roc_auc']:.4f}",
                    "by seed": f"{min(by_seed):.4f}-{max(by_seed):.4f}",
                    "against none, 95%": _signed(document["differences"].get(arm, {}).get(task)),
                }
            )
    num_seeds = document["config"]["num_seeds"]
    emit_rows(
        rows, title=f"ranking, test weeks, negatives drawn by demand, {num_seeds} seed{'s' * (num_seeds > 1)} of training"
    )
    for warning in document["warnings"]:
        stdout.print(warning, style="yellow")
    emit_rows(
        (
            {"precision": precision.upper(), "CTR ROC-AUC": f"{row['ctr_roc_auc']:.5f}", "tables": show_bytes(row["bytes"])}
            for precision, row in document["quantization"].items()
        ),
        title="quantisation of the pretrained arm",
    )
    serving = document["serving"]
    emit_rows(
        [
            {
                "requests": serving["requests"],
                "candidates": serving["candidates"],
                "p50 ms": f"{serving['p50_ms']:.2f}",
                "p99 ms": f"{serving['p99_ms']:.2f}",
                "wrong version": serving["wrong_version"],
                "max difference": f"{serving['max_abs_diff']:.1e}",
            }
        ],
        title=f"serving, {document['release']['precision'].upper()}, against the offline scores",
    )
    reused = sum(stage["reused"] for stage in document["stages"])
    stdout.print(f"{document['seconds']:.0f} s, {reused} of {len(document['stages'])} stages reused")
    stdout.print(f"report: {document['report']}", soft_wrap=True, highlight=False)


def _signed(gain: Mapping[str, float] | None) -> str:
    if gain is None:
        return ""
    return f"{gain['difference']:+.4f} ({gain['difference_low']:+.4f}, {gain['difference_high']:+.4f})"
