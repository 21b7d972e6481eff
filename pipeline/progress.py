"""Bars for long loads on a terminal, and a log line now and then elsewhere."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Final

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from multifacet.pipeline.console import stderr

logger = logging.getLogger(__name__)

_LOG_INTERVAL_S: Final = 10.0


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, float], None]]:
    """Yields what graphdb calls with the name of what it does and the share of its present step that is done.

    A load has several steps, each of which goes from 0 to 1; the bar shows the present one, and counts those before it.
    """
    if not stderr.is_terminal:
        yield _log_now_and_then()
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[step]}")
    with Progress(*columns, TimeElapsedColumn(), console=stderr, transient=True) as bars:
        tasks: dict[str, TaskID] = {}
        steps: dict[str, tuple[int, float]] = {}

        def show(name: str, share: float) -> None:
            if name not in tasks:
                for task in tasks.values():
                    bars.stop_task(task)
                    bars.update(task, visible=False)
                tasks[name] = bars.add_task(name, total=1.0, step="")
                steps[name] = 1, 0.0
            step, before = steps[name]
            steps[name] = step + (share < before), share
            bars.update(tasks[name], completed=share, step=f"step {steps[name][0]}" if steps[name][0] > 1 else "")

        yield show


def _log_now_and_then() -> Callable[[str, float], None]:
    started = last = time.monotonic()

    def log(name: str, share: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LOG_INTERVAL_S:
            last = now
            logger.info("%s: %.0f%% of the present step, %.0f s so far", name, 100 * share, now - started)

    return log
