"""An experiment's document as Markdown and as a section of the HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from multifacet.pipeline.experiments.prediction import PretrainingMetrics
from multifacet.pipeline.experiments.verdict import judge
from multifacet.pipeline.report import plots

TASKS = {"ctr": "CTR", "cvr": "CVR"}
_NO_VALUE = "-"


def command(document: Mapping[str, Any]) -> str:
    """The command that reruns an experiment."""
    settings, name = document["settings"], document["experiment"]["name"]
    source = settings["source"]
    parts = [f"multifacet experiment {name}"]
    if source["kind"] == "store":
        options = {"pretrain": "pretraining", "finetune": "training", "validate": "validation", "test": "test"}
        spans = {option: source["splits"][part] for option, part in options.items()}
        parts.append(f"--store {source['name']}.duckdb")
        parts += [f"--{option} {first}..{last}" for option, (first, last) in spans.items()]
    elif source["name"].endswith(("-sample", "-small")):
        name = source["name"].removesuffix("-sample").removesuffix("-small")
        return " ".join([*parts, f"--source {name}" if name != "completejourney" else "", "--quick"]).replace("  ", " ")
    elif source["name"] != "completejourney":
        parts.append(f"--source {source['name']}")
    parts += [f"--seeds {settings['num_seeds']}", f"--trials {settings['num_trials']}"]
    return " ".join(parts)


def verdicts(document: Mapping[str, Any], task: str = "ctr") -> list[dict[str, Any]]:
    """One row a declared comparison: claim, effect, verdict and reason; empty where the task has no labels."""
    effects = document["effects"].get(task, {}).get("all", [])
    rows = []
    for comparison, effect in zip(document["experiment"]["comparisons"], effects, strict=False):
        margin = comparison.get("size") or document["settings"]["margin"]
        verdict, reason = judge(effect, comparison["expectation"], margin=margin)
        rows.append({**comparison, **effect, "verdict": verdict, "reason": reason})
    return rows


def section(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the HTML page shows of an experiment."""
    arms = document["arms"]
    tasks = [task for task in TASKS if document["effects"].get(task)]
    return {
        "name": document["experiment"]["name"],
        "question": document["experiment"]["question"],
        "setting": document["experiment"]["setting"],
        "source": document["settings"]["source"]["title"],
        "seeds": document["settings"]["num_seeds"],
        "trials": document["settings"]["num_trials"],
        "margin": document["settings"]["margin"],
        "arms": arms,
        "tasks": {task: TASKS[task] for task in tasks},
        "slices": {task: list(document["effects"][task]) for task in tasks},
        "effects": document["effects"],
        "verdicts": {task: verdicts(document, task) for task in tasks},
        "figure": plots.effects(
            {
                TASKS[task]: [
                    (f"{row['arm']} - {row['baseline']}", row["difference"], row["low"], row["high"])
                    for row in document["effects"][task]["all"]
                ]
                for task in tasks
            }
        ),
        "line": _line(document),
        "prediction": PretrainingMetrics.of(document),
        "command": command(document),
        "seconds": document["seconds"],
    }


def _points(document: Mapping[str, Any]) -> list[tuple[float, dict[str, Any]]]:
    """The arms that lie along the experiment's axis, with their positions, in order; empty where it has none."""
    by_name = {arm["name"]: arm for arm in document["arms"]}
    placed = [
        (by_name[name]["pretraining_cpu_seconds"] if position is None else position, by_name[name])
        for name, position in document["experiment"]["positions"].items()
    ]
    return sorted(placed, key=lambda point: point[0])


def _line(document: Mapping[str, Any]) -> str | None:
    experiment = document["experiment"]
    if experiment["axis"] is None:
        return None
    areas = [(position, arm["metrics"]["ctr"]["all"]) for position, arm in _points(document)]
    levels = {
        arm["title"]: arm["metrics"]["ctr"]["all"]["roc_auc"] for arm in document["arms"] if arm["name"] in {"none", "scratch"}
    }
    curve = [(position, area["roc_auc"], area["seed_deviation"]) for position, area in areas]
    return plots.line(curve, levels, axis=experiment["axis"])


def summary_to_markdown(documents: Sequence[Mapping[str, Any]]) -> str:
    """All experiments: the paper's claims with their verdicts, ours, then a section each."""
    return "\n".join(_summary(documents)) + "\n"


