"""The figures of a report, as SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, GRID = "#1f2933", "#66727f", "#e4e8ec"
COLORS = {"no_ids": "#8a949e", "scratch": "#c9872b", "pretrained": "#1f6f8b", "kge": "#1f6f8b", "contrastive": "#8c4a6b"}
_WIDTH_INCHES = 7.2


def loss_curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Training loss by epoch, a panel for each run.

    Args:
        histories: Run's name -> rows with epoch and loss.
    """
    figure = Figure(figsize=(_WIDTH_INCHES, 2.6), layout="constrained")
    for axes, (name, rows) in zip(_row(figure, len(histories)), histories.items(), strict=True):
        _style(axes, x="epoch", y="loss")
        epochs = [row["epoch"] for row in rows]
        axes.plot(epochs, [row["loss"] for row in rows], color=COLORS.get(name, INK), marker="o", markersize=3)
        axes.set_title(name.replace("_", " "), loc="left", fontsize=10, color=INK)
        axes.set_xticks(epochs if len(epochs) < 12 else epochs[:: len(epochs) // 8])
    return _svg(figure)


def intervals(metrics: Mapping[str, Mapping[str, Mapping[str, float]]], tasks: Mapping[str, str]) -> str:
    """ROC-AUC of each arm with its interval, a panel for each task.

    Args:
        metrics: Arm -> task -> roc_auc, roc_auc_low, roc_auc_high.
        tasks: Task -> its title; tasks that an arm lacks are left out.
    """
    figure = Figure(figsize=(_WIDTH_INCHES, 0.9 + 0.42 * len(metrics)), layout="constrained")
    for axes, (task, title) in zip(_row(figure, len(tasks)), tasks.items(), strict=True):
        _style(axes, x="ROC-AUC (95% interval over users)")
        arms = [arm for arm in metrics if task in metrics[arm]]
        for height, arm in enumerate(reversed(arms)):
            row = metrics[arm][task]
            color = COLORS.get(arm, INK)
            axes.plot([row["roc_auc_low"], row["roc_auc_high"]], [height, height], color=color, linewidth=2)
            axes.plot(row["roc_auc"], height, "o", color=color, markersize=6)
            axes.annotate(
                f"{row['roc_auc']:.4f}", (row["roc_auc"], height), (0, 6), textcoords="offset points", ha="center", fontsize=8
            )
        axes.set_yticks(range(len(arms)), [arm.replace("_", " ") for arm in reversed(arms)])
        axes.set_ylim(-0.5, len(arms) - 0.3)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
    return _svg(figure)


def precision_cost(quantization: Mapping[str, Mapping[str, Any]]) -> str:
    """What each precision changes in ROC-AUC, against the tables' bytes."""
    figure = Figure(figsize=(_WIDTH_INCHES, 2.6), layout="constrained")
    axes = figure.add_subplot()
    _style(axes, x="tables, MB (log scale)", y="CTR ROC-AUC against FP32")
    axes.set_xscale("log")
    ticks = [row["bytes"] / 1e6 for row in quantization.values()]
    changes = [row["ctr_roc_auc"] - quantization["fp32"]["ctr_roc_auc"] for row in quantization.values()]
    axes.plot(ticks, changes, color=GRID, zorder=1)
    axes.scatter(ticks, changes, color=COLORS["pretrained"], zorder=2)
    for precision, tick, change in zip(quantization, ticks, changes, strict=True):
        axes.annotate(
            f"{precision.upper()} {change:+.5f}", (tick, change), (0, 8), textcoords="offset points", fontsize=9, ha="center"
        )
    axes.margins(x=0.12, y=0.35)
    axes.set_xticks(ticks, [f"{tick:.1f}" for tick in ticks])
    axes.minorticks_off()
    return _svg(figure)


def latency_histogram(histogram: Mapping[str, Sequence[float]], percentiles: Mapping[str, float]) -> str:
    """Distribution of request latencies, with percentiles marked.

    Args:
        histogram: `edges` [n + 1] in milliseconds and `counts` [n].
        percentiles: Label -> milliseconds.
    """
    figure = Figure(figsize=(_WIDTH_INCHES, 2.6), layout="constrained")
    axes = figure.add_subplot()
    _style(axes, x="latency of a ranking request, ms", y="requests")
    axes.stairs(histogram["counts"], histogram["edges"], fill=True, color=COLORS["pretrained"], alpha=0.85)
    for label, value in percentiles.items():
        axes.axvline(value, color=INK, linewidth=1, linestyle="--")
        axes.annotate(f" {label} {value:.2f} ms", (value, 0.93), xycoords=("data", "axes fraction"), fontsize=9, color=INK)
    return _svg(figure)


def effects(panels: Mapping[str, Sequence[tuple[str, float, float, float]]]) -> str:
    """Differences with their intervals, a panel for each task, around a line at 0.

    Args:
        panels: Title -> (label, difference, low, high) of each comparison.
    """
    most = max((len(rows) for rows in panels.values()), default=1)
    figure = Figure(figsize=(_WIDTH_INCHES + 1.8, 0.9 + 0.34 * most), layout="constrained")
    for axes, (title, rows) in zip(_row(figure, len(panels)), panels.items(), strict=True):
        _style(axes, x="difference in ROC-AUC, 95% interval")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.axvline(0, color=MUTED, linewidth=1)
        for height, (_, difference, low, high) in enumerate(reversed(rows)):
            holds_zero = low <= 0 <= high
            color = MUTED if holds_zero else COLORS["pretrained"]
            axes.plot([low, high], [height, height], color=color, linewidth=2)
            axes.plot(difference, height, "o", color=color, markersize=5)
        axes.set_yticks(range(len(rows)), [label for label, *_ in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
    return _svg(figure)


def line(
    points: Sequence[tuple[float, float, float | None]], levels: Mapping[str, float], *, axis: str, y: str = "CTR ROC-AUC"
) -> str:
    """Arms along an axis, with the levels of arms that have no place on it.

    Args:
        points: (position, value, deviation or None), ascending.
        levels: Label -> value, drawn across.
        axis: What the positions mean.
        y: What the values are.
    """
    figure = Figure(figsize=(_WIDTH_INCHES, 2.8), layout="constrained")
    axes = figure.add_subplot()
    _style(axes, x=axis, y=y)
    positions = [position for position, *_ in points]
    deviations = [deviation or 0.0 for *_, deviation in points]
    axes.errorbar(
        positions,
        [value for _, value, _ in points],
        deviations,
        color=COLORS["pretrained"],
        marker="o",
        markersize=5,
        capsize=3,
    )
    for label, level in levels.items():
        axes.axhline(level, color=MUTED, linewidth=1, linestyle="--")
        axes.annotate(
            f" {label}", (positions[-1], level), (0, 4), textcoords="offset points", fontsize=8, color=MUTED, ha="right"
        )
    axes.set_xticks(positions, [f"{position:g}" for position in positions])
    return _svg(figure)


def _row(figure: Figure, count: int) -> Sequence[Axes]:
    return list(figure.subplots(1, count, squeeze=False)[0])


def _style(axes: Axes, *, x: str = "", y: str = "") -> None:
    axes.set_xlabel(x, color=MUTED, fontsize=9)
    axes.set_ylabel(y, color=MUTED, fontsize=9)
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
