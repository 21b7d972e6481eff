"""What a person sees of a run: a live line on a terminal, plain log lines elsewhere. Everything goes to stderr."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.status import Status

from multifacet.pipeline.tracking.run import track_message, track_stage

if TYPE_CHECKING:
    from multifacet.pipeline.runs.workspace import Stage

logger = logging.getLogger(__name__)

#: Messages for people; standard output is for results.
stderr = Console(stderr=True)


class ConsoleWatcher:
    """Shows stages as they run, one or several at a time."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._started: dict[str, float] = {}
        self._messages: dict[str, str] = {}

    def started(self, name: str) -> None:
        """A stage begins."""
        self._started[name] = time.perf_counter()
        self._messages[name] = ""
        if stderr.is_terminal:
            self._refresh()
        else:
            logger.info("%s: started", name)

    def progressed(self, name: str, message: str) -> None:
        """A stage says how far it is."""
        self._messages[name] = message
        track_message(name, message)
        if stderr.is_terminal:
            self._refresh()
        else:
            logger.info("%s: %s", name, message)

    def finished(self, stage: Stage) -> None:
        """A stage is done, or was found done."""
        self._messages.pop(stage.name, None)
        track_stage(stage)
        how = "unchanged, reused" if stage.reused else f"{stage.seconds:.1f} s, {stage.peak_rss_bytes / 2**30:.1f} GiB"
        if stderr.is_terminal:
            mark = "[dim]=[/dim]" if stage.reused else "[green]✓[/green]"
            stderr.print(f"{mark} [bold]{stage.name:<22}[/bold] [dim]{how}[/dim]", highlight=False)
            self._refresh()
        else:
            logger.info("%s: %s", stage.name, how)

    def stop(self) -> None:
        """Clears the live lines, for a run that ends early."""
        self._messages.clear()
        self._refresh()

    def _refresh(self) -> None:
        if not self._messages:
            if self._status is not None:
                self._status.stop()
                self._status = None
            return
        now = time.perf_counter()
        text = "\n  ".join(
            f"[bold]{name}[/bold] [dim]{now - self._started[name]:.0f} s[/dim]  {message}"
            for name, message in self._messages.items()
        )
        if self._status is None:
            self._status = stderr.status(text)
            self._status.start()
        else:
            self._status.update(text)