def _summary(documents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "# What pretrained id tables give"
    for by, title in (("paper", "The paper's claims"), ("us", "What we asked beyond")):
        rows = [
            [
                row["claim"],
                f"{document['experiment']['name']}, {document['settings']['source']['title']}",
                TASKS[task],
                f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})",
                row["verdict"],
            ]
            for document in documents
            for task in TASKS
            for row in verdicts(document, task)
            if row["by"] == by
        ]
        if rows:
            yield ""
            yield f"## {title}"
            yield ""
            yield from _table(["claim", "experiment, data", "task", "ROC-AUC difference (95%)", "verdict"], rows)
    for document in documents:
        yield ""
        yield from _markdown(document)


_VALIDATION = {
    "valid_ctr_log_loss": "CTR log loss",
    "valid_ctr_roc_auc": "CTR ROC-AUC",
    "valid_cvr_log_loss": "CVR log loss",
    "valid_cvr_roc_auc": "CVR ROC-AUC",
}


def to_markdown(document: Mapping[str, Any]) -> str:
    """The experiment as a section of a Markdown page."""
    return "\n".join(_markdown(document)) + "\n"


def _markdown(document: Mapping[str, Any]) -> Iterator[str]:
    experiment, settings = document["experiment"], document["settings"]
    yield f"## {experiment['name']}: {settings['source']['title']}"
    yield ""
    yield experiment["question"] + " " + experiment["setting"]
    yield (
        f"{settings['num_seeds']} seeds, {settings['num_trials']} trials an arm on the validation periods, "
        f"{settings['num_resamples']} resamples of users. Rerun: `{command(document)}`."
    )
    for task, title in TASKS.items():
        if not document["effects"].get(task):
            continue
        slices = list(document["effects"][task])
        yield ""
        yield f"### {title}: ROC-AUC, mean over seeds (deviation between seeds)"
        yield ""
        yield from _table(
            ["arm", *slices],
            [[arm["title"], *(_area(arm["metrics"][task].get(name)) for name in slices)] for arm in document["arms"]],
        )
        yield ""
        yield from _table(
            ["claim", "by", "arms", "difference (95%)", "adjusted p", "detectable", "verdict"],
            [
                [
                    row["claim"],
                    row["by"],
                    f"{row['arm']} - {row['baseline']}",
                    f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})",
                    f"{row['adjusted_p_value']:.3f}",
                    f"{row['detectable']:.4f}",
                    row["verdict"],
                ]
                for row in verdicts(document, task)
            ],
        )
    if experiment["axis"] is not None:
        yield ""
        yield from _table(
            ["arm", experiment["axis"], *(f"{TASKS[task]} ROC-AUC" for task in TASKS if document["effects"].get(task))],
            [
                [
                    arm["title"],
                    f"{position:.3g}",
                    *(_area(arm["metrics"][task]["all"]) for task in TASKS if document["effects"].get(task)),
                ]
                for position, arm in _points(document)
            ],
        )
    prediction = PretrainingMetrics.of(document)
    if prediction is not None:
        rows = zip(prediction.titles, prediction.values, prediction.areas, strict=True)
        yield ""
        yield from _table(
            ["arm", *prediction.names, "CTR ROC-AUC"],
            [
                *([title, *(f"{value:.4f}" for value in values), f"{area:.4f}"] for title, values, area in rows),
                ["rank correlation with CTR ROC-AUC", *(f"{value:+.2f}" for value in prediction.correlations), _NO_VALUE],
            ],
        )
    validated = [arm for arm in document["arms"] if arm.get("validation")]
    names = [name for name in _VALIDATION if validated and all(name in arm["validation"] for arm in validated)]
    if names:
        yield ""
        yield "On the validation periods, mean over seeds:"
        yield ""
        yield from _table(
            ["arm", *(_VALIDATION[name] for name in names)],
            [[arm["title"], *(f"{arm['validation'][name]:.4f}" for name in names)] for arm in validated],
        )
    chosen = ", ".join(f"{arm['name']} {arm['chosen']}" for arm in document["arms"] if arm.get("chosen"))
    yield ""
    yield f"Chosen on validation: {chosen}."


def _area(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return _NO_VALUE
    deviation = row["seed_deviation"]
    return f"{row['roc_auc']:.4f}" + (f" ({deviation:.4f})" if deviation is not None else "")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "| " + " | ".join(["---"] + ["---:"] * (len(header) - 1)) + " |"
    for row in rows:
        yield "| " + " | ".join(row) + " |"
