"""The wheel holds one package, with the rooms and their data in it, and leaves other packages' names alone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOMS = {
    *("pipeline", "serving", "ranking", "kge", "contrastive", "training", "tables", "graphdb"),
    *("artifacts", "inputs", "kernels", "data"),
}
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that is built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(repository, folder / "sources", ignore=LEFT_OUT, symlinks=True)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", code, str(folder)]
    built = subprocess.run(command, cwd=folder / "sources", capture_output=True, text=True, timeout=200, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    (path,) = folder.glob("multifacet-*.whl")
    return path


@pytest.fixture(scope="module")
def wheel_files(wheel: Path) -> set[str]:
    """Names of its files."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_it_holds_one_package_and_neither_tests_nor_benchmarks(wheel_files: set[str]):
    top_level = {name.split("/")[0] for name in wheel_files}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"multifacet"}
    assert {name.split("/")[1] for name in wheel_files if name.startswith("multifacet/")} == ROOMS | {"__init__.py", "py.typed"}


def test_it_holds_every_source_and_data_file_of_the_rooms(repository: Path, wheel_files: set[str]):
    suffixes = {".py", ".toml", ".parquet", ".j2", ".css", ".proto", ".typed", ".pyi"}
    sources = {
        f"multifacet/{file.relative_to(repository)}"
        for room in ROOMS
        for file in (repository / room).rglob("*")
        if file.suffix in suffixes or file.name == "py.typed"
    }
    assert "multifacet/data/completejourney.toml" in sources
    assert "multifacet/data/sample/transactions.parquet" in sources
    assert sources - wheel_files == set()


def test_it_holds_the_licence(wheel_files: set[str]):
    assert [name for name in wheel_files if name.endswith("/licenses/LICENSE")]


BESIDE_PYTABLES = """
import sys, pandas, tables
from multifacet.tables import IdMap
from multifacet.graphdb import Recipe
assert "completejourney" in Recipe.names()
frame = pandas.DataFrame({"user": [1, 2, 3], "price": [.5, 1., 1.5]})
frame.to_hdf("frame.h5", key="frame")
assert pandas.read_hdf("frame.h5", "frame").equals(frame)
assert tables.__version__ and IdMap.__module__.startswith("multifacet.")
bare = {"graphdb", "kge", "contrastive", "ranking", "serving", "pipeline", "data"} & set(sys.modules)
assert not bare, bare
"""


def test_it_works_beside_pytables(wheel: Path, tmp_path: Path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", BESIDE_PYTABLES],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
