"""Every write of serving, stopped after each step, with what was not synced lost, torn or reordered: whole or absent.

The real writers are recorded (`benchmarks.harness.worlds.recording`), the recording is done again on a disk that forgets, and
what is left on it after the power came back is put into a real folder and read by the real readers.
"""

from __future__ import annotations

import functools
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.harness.witness import write_witness, write_witness_delta
from benchmarks.harness.worlds.disk import Disk, tear_bytes
from benchmarks.harness.worlds.recording import recorded
from multifacet.artifacts import ArtifactError, files
from multifacet.serving import Release
from multifacet.serving.core.document import State
from multifacet.serving.core.holdings_events import Document, Entry
from multifacet.serving.core.limits import Limits
from multifacet.serving.rollout.journal import Journal
from multifacet.serving.server.state_file import StateFile

EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
PLAN = State(
    number=1,
    old_version="a",
    old_path=Path("/a"),
    new_version="b",
    new_path=Path("/b"),
    rankers=("r",),
    lookups=("l",),
    limits=Limits(),
)
OLD = Document((Entry("a", "/a"),), "a")
NEW = Document((Entry("a", "/a"), Entry("b", "/b")), "b")


@dataclass(frozen=True)
class Write:
    """A write, and how what is there after a power cut is read.

    Attributes:
        before: Prepares the folder, which is safe then.
        write: Writes.
        read: Gives what is there; fails if it is there in part.
    """

    before: Callable[[Path], None]
    write: Callable[[Path], None]
    read: Callable[[Path], object]


def _nothing(_root):
    """Before a first write."""


def _release(number):
    return lambda root: write_witness(root / "release", number)


def _version(root):
    return Release.open(root / "release").version if (root / "release").exists() else None


WRITES = {
    "state file": Write(
        lambda root: StateFile(root / "state.json").write(OLD),
        lambda root: StateFile(root / "state.json").write(NEW),
        lambda root: StateFile(root / "state.json").read(),
    ),
    "first state file": Write(
        _nothing,
        lambda root: StateFile(root / "state.json").write(NEW),
        lambda root: StateFile(root / "state.json").read(),
    ),
    "journal": Write(
        lambda root: Journal(root / "rollout").write(PLAN, "planned"),
        lambda root: Journal(root / "rollout").write(PLAN.model_copy(update={"doing": "ranker_loaded"}), "begins"),
        lambda root: Journal(root / "rollout").read(),
    ),
    "release": Write(_nothing, _release(1), _version),
    "release in another's place": Write(
        _release(1),
        lambda root: write_witness(root / "release", 2, replace=True),
        lambda root: Release.open(root / "release").version,
    ),
    "delta": Write(
        _release(1),
        lambda root: write_witness_delta(root / "delta", 2, root / "release"),
        lambda root: Release.open(root / "delta").version if (root / "delta").exists() else None,
    ),
}


@dataclass(frozen=True)
class Recording:
    """A write, done: every state of a disk on its way, and what a reader finds before it and after.

    Attributes:
        disks: After each step.
        before: What was there.
        after: What is there once the writer has returned.
    """

    disks: tuple[Disk, ...]
    before: object
    after: object


@functools.cache
def recording(name: str) -> Recording:
    write = WRITES[name]
    with tempfile.TemporaryDirectory(prefix="multifacet-write-") as folder:
        root = Path(folder).resolve()
        write.before(root)
        before = write.read(root)
        disk = Disk(tear_bytes)
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            disk.write(path.relative_to(root).as_posix(), path.read_bytes())
        for path in list(disk.names):
            disk.sync_file(path)
            disk.sync_folder(path.rpartition("/")[0])
        with recorded(root) as steps:
            write.write(root)
        disks = [disk.copy()]
        for step in steps:
            match step.kind:
                case "write":
                    disk.write(step.path, step.content)
                case "sync_file":
                    disk.sync_file(step.path)
                case "sync_folder":
                    disk.sync_folder(step.path)
                case "rename" | "exchange" | "link":
                    getattr(disk, step.kind)(step.path, step.target)
                case "remove":
                    disk.remove(step.path)
            disks.append(disk.copy())
        return Recording(tuple(disks), before, write.read(root))


def left(disk: Disk, root: Path) -> None:
    """Put what is on a disk into a real folder."""
    for path, inode in disk.names.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        content = inode.content if isinstance(inode.content, bytes) else b""
        (root / path).write_bytes(content)


def read(name: str, disk: Disk) -> object:
    with tempfile.TemporaryDirectory(prefix="multifacet-left-") as folder:
        left(disk, Path(folder))
        return WRITES[name].read(Path(folder))


@pytest.mark.parametrize("name", WRITES)
def test_a_writer_that_is_killed_after_any_step_leaves_the_old_or_the_new(name):
    found = recording(name)
    seen = [read(name, disk.copy()) for disk in found.disks]
    assert set(map(repr, seen)) == {repr(found.before), repr(found.after)}
    assert seen.index(found.after) == len(seen) - 1 - seen[::-1].index(found.before) + 1  # once it is the new it stays so
    assert found.before != found.after


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITES)
@EXAMPLES
@given(place=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_a_power_cut_at_any_step_leaves_the_old_or_the_new_and_at_the_end_the_new(name, place, seed):
    found = recording(name)
    number = min(int(place * len(found.disks)), len(found.disks) - 1)
    disk = found.disks[number].copy()
    disk.cut_power(random.Random(seed))
    there = read(name, disk)
    assert there in (found.before, found.after)
    if number == len(found.disks) - 1:
        assert there == found.after


@pytest.mark.parametrize("name", WRITES)
def test_without_its_syncs_a_write_is_found_in_part(name, monkeypatch):
    """The check can fail: it does once nothing is synced."""
    for sync in ("sync_file", "sync_open"):
        monkeypatch.setattr(files, sync, lambda _: None)
    monkeypatch.setattr("multifacet.artifacts.artifact.sync_directory", lambda _: None)
    monkeypatch.setattr("multifacet.artifacts.artifact.sync_directories", lambda _: None)
    recording.cache_clear()
    try:
        found = recording(name)
        wrong = 0
        for seed in range(60):
            disk = found.disks[-1].copy()
            disk.cut_power(random.Random(seed))
            try:
                wrong += read(name, disk) != found.after
            except (ArtifactError, RuntimeError, OSError):
                wrong += 1
    finally:
        recording.cache_clear()
    assert wrong
