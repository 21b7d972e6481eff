"""What a person sees of a run: a live line on a terminal, plain log lines elsewhere. Everything goes to stderr."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.status import Status

if TYPE_CHECKING:
    from pipeline.workspace import Stage

logger = logging.getLogger(__name__)

#: Messages for people; standard output is for results.
stderr = Console(stderr=True)


class ConsoleWatcher:
    """Shows stages as they run."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._started = 0.0

    def started(self, name: str) -> None:
        """A stage begins."""
        self._started = time.perf_counter()
        if stderr.is_terminal:
            self._status = stderr.status(f"[bold]{name}[/bold]")
            self._status.start()
        else:
            logger.info("%s: started", name)

    def progressed(self, name: str, message: str) -> None:
        """A stage says how far it is."""
        if self._status is not None:
            self._status.update(f"[bold]{name}[/bold]  {message}  [dim]{time.perf_counter() - self._started:.0f} s[/dim]")
        else:
            logger.info("%s: %s", name, message)

    def finished(self, stage: Stage) -> None:
        """A stage is done, or was found done."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        how = "unchanged, reused" if stage.reused else f"{stage.seconds:.1f} s, {stage.peak_rss_bytes / 2**30:.1f} GiB"
        if stderr.is_terminal:
            mark = "[dim]=[/dim]" if stage.reused else "[green]✓[/green]"
            stderr.print(f"{mark} [bold]{stage.name:<22}[/bold] [dim]{how}[/dim]", highlight=False)
        else:
            logger.info("%s: %s", stage.name, how)

    def stop(self) -> None:
        """Clears the live line, for a run that ends early."""
        if self._status is not None:
            self._status.stop()
            self._status = None
