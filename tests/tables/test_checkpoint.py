"""Checkpoints: whole or not at all, of one run only, and exact."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from multifacet.tables import (
    Artifact,
    ArtifactError,
    Checkpoint,
    CheckpointError,
    Lifecycle,
    Position,
    SavedState,
    Snapshot,
    TrainingRun,
)
from multifacet.tables.lanes import Lanes
from multifacet.tables.snapshot import SnapshotTable

IDENTITY = {"config": {"lr": 0.1, "layers": [1, 2]}, "window": "abc"}


def state(value: float, rows: int = 4) -> SavedState:
    return SavedState(tensors={"table": torch.full((rows, 3), value)}, fields={"epoch": int(value)})


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(5, 3), "half": torch.ones(2).half(), "empty": torch.zeros(0, dtype=torch.int32)}
    Checkpoint.write(tmp_path / "c", SavedState(tensors=tensors, fields={"big": 1 << 127, "x": 0.1}), identity=IDENTITY)
    loaded = Checkpoint.load(tmp_path / "c", identity=IDENTITY).state()
    assert loaded.fields == {"big": 1 << 127, "x": 0.1}
    assert {name: (value.dtype, value.tolist()) for name, value in loaded.tensors.items()} == {
        name: (value.dtype, value.tolist()) for name, value in tensors.items()
    }


def test_the_next_checkpoint_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        Checkpoint.write(tmp_path / "c", state(value), identity=IDENTITY)
    assert Checkpoint.load(tmp_path / "c").fields == {"epoch": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("identity", "difference"),
    [
        ({"config": {"lr": 0.2, "layers": [1, 2]}, "window": "abc"}, r"config\.lr: 0\.1 there, 0\.2 here"),
        ({"config": {"lr": 0.1, "layers": [1]}, "window": "abc"}, r"config\.layers: \[1, 2\] there, \[1\] here"),
        ({"config": {"lr": 0.1}, "window": "abc"}, r"config\.layers: \[1, 2\] there, nothing here"),
        ({"config": {"lr": 0.1, "layers": [1, 2]}, "window": "xyz"}, "window: abc there, xyz here"),
    ],
)
def test_another_run_is_refused_with_what_differs(tmp_path: Path, identity: dict[str, object], difference: str) -> None:
    Checkpoint.write(tmp_path / "c", state(1.0), identity=IDENTITY)
    with pytest.raises(CheckpointError, match=difference) as raised:
        Checkpoint.load(tmp_path / "c", identity=identity)
    assert str(raised.value).count(" there, ") == 1


def test_a_damaged_checkpoint_is_refused_by_its_file(tmp_path: Path) -> None:
    Checkpoint.write(tmp_path / "c", state(1.0), identity=IDENTITY)
    file = tmp_path / "c" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"state\.safetensors: sha256"):
        Checkpoint.load(tmp_path / "c")


def test_a_snapshot_is_not_overwritten_by_a_checkpoint(tmp_path: Path) -> None:
    Snapshot.write(tmp_path / "c", facet="kge", tables={"pin": SnapshotTable(ids=[1], vectors=torch.ones(1, 2))})
    with pytest.raises(ArtifactError, match="kind 'snapshot'; expected 'checkpoint'"):
        Checkpoint.write(tmp_path / "c", state(1.0), identity=IDENTITY)
    assert Artifact.open(tmp_path / "c").kind == "snapshot"


@pytest.fixture
def full_disk() -> Iterator[None]:
    """What the kernel does at the end of a disk: a write fails in the middle of a file, here with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # Python's own setting: the write fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


class CountingState:
    """A trainer that only counts its steps."""

    def __init__(self, rows: int = 4) -> None:
        self.rows = rows
        self.position = Position(generator=np.random.default_rng(0))

    def save(self) -> SavedState:
        return state(float(self.position.step), self.rows)

    def restore(self, saved: SavedState) -> None:
        assert saved.tensors["table"][0, 0] == self.position.step


def test_a_full_disk_leaves_the_last_checkpoint_and_does_not_end_the_training(
    tmp_path: Path, full_disk: None, caplog: pytest.LogCaptureFixture
) -> None:
    rows = 1 << 20
    Checkpoint.write(tmp_path / "c", state(1.0), identity=IDENTITY)
    with pytest.raises(OSError, match="the checkpoint before is kept"):
        Checkpoint.write(tmp_path / "c", state(2.0, rows), identity=IDENTITY)
    trainer = CountingState(rows)
    run = TrainingRun(Lifecycle(checkpoint=tmp_path / "c", every_seconds=0.0, resume=True))
    with Lanes() as lanes:
        for _ in run.steps(iter(range(3)), lanes, trainer, num_steps=3):
            trainer.position.add(examples=1)
    assert trainer.position.step == 3
    assert "could not be written; the one before is kept" in caplog.text
    assert Checkpoint.load(tmp_path / "c", identity=IDENTITY).fields == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_checkpoint_in_the_way_is_named_before_the_training_begins(tmp_path: Path) -> None:
    Checkpoint.write(tmp_path / "c", state(1.0), identity=IDENTITY)
    with pytest.raises(CheckpointError, match="--resume"):
        TrainingRun(Lifecycle(checkpoint=tmp_path / "c"))
    with pytest.raises(ValueError, match="name its folder"):
        Lifecycle(resume=True)


@pytest.mark.parametrize("num_steps_before_the_end", [0, 1, 4, 7])
def test_an_epoch_goes_on_with_its_own_order_and_draws(tmp_path: Path, num_steps_before_the_end: int) -> None:
    def draws(trainer: CountingState, run: TrainingRun, stop_after: int | None) -> list[tuple[int, int]]:
        generator = trainer.position.generator
        order = trainer.position.begin_epoch(lambda generator: generator.permutation(7).tolist())
        seen: list[tuple[int, int]] = []
        batches = ((item, int(generator.integers(1 << 30))) for item in order[trainer.position.step :])
        with Lanes() as lanes:
            for batch in run.steps(batches, lanes, trainer, num_steps=7):
                if len(seen) == stop_after:
                    break  # as if killed: the step that was begun is lost
                seen.append(batch)
                trainer.position.add(examples=1)
        return seen

    whole = draws(CountingState(), TrainingRun(), None)
    life = Lifecycle(checkpoint=tmp_path / "c", every_seconds=0.0, resume=True)
    first = draws(CountingState(), TrainingRun(life), num_steps_before_the_end)
    resumed = CountingState()
    run = TrainingRun(life)
    assert run.resume(resumed) == (num_steps_before_the_end > 0)
    assert resumed.position.step == num_steps_before_the_end
    assert first + draws(resumed, run, None) == whole
