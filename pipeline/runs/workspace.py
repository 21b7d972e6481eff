"""A folder of finished stages: each is made once, whole or not at all, and used again while its inputs stay the same."""

from __future__ import annotations

import ctypes
import dataclasses
import fcntl
import functools
import hashlib
import importlib.util
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numba
import torch

from multifacet.artifacts import Artifact, ArtifactError, ArtifactWriter, remove_stale_temporaries
from multifacet.kernels.memory import keep_freed_memory
from multifacet.pipeline.runs.meter import Meter

logger = logging.getLogger(__name__)

_GROUND = ("artifacts", "inputs", "kernels")

_KIND = "stage"
_PR_SET_PDEATHSIG = 1


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
        cpu_seconds: CPU time when it was made; 0 where it was not measured.
    """

    name: str
    key: str
    path: Path
    result: dict[str, Any]
    seconds: float
    peak_rss_bytes: int
    reused: bool
    cpu_seconds: float = 0.0


#: Told of progress in words.
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Task:
    """A stage to be made.

    Attributes:
        name: The stage's name.
        run: Writes its files into the folder that it is given, says how far it is, and returns its result as JSON-able
            fields. Stages that are made together run in processes of their own, so it must be picklable: a function of a
            module, or a partial of one.
        config: All that changes the outcome, as JSON-able fields.
        rooms: Packages whose source the outcome depends on, beside the ground that all rooms stand on.
        parents: Stages that this one reads.
    """

    name: str
    run: Callable[[Path, Say], dict[str, Any]]
    config: dict[str, Any]
    rooms: Sequence[str]
    parents: Sequence[Stage] = ()

    def inputs(self) -> dict[str, Any]:
        """All that determines the outcome."""
        return {
            "name": self.name,
            "config": self.config,
            "parents": [parent.key for parent in self.parents],
            "code": {room: code_fingerprint(room) for room in (*self.rooms, *_GROUND)},
        }


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
        keep_outdated: Whether a stage stays beside the one that is made in its place, such as one that others were made from.
    """

    def __init__(self, root: Path, watcher: Watcher, *, keep_outdated: bool = False) -> None:
        self.root = root
        self.watcher = watcher
        self.keep_outdated = keep_outdated
        self.stages: list[Stage] = []
        self._workers: _Workers | None = None

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
            try:
                yield
            except BaseException:
                if self._workers is not None:
                    self._workers.kill()
                raise
            finally:
                if self._workers is not None:
                    self._workers.close()
                    self._workers = None

    def find(self, task: Task) -> Stage | None:
        """Gives a finished stage, or None; nothing is made."""
        path = self._path(task)
        return self.open_stage(path) if path.exists() else None

    @staticmethod
    def open_stage(path: Path) -> Stage:
        """Opens a finished stage by its folder; its files' sizes are compared, their contents are not.

        Raises:
            ArtifactError: There is none, or it is damaged.
        """
        return _open(path, reused=True, verify=False)

    @staticmethod
    def changes_since(path: Path, task: Task) -> list[str]:
        """Says what determines a task otherwise than it determined a finished stage; empty if nothing does.

        Raises:
            ArtifactError: There is no stage.
        """
        before, now = Artifact.open(path, kind=_KIND, verify=False).manifest["inputs"], task.inputs()
        changed = [f"the code of {room}" for room in now["code"] if now["code"][room] != before["code"].get(room)]
        changed += [f"its {field}" for field in now["config"] if now["config"][field] != before["config"].get(field)]
        if now["parents"] != before["parents"]:
            changed.append("what it reads")
        return changed

    def make(self, task: Task) -> Stage:
        """Makes a stage here and now, or finds it done."""
        stage = self._find(task)
        if stage is None:
            self.watcher.started(task.name)
            _make(task, self._path(task), partial(self.watcher.progressed, task.name))
            stage = self._made(task)
        return self._finish(stage)

    def make_together(self, tasks: Sequence[Task]) -> list[Stage]:
        """Makes several stages at once, each on one thread of a process of its own, or finds them done.

        Small tables do not keep several threads of one process busy; processes do not wait for each other.

        Raises:
            Exception: What the first failing stage raised; the others end first.
        """
        found = {task.name: self._find(task) for task in tasks}
        missing = [task for task in tasks if found[task.name] is None]
        if len(missing) == 1:
            return [self.make(task) for task in tasks]
        stages = [self._finish(stage) for stage in found.values() if stage is not None]
        if missing:
            stages += self._make_in_processes(missing)
        by_name = {stage.name: stage for stage in stages}
        return [by_name[task.name] for task in tasks]

    def _make_in_processes(self, tasks: Sequence[Task]) -> list[Stage]:
        if self._workers is None:
            self.watcher.started(tasks[0].name)
            self.watcher.progressed(tasks[0].name, "its process starts, and imports torch")
            self._workers = _Workers(self.watcher)
        paths = {task: self._path(task) for task in tasks}
        return [self._finish(self._made(task)) for task in self._workers.run(paths)]

    def _path(self, task: Task) -> Path:
        return self.root / f"{task.name}-{content_key(task.inputs())[:12]}"

    def _find(self, task: Task) -> Stage | None:
        path = self._path(task)
        if not path.exists():
            return None
        try:
            return _open(path, reused=True)
        except ArtifactError as error:
            logger.warning("%s is damaged and is made again: %s", path, error)
            return None

    def _made(self, task: Task) -> Stage:
        path = self._path(task)
        if not self.keep_outdated:
            self._remove_outdated(task.name, path)
        return _open(path, reused=False)

    def _finish(self, stage: Stage) -> Stage:
        self.stages.append(stage)
        self.watcher.finished(stage)
        return stage

    def _remove_outdated(self, name: str, current: Path) -> None:
        for path in self.root.glob(f"{name}-????????????"):
            if path != current and path.is_dir():
                shutil.rmtree(path)


