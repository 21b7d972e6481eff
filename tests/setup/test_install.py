"""`requirements/install.sh` with real venvs and a real pip, on lists so small that it takes seconds.

torch is an empty wheel of that name and version here; the installation of the real one is what `make test` itself does.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

TOOLS = ("sh", "cat", "cut", "dirname", "flock", "mkdir", "mv", "rm", "sha256sum", "touch", "uname")
# An in-tree build backend, so that the tree's own installation needs no setuptools in the fresh venv.
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "multifacet"
version = "0.1.0"
"""
BACKEND = """
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    information = "multifacet-0.1.0.dist-info"
    with zipfile.ZipFile(f"{folder}/multifacet-0.1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\\nName: multifacet\\nVersion: 0.1.0\\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{information}/RECORD", "")
    return "multifacet-0.1.0-py3-none-any.whl"
"""


def write_wheel(folder: Path, name: str, version: str) -> None:
    """An installable wheel of one module that holds nothing but its version."""
    information = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"__version__ = {version!r}\n",
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{information}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for file, text in {**files, f"{information}/RECORD": record}.items():
            wheel.writestr(file, text)


class Tree:
    """A source tree with this project's installer and lists of its own."""

    def __init__(self, root: Path, repository: Path) -> None:
        self.root = root / "tree"
        self.wheels = root / "wheels"
        self.wheels.mkdir()
        for name, version in (("torch", "2.13.0"), ("runs", "1.0"), ("runs", "2.0"), ("checks", "1.0")):
            write_wheel(self.wheels, name, version)
        (self.root / "requirements").mkdir(parents=True)
        shutil.copy(repository / "requirements" / "install.sh", self.root / "requirements")
        self.write("requirements/cpu.txt", "runs==1.0\n")
        self.write("requirements/dev.txt", "checks==1.0\n")
        self.write("pyproject.toml", PYPROJECT)
        self.write("backend.py", BACKEND)

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def environ(self, **changes: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull}
        return {**inherited, **pip, "PYTHON": sys.executable, **changes}

    def install(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", "requirements/install.sh", *arguments]
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environ(**environ),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def install_twice_at_once(self) -> list[str]:
        """What each of two installers says that start together; both must succeed."""
        command = ["sh", "requirements/install.sh"]
        both = [
            subprocess.Popen(command, cwd=self.root, env=self.environ(), stderr=subprocess.PIPE, text=True) for _ in range(2)
        ]
        messages = [process.communicate(timeout=200)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], messages
        return messages

    def kill_while_installing(self) -> None:
        """Kill the installer, with everything that it started, once the venv is being filled."""
        command = ["sh", "requirements/install.sh"]
        installer = subprocess.Popen(command, cwd=self.root, env=self.environ(), start_new_session=True)
        deadline = time.monotonic() + 60
        while not (self.root / ".venv" / "bin").exists():
            assert installer.poll() is None, "the installer ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(installer.pid, signal.SIGKILL)
        installer.wait()

    def version_of(self, module: str) -> str:
        code = f"import {module}; print({module}.__version__)"
        command = [str(self.root / ".venv" / "bin" / "python"), "-c", code]
        ran = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
        return ran.stdout.strip()


@pytest.fixture
def tree(tmp_path: Path, repository: Path) -> Tree:
    return Tree(tmp_path, repository)


def path_with(tmp_path: Path, **scripts: str) -> str:
    """A PATH of nothing but the tools that the installer needs, and some scripts."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        if location := shutil.which(tool):
            (folder / tool).symlink_to(location)
    for name, text in scripts.items():
        script = folder / name
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
    return str(folder)


@pytest.mark.timeout(600)  # many processes, which a busy machine makes slow
def test_an_installation_is_healed_kept_and_brought_up_to_date(tree: Tree, tmp_path: Path):
    venv = tree.root / ".venv"

    tree.kill_while_installing()
    assert (venv / ".incomplete").exists()

    # Healed, and by one of two that start at once, as `make demo` and `make test` may.
    messages = tree.install_twice_at_once()
    assert sorted(bool(message) for message in messages) == [False, True], messages
    assert "the last installation did not finish: building .venv afresh" in "".join(messages)
    assert (tree.version_of("torch"), tree.version_of("runs"), tree.version_of("checks")) == ("2.13.0", "1.0", "")

    again = tree.install()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")

    (venv / "kept").touch()
    with_tests = tree.install("--dev")
    assert with_tests.returncode == 0, with_tests.stderr
    assert tree.version_of("checks") == "1.0"
    assert tree.install("--dev").stderr == ""
    assert tree.install().stderr == ""

    tree.write("requirements/cpu.txt", "runs==2.0\n")
    updated = tree.install()
    assert updated.returncode == 0, updated.stderr
    assert tree.version_of("runs") == "2.0"
    assert (venv / "kept").exists(), "a change of the pins should not rebuild .venv"

    # A copy elsewhere holds paths of its origin, so it is not trusted.
    original, tree.root = tree.root, tmp_path / "elsewhere"
    shutil.copytree(original, tree.root, symlinks=True)
    copied = tree.install(PATH=path_with(tmp_path), PYTHON="")
    assert copied.returncode == 1
    assert "another place" in copied.stderr
    assert "needs Python 3.11, 3.12 or 3.13, with its venv module" in copied.stderr
    assert (tree.root / ".venv").exists(), "what cannot be replaced should not be taken away"

    # pip fails: said, and not taken for done.
    tree.root = original
    tree.write("requirements/cpu.txt", "runs==3.0\n")
    failed = tree.install()
    assert failed.returncode == 1
    assert "runs==3.0" in failed.stderr
    assert "run make again" in failed.stderr
    assert (venv / ".incomplete").exists()


def test_without_a_python_it_says_what_is_missing_and_how_to_name_one(tree: Tree, tmp_path: Path):
    environ = {"PATH": path_with(tmp_path), "PYTHON": ""}
    refused = tree.install(**environ)
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "multifacet: needs Python 3.11, 3.12 or 3.13, with its venv module.",
        "multifacet: Install it, or name one: make demo PYTHON=/path/to/python3",
    ]
    assert not (tree.root / ".venv").exists()


def test_pythons_that_do_not_do_are_named_with_what_is_wrong_with_each(tree: Tree, tmp_path: Path):
    # python3.11 as a version manager's shim without that version; python3 as an old Python; python without venv.
    scripts = {
        "python3.11": "exit 127",
        "python3": 'case "$2" in *sys.exit*) exit 1;; *) echo 3.9.2;; esac',
        "python": 'case "$2" in *venv*) exit 1;; esac',
    }
    refused = tree.install("--dev", PATH=path_with(tmp_path, **scripts), PYTHON="")
    assert refused.returncode == 1
    assert "python3.11 is not a working Python; python3 is 3.9.2; python has no venv module" in refused.stderr
    assert "make test PYTHON=/path/to/python3" in refused.stderr
