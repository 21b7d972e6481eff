"""A plot of latencies by quantile, its tail stretched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multifacet.serving.load import LoadResult

_TICKS = (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)


def plot_latency(result: LoadResult, path: Path, title: str) -> None:
    """Draw latency and service time over the quantile: each step to the right is a tenfold rarer request.

    Args:
        result: What a load showed.
        path: PNG file to write.
        title: What was measured.
    """
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    last = 1 - 1 / max(10, result.latency.count)
    for name, histogram in (
        ("latency, from when it was due", result.latency),
        ("service time, from when it was sent", result.service),
    ):
        points = [(min(quantile, last), latency_us / 1e3) for quantile, latency_us in histogram.curve()]
        axes.plot([1 / (1 - quantile) for quantile, _ in points], [latency_ms for _, latency_ms in points], label=name)
    ticks = [tick for tick in _TICKS if tick <= last]
    axes.set_xscale("log")
    axes.set_xticks([1 / (1 - tick) for tick in ticks], [f"{tick:.5%}".rstrip("0%").rstrip(".") + " %" for tick in ticks])
    axes.minorticks_off()
    axes.set_yscale("log")
    axes.set_xlabel("share of the requests that were at least as fast")
    axes.set_ylabel("ms")
    axes.set_title(title)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
