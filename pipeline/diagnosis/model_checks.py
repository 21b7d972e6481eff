"""Checks of a trained ranker: its tables' age, whether they learn, its ids, its calibration, and its AUC beside others'."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from multifacet.pipeline.diagnosis.finding import Finding, Level, above, below

if TYPE_CHECKING:
    from multifacet.pipeline.diagnosis.gates import GatesSection
    from multifacet.ranking import Examples, ExportedModel

__all__ = ["check_evaluation", "check_model", "id_coverage"]


def id_coverage(model: ExportedModel, examples: Examples) -> dict[str, float]:
    """Gives the share of examples whose id has a row of its own, by feature.

    Args:
        model: The ranker.
        examples: Examples with its features.
    """
    found = {}
    for feature, id_map in dict(zip(model.features, model.id_maps, strict=True)).items():
        if feature not in examples.id_features or feature in examples.lists:
            continue
        rows = id_map.rows(examples.ids(feature))
        found[feature] = float((rows != id_map.num_rows - 1).mean()) if id_map.kind == "exact" else 1.0
    return found


def check_model(manifest: Mapping[str, Any], gates: GatesSection) -> list[Finding]:
    """Checks what a model's manifest says of its tables.

    Args:
        manifest: The model's.
        gates: The limits.
    """
    lineage, config = manifest.get("lineage", {}), manifest.get("config", {})
    return [*_window_gaps(lineage, gates), *_frozen(config, gates)]


def _window_gaps(lineage: Mapping[str, Any], gates: GatesSection) -> list[Finding]:
    begins = lineage.get("examples", {}).get("since")
    findings = []
    for facet, window in lineage.get("tables", {}).items():
        if begins is None or "as_of" not in window:
            continue
        days = (dt.datetime.fromisoformat(begins) - dt.datetime.fromisoformat(window["as_of"])) / dt.timedelta(days=1)
        findings.append(
            above(
                "window gap",
                facet,
                days,
                gates.window_gap_warn_days,
                gates.window_gap_stop_days,
                told=f"{facet}: its window ends {days:.1f} days before fine-tuning begins",
                cause="stale pretraining: three months cost 0.05% of AUC in the paper, six cost all that tables gave",
                mend=f"pretrain {facet} up to {begins}: a smaller every_days in the pipeline; by hand `multifacet pretrain "
                f"{facet} STORE NEW --as-of {begins} --warm-start OLD`",
            )
        )
        findings.append(
            above(
                "window overlap",
                facet,
                max(0.0, -days),
                None,
                0.5 if gates.window_gap_stop_days is not None else None,
                told=f"{facet}: its window reaches {max(0.0, -days):.1f} days into fine-tuning's examples",
                cause="the tables have seen the labels that the ranker learns from: it trusts them more than it should",
                mend=f"end the window of {facet} where fine-tuning begins: `--as-of {begins}`",
            )
        )
    return findings


def _frozen(config: Mapping[str, Any], gates: GatesSection) -> list[Finding]:
    facets = list(config.get("facets", ()))
    broken: Level | Literal["ignore"] = gates.frozen_tables
    if not facets or broken == "ignore":
        return []
    asked = bool(config.get("freeze_tables"))
    rates = {facet: config.get("facet_lrs", {}).get(facet, config.get("table_lr", 0.0)) for facet in facets}
    findings = []
    for facet, rate in rates.items():
        # `freeze_tables` says so; a rate of 0 may be a slip.
        slip = not rate and not asked
        level: Level = broken if slip else "ok"
        learns = "stay as they were pretrained" if slip or asked else f"learn at {rate:g}"
        findings.append(
            Finding(
                check="frozen tables",
                subject=facet,
                value=0.0 if slip or asked else float(rate),
                limit=0.0,
                level=level,
                told=f"{facet}: tables {learns}{', as freeze_tables asks' if asked else ''}",
                cause="a learning rate of 0: freezing takes most of the gain in the paper" if slip else "",
                mend="set table_lr (and facet_lrs) above 0, or freeze_tables if that is meant" if slip else "",
            )
        )
    return findings


def check_evaluation(evaluation: Mapping[str, Any], gates: GatesSection) -> list[Finding]:
    """Checks a measured ranker.

    Args:
        evaluation: What the pipeline's step `evaluate` returned.
        gates: The limits.
    """
    findings = []
    for feature, share in evaluation["coverage"].items():
        findings.append(
            below(
                "id coverage",
                feature,
                share,
                gates.coverage_warn,
                gates.coverage_stop,
                told=f"{feature}: {share:.1%} of the examples have a row of their own",
                cause="ids that tables do not know: new ids since pretraining, another type or spelling of ids, or min_degree",
                mend=f'pretrain on a window that has these ids, or look at them: `multifacet graph query STORE "FROM '
                f'nodes_{feature} LIMIT 9"`',
            )
        )
    findings.append(_calibration(evaluation["metrics"]["ctr"], gates))
    findings += _auc_change("AUC change", "against the release that serves now", evaluation.get("serving_change"), gates)
    findings += _precision_change(evaluation, gates)
    return findings


def _calibration(metrics: Mapping[str, Any], gates: GatesSection) -> Finding:
    """Checks predictions' mean beside the labels', less what so few positives leave open (two standard errors)."""
    calibration, positives = metrics["calibration"], metrics["num_positives"]
    share = positives / metrics["num_examples"]
    open_ = 1.96 * ((1.0 - share) / max(1, positives)) ** 0.5
    return above(
        "calibration",
        "ctr",
        max(0.0, abs(calibration - 1.0) - open_),
        gates.calibration_warn,
        gates.calibration_stop,
        told=f"ctr: predicts {calibration:.3f} of what is observed (+-{open_:.3f} by chance)",
        cause="labels or sampling of the evaluation's days are others than training's, or training ended too early",
        mend="compare the days: `multifacet runs PIPELINE.toml --json`; train on later days (train_days, validate_days), or "
        "correct the sampling by sampling_rate and negative_rate",
    )


def _auc_change(check: str, beside: str, change: Mapping[str, Any] | None, gates: GatesSection) -> list[Finding]:
    if change is None or "ctr" not in change:
        return []
    ctr = change["ctr"]
    low, high = _over_seeds(ctr, gates.auc_seed_deviation)
    return [
        above(
            check,
            "ctr",
            -high,
            gates.auc_drop_warn,
            gates.auc_drop_stop,
            told=f"ctr: ROC-AUC {ctr['difference']:+.4f} ({low:+.4f} to {high:+.4f}) {beside}",
            cause="the new model is worse on the last days for certain: broken tables, missing loads, or other settings",
            mend="look at the other findings first, then at the loads: `multifacet runs`; the old release goes on serving",
        )
    ]


def _over_seeds(change: Mapping[str, float], deviation: float) -> tuple[float, float]:
    """Gives a change's interval, over users and the seeds of both trainings."""
    of_seeds, difference = 1.96 * math.sqrt(2) * deviation, change["difference"]
    low, high = (math.hypot(change[f"difference_{end}"] - difference, of_seeds) for end in ("low", "high"))
    return difference - low, difference + high


def _precision_change(evaluation: Mapping[str, Any], gates: GatesSection) -> list[Finding]:
    change = evaluation["precision_change"].get("ctr")
    if change is None:
        return []
    name = evaluation["precision"].upper()
    return [
        above(
            "precision",
            "ctr",
            -change["difference_high"],
            gates.int4_drop_warn,
            gates.int4_drop_stop,
            told=f"ctr: {name} against FP32 {change['difference']:+.4f} ({change['difference_low']:+.4f} to "
            f"{change['difference_high']:+.4f}) of ROC-AUC",
            cause=f"rows that {name} cannot hold: a few numbers of a row are far larger than the others",
            mend="publish with --precision int8 ([release] precision), or lower table_lr so that rows grow less",
        )
    ]
