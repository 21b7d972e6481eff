"""A folder of finished stages: each is made once, whole or not at all, and used again while its inputs stay the same."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import importlib.util
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pipeline.meter import Meter
from tables import Artifact, ArtifactError, ArtifactWriter, remove_stale_temporaries

logger = logging.getLogger(__name__)

_KIND = "stage"


class WorkspaceError(RuntimeError):
    """A workspace cannot be used; the message says why and what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A finished stage.

    Attributes:
        name: The stage's name.
        key: Hash of the code, the configuration and the parents that made it.
        path: Its folder.
        result: What its function returned.
        seconds: Wall time when it was made.
        peak_rss_bytes: Peak memory when it was made.
        reused: Whether it was there already.
    """

    name: str
    key: str
    path: Path
    result: dict[str, Any]
    seconds: float
    peak_rss_bytes: int
    reused: bool


class Watcher(Protocol):
    """What is told of a run's progress."""

    def started(self, name: str) -> None:
        """A stage begins."""

    def progressed(self, name: str, message: str) -> None:
        """A stage says how far it is."""

    def finished(self, stage: Stage) -> None:
        """A stage is done, or was found done."""


class Workspace:
    """The stages under one folder.

    A stage's folder is named after the hash of all that determines it: its configuration, its parents, and the source of the
    rooms that it runs. It is written beside its place and renamed, so that an interrupted run leaves nothing half-made.

    Args:
        root: The folder; it is created.
        watcher: Told of what starts, progresses and ends.
    """

    def __init__(self, root: Path, watcher: Watcher) -> None:
        self.root = root
        self.watcher = watcher
        self.stages: list[Stage] = []

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the folder.

        Raises:
            WorkspaceError: Another run is using it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                msg = f"another run is using {self.root}; wait for it, or choose another --work-dir"
                raise WorkspaceError(msg) from error
            remove_stale_temporaries(self.root)
            yield

    def stage(
        self,
        name: str,
        run: Callable[[Path], dict[str, Any]],
        *,
        config: dict[str, Any],
        rooms: Sequence[str],
        parents: Sequence[Stage] = (),
    ) -> Stage:
        """Runs a stage, or finds it done.

        Args:
            name: The stage's name.
            run: Writes its files into the folder that it is given and returns its result as JSON-able fields.
            config: All that changes the outcome, as JSON-able fields.
            rooms: Packages whose source the outcome depends on.
            parents: Stages that this one reads.
        """
        inputs = {
            "name": name,
            "config": config,
            "parents": [parent.key for parent in parents],
            "code": {room: code_fingerprint(room) for room in rooms},
        }
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        path = self.root / f"{name}-{key[:12]}"
        stage = self._find(name, key, path)
        if stage is None:
            self.watcher.started(name)
            with ArtifactWriter(path, kind=_KIND, replace=True) as writer:
                with Meter() as meter:
                    result = run(writer.directory)
                writer.manifest.update(inputs=inputs, key=key, result=result)
                writer.manifest.update(seconds=meter.seconds, peak_rss_bytes=meter.peak_rss_bytes)
            stage = Stage(
                name=name,
                key=key,
                path=path,
                result=result,
                seconds=meter.seconds,
                peak_rss_bytes=meter.peak_rss_bytes,
                reused=False,
            )
            self._remove_outdated(name, path)
        self.stages.append(stage)
        self.watcher.finished(stage)
        return stage

    def _find(self, name: str, key: str, path: Path) -> Stage | None:
        if not path.exists():
            return None
        try:
            manifest = Artifact.open(path, kind=_KIND).manifest
        except ArtifactError as error:
            logger.warning("%s is damaged and is made again: %s", path, error)
            return None
        return Stage(
            name=name,
            key=key,
            path=path,
            result=manifest["result"],
            seconds=manifest["seconds"],
            peak_rss_bytes=manifest["peak_rss_bytes"],
            reused=True,
        )

    def _remove_outdated(self, name: str, current: Path) -> None:
        for path in self.root.glob(f"{name}-????????????"):
            if path != current and path.is_dir():
                shutil.rmtree(path)


@functools.cache
def code_fingerprint(room: str) -> str:
    """SHA-256 (hex) of the Python source of a package, so that a change of code makes its stages anew."""
    spec = importlib.util.find_spec(room)
    if spec is None or not spec.submodule_search_locations:
        msg = f"{room!r} is not a package"
        raise WorkspaceError(msg)
    digest = hashlib.sha256()
    folder = Path(next(iter(spec.submodule_search_locations)))
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
