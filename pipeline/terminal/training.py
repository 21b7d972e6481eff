"""How far a training is: a bar with rate and time left on a terminal, plain lines elsewhere. Everything goes to stderr."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from multifacet.pipeline.terminal.console import stderr
from multifacet.pipeline.tracking.run import track_epoch

if TYPE_CHECKING:
    from multifacet.training import StepProgress

_LINE_EVERY_S = 30.0


class TrainingDisplay:
    """Shows a training's steps and epochs for the length of a `with` block.

    Args:
        unit: what an example is, e.g. "edges".
        shown: whether anything is; of several processes that train together, one shows it.
    """

    def __init__(self, unit: str, *, shown: bool = True) -> None:
        self._unit = unit
        self._shown = shown
        self._line_at = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]left[/dim]"),
            TimeRemainingColumn(),
            console=stderr,
            transient=True,
            disable=not (shown and stderr.is_terminal),
        )
        self._task = self._bar.add_task("pretraining", total=None, rate="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._bar.stop()

    def on_step(self, progress: StepProgress) -> None:
        """A step is done."""
        if not self._shown:
            return
        done, total = progress.epoch * progress.num_steps + progress.step, progress.num_epochs * progress.num_steps
        rate = f"{progress.examples / max(progress.seconds, 1e-9):,.0f} {self._unit}/s"
        title = f"epoch {progress.epoch + 1} of {progress.num_epochs}"
        if stderr.is_terminal:
            self._bar.update(self._task, description=title, completed=done, total=total, rate=rate)
        elif time.monotonic() - self._line_at >= _LINE_EVERY_S:
            self._line_at = time.monotonic()
            seconds_left = progress.seconds / max(progress.step, 1) * (total - done)
            stderr.print(
                f"{title}, {done / total:.0%} of all steps, {rate}, {seconds_left:,.0f} s left", highlight=False, soft_wrap=True
            )

    def on_epoch(self, row: Mapping[str, float]) -> None:
        """An epoch is done."""
        if not self._shown:
            return
        self._line_at = time.monotonic()
        track_epoch(row)
        stderr.print(", ".join(f"{name} {value:,.4g}" for name, value in row.items()), highlight=False, soft_wrap=True)


class StopOnSignal:
    """Turns the first SIGINT or SIGTERM of a `with` block into a set event, so that work ends where it may; the second ends it.

    Attributes:
        event: is set once a signal came.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.event.is_set():
            raise KeyboardInterrupt
        self.event.set()
        stderr.print(f"{signal.Signals(number).name}: finishing the step and writing a checkpoint; once more to stop at once")
