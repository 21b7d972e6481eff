"""A training's history on disk: metrics.jsonl, and TensorBoard where it is installed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from logging import getLogger
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

logger = getLogger(__name__)

FILE: Final = "metrics.jsonl"


class RunLog:
    """Writes each validation's row as it comes.

    ``metrics.jsonl`` has one JSON object a line, flushed at once, so that a killed run's rows are there; a resumed run
    first drops what the run before had written beyond its checkpoint. With the package tensorboard, the same numbers are
    scalars by step in the same folder.

    Args:
        folder: Where to write; made if it is not there.
        num_rows: Rows of the file that stay, the first ones; what comes after them is dropped.
    """

    def __init__(self, folder: Path, *, num_rows: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        kept = path.read_text(encoding="utf-8").splitlines()[:num_rows] if path.exists() else []
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._num_rows = num_rows
        self._board: Any = None
        if find_spec("tensorboard") is None:
            logger.info("tensorboard is not installed; the metrics are in %s only", path)
        else:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional

            self._board = SummaryWriter(str(folder), purge_step=num_rows)

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row."""
        self._file.write(json.dumps(dict(row)) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name, value, self._num_rows)
        self._num_rows += 1

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()
