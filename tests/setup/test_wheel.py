"""The wheel holds the rooms and their data, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOMS = {"pipeline", "serving", "ranking", "kge", "contrastive", "tables", "graphdb", "data"}
LEFT_OUT = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def wheel_files(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel that is built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(repository, folder / "sources", ignore=LEFT_OUT)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", code, str(folder)]
    built = subprocess.run(command, cwd=folder / "sources", capture_output=True, text=True, timeout=200, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    (wheel,) = folder.glob("multifacet-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_it_holds_the_rooms_and_neither_tests_nor_benchmarks(wheel_files: set[str]):
    top_level = {name.split("/")[0] for name in wheel_files}
    assert {name for name in top_level if not name.endswith(".dist-info")} == ROOMS


def test_it_holds_every_source_and_data_file_of_the_rooms(repository: Path, wheel_files: set[str]):
    suffixes = {".py", ".toml", ".parquet", ".j2", ".css", ".proto", ".typed", ".pyi"}
    sources = {
        str(file.relative_to(repository))
        for room in ROOMS
        for file in (repository / room).rglob("*")
        if file.suffix in suffixes or file.name == "py.typed"
    }
    assert "data/completejourney.toml" in sources
    assert "data/sample/transactions.parquet" in sources
    assert sources - wheel_files == set()


def test_it_holds_the_licence(wheel_files: set[str]):
    assert [name for name in wheel_files if name.endswith("/licenses/LICENSE")]