def _make(task: Task, path: Path, say: Say) -> None:
    inputs = task.inputs()
    with ArtifactWriter(path, kind=_KIND, replace=True) as writer:
        with Meter() as meter:
            result = task.run(writer.directory, say)
        writer.manifest.update(inputs=inputs, key=content_key(inputs), result=result)
        writer.manifest.update(seconds=meter.seconds, cpu_seconds=meter.cpu_seconds, peak_rss_bytes=meter.peak_rss_bytes)


class _Workers:
    """One process a core, kept for the whole run: starting one costs seconds of imports."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        num_workers = len(os.sched_getaffinity(0))
        context = multiprocessing.get_context("spawn")  # a forked child would inherit torch's locked thread pools
        self._messages: Any = context.SimpleQueue()
        self._pool = ProcessPoolExecutor(
            num_workers, context, initializer=_prepare_worker, initargs=(self._messages, os.getpid())
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def run(self, paths: Mapping[Task, Path]) -> Iterator[Task]:
        """Makes the tasks and yields each as it is done."""
        futures = {self._pool.submit(_make_in_worker, task, path): task for task, path in paths.items()}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def kill(self) -> None:
        """Ends the processes at once; what they were making never appears."""
        for process in multiprocessing.active_children():
            process.kill()

    def close(self) -> None:
        """Ends the processes, after what they are making."""
        self._pool.shutdown(cancel_futures=True)
        self._messages.put(None)
        self._listener.join()

    def _listen(self) -> None:
        while (message := self._messages.get()) is not None:
            name, text = message
            if text is None:
                self._watcher.started(name)
            else:
                self._watcher.progressed(name, text)


_worker_messages: Any = None


def _prepare_worker(messages: Any, parent_pid: int) -> None:
    global _worker_messages  # noqa: PLW0603 - a pool hands its workers nothing but globals
    _worker_messages = messages
    # Ctrl-C is the parent's to handle. A worker must not outlive the run that holds the folder's lock, however that ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
    keep_freed_memory()
    torch.set_num_threads(1)
    numba.set_num_threads(1)


def _make_in_worker(task: Task, path: Path) -> None:
    _worker_messages.put((task.name, None))
    _make(task, path, lambda text: _worker_messages.put((task.name, text)))


def _open(path: Path, *, reused: bool, verify: bool = True) -> Stage:
    manifest = Artifact.open(path, kind=_KIND, verify=verify).manifest
    return Stage(
        name=manifest["inputs"]["name"],
        key=manifest["key"],
        path=path,
        result=manifest["result"],
        seconds=manifest["seconds"],
        peak_rss_bytes=manifest["peak_rss_bytes"],
        reused=reused,
        cpu_seconds=manifest.get("cpu_seconds", 0.0),
    )


def content_key(inputs: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of JSON-able fields, whatever their order."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


@functools.cache
def code_fingerprint(room: str) -> str:
    """SHA-256 (hex) of the Python source of a package, so that a change of code makes its stages anew."""
    spec = importlib.util.find_spec(f"multifacet.{room}")
    if spec is None or not spec.submodule_search_locations:
        msg = f"{room!r} is not a package"
        raise WorkspaceError(msg)
    digest = hashlib.sha256()
    folder = Path(next(iter(spec.submodule_search_locations)))
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
