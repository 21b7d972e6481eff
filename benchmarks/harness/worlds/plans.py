"""How the library writes its files: recorded once from the real writers, and done again on the disks of worlds."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.worlds.disk import Disk
from benchmarks.harness.worlds.engine import Engine
from benchmarks.harness.worlds.network import Host
from benchmarks.harness.worlds.recording import FileStep, recorded
from multifacet.artifacts import ArtifactWriter
from multifacet.serving.core.document import State
from multifacet.serving.core.holdings_events import Document
from multifacet.serving.core.limits import Limits
from multifacet.serving.rollout.journal import Journal
from multifacet.serving.server.state_file import StateFile

_STEP_S = 0.0004
_PLAN = State(
    number=1,
    old_version="a",
    old_path=Path("/a"),
    new_version="b",
    new_path=Path("/b"),
    rankers=("r",),
    lookups=("l",),
    limits=Limits(),
)


@functools.cache
def plan(what: str) -> tuple[FileStep, ...]:
    """The steps of writing a ``state`` file, a ``journal``, or a ``release``, or of a release in another's ``place``."""
    writers: dict[str, Callable[[Path], None]] = {
        "state": lambda root: StateFile(root / "file").write(Document()),
        "journal": lambda root: Journal(root).write(_PLAN, "planned"),
        "release": lambda root: _write_release(root, replace=False),
        "place": lambda root: _write_release(root, replace=True),
    }
    with tempfile.TemporaryDirectory(prefix="multifacet-plan-") as name:
        root = Path(name).resolve()
        if what == "place":
            _write_release(root, replace=False)
        with recorded(root) as steps:
            writers[what](root)
    return tuple(steps)


def _write_release(root: Path, *, replace: bool) -> None:
    with ArtifactWriter(root / "file", kind="release", replace=replace) as writer:
        (writer.directory / "rows").write_text("rows")
        (writer.directory / "upper").write_text("upper")


class Writing:
    """Writes files of a world step by step, so that its power may go between any two.

    Args:
        engine: The world's time.
        host: Whose process writes; it stops when that ends.
        disk: Where.
        steps: What to do.
        place: Where the file or the folder is to be.
        contents: What is written, by the file's name; one that is not named has no content that anybody reads.
        then: Gets why it failed; empty if it did not.
    """

    def __init__(
        self,
        engine: Engine,
        host: Host,
        disk: Disk,
        steps: tuple[FileStep, ...],
        place: str,
        contents: Mapping[str, Any],
        then: Callable[[str], None],
    ):
        self._engine = engine
        self._host = host
        self._epoch = host.epoch
        self._disk = disk
        self._steps = steps
        self._place = place
        self._contents = contents
        self._then = then
        self._number = 0
        self._temporary = f"{place}.{engine.num_events}"
        self._go_on()

    def _go_on(self) -> None:
        if not self._host.is_up or self._host.epoch != self._epoch:
            return
        if self._number == len(self._steps):
            self._then("")
            return
        try:
            self._do(self._steps[self._number])
        except OSError as error:
            self._disk.remove(self._temporary)
            self._then(str(error))
            return
        self._number += 1
        self._engine.after(_STEP_S, self._go_on)

    def _do(self, step: FileStep) -> None:
        path, disk = self._path(step.path), self._disk
        match step.kind:
            case "write":
                disk.write(path, self._contents.get(step.path.rpartition("/")[2], self._contents.get("")))
            case "sync_file":
                disk.sync_file(path)
            case "sync_folder":
                disk.sync_folder(path)
            case "rename":
                disk.rename(path, self._path(step.target))
            case "exchange":
                disk.exchange(path, self._path(step.target))
            case "remove":
                disk.remove(path)

    def _path(self, recorded_path: str) -> str:
        """Where a path of the recording is on the disk: a hidden name beside the place is this writing's own."""
        folder, _, below = recorded_path.partition("/")
        if not folder:
            return self._place.rpartition("/")[0]
        if folder.startswith("."):
            base = self._temporary
        elif folder in {"file", "rollout.json"}:
            base = self._place
        else:
            base = f"{self._place.rpartition('/')[0]}/{folder}"
        return f"{base}/{below}" if below else base
