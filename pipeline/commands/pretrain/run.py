"""A pretraining as the command runs it: it trains, writes the snapshot, and says what came of it."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from multifacet.pipeline.alignment import write_aligned
from multifacet.pipeline.commands.pretrain.searching import Chooser, tell_search
from multifacet.pipeline.options import checkpoint_beside
from multifacet.pipeline.processes import join_processes
from multifacet.pipeline.terminal.console import stderr
from multifacet.pipeline.terminal.output import emit_json, stdout
from multifacet.pipeline.tracking.run import track_made

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from multifacet import contrastive, kge
    from multifacet.graphdb import GraphView
    from multifacet.tables import Snapshot
    from multifacet.training import SearchReport

__all__ = ["Learning", "PretrainRun", "open_view"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """What is trained on a source: the calls of a room, and how its steps are counted.

    Attributes:
        train: Trains with a configuration, a progress and a lifecycle.
        search: Searches a configuration; None where none may be.
        unit: What an epoch counts, e.g. "edges".
        source: What the snapshot is written of.
    """

    train: Callable[..., Any]
    search: Callable[..., Any] | None
    unit: str
    source: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainRun:
    """How a training begins, is saved and is told.

    Attributes:
        output: The snapshot to write.
        life: Fields of `training.Lifecycle`.
        align_to: Older snapshot whose basis the tables take; None for their own.
        chooser: What chooses the configuration; None to take it as it is.
        as_json: Whether the outcome is told as JSON.
    """

    output: Path
    life: dict[str, Any]
    align_to: Path | None
    chooser: Chooser | None
    as_json: bool

    @classmethod
    def read(
        cls,
        output: Path,
        checkpoint: Path | None,
        every_seconds: float,
        warm_start: Path | None,
        pull: float,
        keep_state: float,
        new_rows: str,
        *,
        resume: bool,
        align_to: Path | None,
        chooser: Chooser | None,
        as_json: bool,
    ) -> PretrainRun:
        """Reads the command's options.

        Raises:
            typer.BadParameter: The output exists, or options do not go together.
        """
        from multifacet.training import WarmStart

        if output.exists():
            msg = f"{output} exists; name a folder that does not"
            raise typer.BadParameter(msg)
        if warm_start is None and (pull, keep_state, new_rows) != (0.0, 1.0, "random"):
            msg = "--pull, --keep-state and --new-rows say how to start from an older snapshot; name it with --warm-start"
            raise typer.BadParameter(msg)
        life = {
            "checkpoint": checkpoint or checkpoint_beside(output),
            "every_seconds": every_seconds,
            "resume": resume,
            "warm_start": warm_start and WarmStart.load(warm_start, pull=pull, keep_state=keep_state, new_rows=new_rows),
        }
        return cls(output=output, life=life, align_to=align_to, chooser=chooser, as_json=as_json)

    def pretrain(
        self,
        config: kge.KgeConfig | contrastive.ContrastiveConfig,
        opened: AbstractContextManager[Learning],
    ) -> None:
        """Trains, and writes the snapshot; the first process of a group alone writes and speaks.

        Args:
            config: What is trained, or what a search starts from.
            opened: What it is trained on, open until the snapshot is written.
        """
        from multifacet.pipeline.terminal.training import StopOnSignal, TrainingDisplay
        from multifacet.training import Lifecycle

        report: SearchReport | None = None
        with opened as learning, join_processes() as speaks:
            with TrainingDisplay(learning.unit, shown=speaks) as display, StopOnSignal() as stop:
                lifecycle = Lifecycle(**self.life, on_step=display.on_step, stop=stop.event)
                if self.chooser is not None:
                    assert learning.search is not None  # noqa: S101 - a chooser is given only where there is a search
                    found = self.chooser(partial(learning.search, config), lifecycle, self._trials)
                    config, report = found.config, found.report
                result = learning.train(config, progress=display.on_epoch, lifecycle=lifecycle)
            if not speaks:
                return
            with stderr.status("writing the snapshot"):
                snapshot = write_aligned(
                    self.output, self.align_to, lambda path: result.write_snapshot(path, learning.source, search=report)
                )
        # The snapshot stands for good: nothing is gone on from any more.
        for folder in (self.life["checkpoint"], self._trials):
            shutil.rmtree(folder, ignore_errors=True)
        self._tell(snapshot, report)

    @property
    def _trials(self) -> Path:
        checkpoint: Path = self.life["checkpoint"]
        return checkpoint.with_name(f"{checkpoint.name}.search")

    def _tell(self, snapshot: Snapshot, report: SearchReport | None) -> None:
        track_made(self.output, snapshot.metrics)
        if self.as_json:
            emit_json({"snapshot": str(self.output), "fingerprint": snapshot.fingerprint, "metrics": dict(snapshot.metrics)})
            return
        stdout.print(snapshot)
        if report is not None:
            tell_search(report)
        if "drift" in snapshot.metrics:
            from multifacet.pipeline.commands.snapshot import emit_drift

            emit_drift(snapshot.metrics["drift"])


@contextmanager
def open_view(store: Path, window: dict[str, Any], learn: Callable[[GraphView], Learning]) -> Iterator[Learning]:
    """Opens a store for reading, as long as its window is trained on.

    Args:
        store: The store.
        window: Arguments of `GraphStore.view`.
        learn: Says what is trained on the window.
    """
    from multifacet.graphdb import GraphStore

    with GraphStore.open(store, read_only=True) as graph:
        yield learn(graph.view(**window))
