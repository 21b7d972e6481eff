"""Stages are made once, whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from multifacet.pipeline.runs.workspace import Say, Stage, Task, Workspace, WorkspaceError


class Log:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, name: str) -> None:
        self.lines.append(f"started {name}")

    def progressed(self, name: str, message: str) -> None:
        self.lines.append(f"{name}: {message}")

    def finished(self, stage: Stage) -> None:
        self.lines.append(f"{'reused' if stage.reused else 'made'} {stage.name}")


def write_number(folder: Path, say: Say, *, number: int) -> dict[str, Any]:
    say(f"writing {number}")
    (folder / "number.txt").write_text(str(number))
    return {"number": number}


def number_task(name: str, number: int, parents: tuple[Stage, ...] = ()) -> Task:
    return Task(
        name=name,
        run=partial(write_number, number=number),
        config={"number": number},
        rooms=("graphdb",),
        parents=parents,
    )


def run_two(root: Path, number: int) -> tuple[list[str], Stage]:
    log = Log()
    workspace = Workspace(root, log)
    with workspace.locked():
        first = workspace.make(number_task("first", number))
        second = workspace.make(number_task("second", 7, parents=(first,)))
    return [line for line in log.lines if line.startswith(("made", "reused"))], second


def test_second_run_reuses_what_is_unchanged(tmp_path: Path) -> None:
    made, stage = run_two(tmp_path, 1)
    assert made == ["made first", "made second"]
    again, same = run_two(tmp_path, 1)
    assert again == ["reused first", "reused second"]
    assert same.path == stage.path
    assert same.result == {"number": 7}
    assert same.seconds == stage.seconds


def test_a_changed_parent_makes_its_children_again_and_removes_the_outdated(tmp_path: Path) -> None:
    run_two(tmp_path, 1)
    made, _ = run_two(tmp_path, 2)
    assert made == ["made first", "made second"]
    assert len(list(tmp_path.glob("first-*"))) == 1
    assert len(list(tmp_path.glob("second-*"))) == 1


def test_a_damaged_stage_is_made_again(tmp_path: Path) -> None:
    _, stage = run_two(tmp_path, 1)
    (stage.path / "number.txt").write_text("8")
    made, repaired = run_two(tmp_path, 1)
    assert made == ["reused first", "made second"]
    assert (repaired.path / "number.txt").read_text() == "7"


def test_a_failing_stage_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path, say: Say) -> dict[str, Any]:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("no")

    workspace = Workspace(tmp_path, Log())
    with workspace.locked(), pytest.raises(RuntimeError, match="no"):
        workspace.make(Task(name="broken", run=fail, config={}, rooms=()))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with (
        Workspace(tmp_path, Log()).locked(),
        pytest.raises(WorkspaceError, match="another run"),
        Workspace(tmp_path, Log()).locked(),
    ):
        pass


@pytest.mark.slow
def test_a_killed_run_starts_cleanly_again(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    root = tmp_path / "root"
    script.write_text(
        "import pathlib, sys, time\n"
        "from multifacet.pipeline.terminal.console import ConsoleWatcher\n"
        "from multifacet.pipeline.runs.workspace import Task, Workspace\n"
        "def slow(folder, say):\n"
        "    (folder / 'half.txt').write_text('half')\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
        "workspace = Workspace(pathlib.Path(sys.argv[1]), ConsoleWatcher())\n"
        "with workspace.locked():\n"
        "    workspace.make(Task(name='slow', run=slow, config={}, rooms=()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, script, root], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert any(path.name.startswith(".slow-") for path in root.iterdir())  # the killed run's half

    def quick(folder: Path, say: Say) -> dict[str, Any]:
        assert not (folder / "half.txt").exists()
        return {"done": True}

    log = Log()
    workspace = Workspace(root, log)
    started = time.monotonic()
    with workspace.locked():  # the dead process holds no lock
        stage = workspace.make(Task(name="slow", run=quick, config={}, rooms=()))
    assert time.monotonic() - started < 5
    assert not stage.reused
    assert sorted(path.name for path in root.iterdir()) == [".lock", stage.path.name]
    assert json.loads((stage.path / "manifest.json").read_text())["result"] == {"done": True}


@pytest.mark.slow
def test_stages_made_together_are_those_made_one_by_one(tmp_path: Path) -> None:
    log = Log()
    workspace = Workspace(tmp_path / "together", log)
    tasks = [number_task(f"stage{number}", number) for number in range(3)]
    with workspace.locked():
        together = workspace.make_together(tasks)
        again = workspace.make_together(tasks)
    assert [stage.result["number"] for stage in together] == [0, 1, 2]
    assert [stage.reused for stage in together + again] == [False] * 3 + [True] * 3
    assert {f"started stage{number}" for number in range(3)} <= set(log.lines)
    assert {f"stage{number}: writing {number}" for number in range(3)} <= set(log.lines)
    alone = Workspace(tmp_path / "alone", Log())
    with alone.locked():
        assert [alone.make(task).key for task in tasks] == [stage.key for stage in together]


def fail_in_a_process(folder: Path, say: Say) -> dict[str, Any]:
    raise ValueError("the seventh row is wrong")


@pytest.mark.slow
def test_a_stage_that_fails_among_others_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, Log())
    tasks = [number_task("good", 1), Task(name="bad", run=fail_in_a_process, config={}, rooms=())]
    with workspace.locked(), pytest.raises(ValueError, match="the seventh row is wrong"):
        workspace.make_together(tasks)
    assert not list(tmp_path.glob("*bad*"))
