"""A run as event files that TensorBoard shows."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

from multifacet.pipeline.tracking.tracker import Tracker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["TensorBoardTracker"]

_MISSING: Final = "--track tensorboard: needs TensorBoard: pip install 'multifacet[track]', or pip install tensorboard"


class TensorBoardTracker(Tracker):
    """A folder of events; a child is a folder in it. Parameters and references are texts."""

    def __init__(self, folder: Path, writer_class: Any) -> None:
        self._folder = folder
        self._writer_class = writer_class
        self._writer = writer_class(str(folder))

    @classmethod
    def begin(cls, folder: Path, name: str) -> TensorBoardTracker:
        """Begin a run below a folder.

        Raises:
            ImportError: if TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ImportError(_MISSING) from error
        return cls(_free(folder / _plain(name)), SummaryWriter)

    @override
    def child(self, name: str) -> TensorBoardTracker:
        return TensorBoardTracker(_free(self._folder / _plain(name)), self._writer_class)

    @override
    def parameters(self, values: Mapping[str, str]) -> None:
        if values:
            lines = [f"| {key} | {value} |".replace("\n", " ") for key, value in values.items()]
            self._writer.add_text("parameters", "\n".join(["| | |", "| --- | --- |", *lines]))

    @override
    def figures(self, values: Mapping[str, float], step: int | None = None) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key if step is not None else f"result/{key}", value, step or 0, time.time())
        self._writer.flush()

    @override
    def reference(self, name: str, value: str) -> None:
        self._writer.add_text(f"reference/{name}", value)

    @override
    def end(self, *, failed: bool) -> None:
        self._writer.add_text("status", "failed" if failed else "finished")
        self._writer.close()


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _free(folder: Path) -> Path:
    """A folder that no run of before has."""
    number = 2
    free = folder
    while free.exists():
        free = folder.with_name(f"{folder.name}.{number}")
        number += 1
    return free
