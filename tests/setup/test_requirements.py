"""The pinned lists are whole, agree with each other and with what the doctor expects, and name no machine's sources."""

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from multifacet.pipeline.doctor import diagnosis

# Asked for by a package, and left out on purpose (see pyproject.toml, [tool.uv]).
LEFT_OUT = {"fbgemm-gpu", "pandas"}


def read_pins(path: Path) -> dict[str, str]:
    return dict(line.split("==") for line in path.read_text().splitlines())


@pytest.fixture
def pyproject(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text())


@pytest.mark.parametrize("name", ["cpu.txt", "dev.txt", "docs.txt"])
def test_every_line_is_one_exact_public_version(repository: Path, name: str):
    lines = (repository / "requirements" / name).read_text().splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", line), line


def test_the_lists_agree_with_each_other(repository: Path):
    cpu = read_pins(repository / "requirements" / "cpu.txt")
    dev = read_pins(repository / "requirements" / "dev.txt")
    assert {name: dev[name] for name in cpu.keys() & dev.keys()} == {name: cpu[name] for name in cpu.keys() & dev.keys()}
    docs = read_pins(repository / "requirements" / "docs.txt")
    assert {name: docs[name] for name in docs.keys() & (cpu | dev).keys()} == {
        name: (cpu | dev)[name] for name in docs.keys() & (cpu | dev).keys()
    }


def test_no_list_has_torch_or_the_cuda_build_of_fbgemm(repository: Path):
    for name in ("cpu.txt", "dev.txt"):
        pins = read_pins(repository / "requirements" / name)
        assert not {"torch", "triton", "fbgemm-gpu"} & pins.keys()
        assert not [pin for pin in pins if pin.startswith(("nvidia-", "cuda-"))]


@pytest.mark.parametrize("lists", [["cpu.txt"], ["cpu.txt", "dev.txt"]])
def test_the_lists_are_whole_since_they_are_installed_without_a_resolver(repository: Path, lists: list[str]):
    pins = {"torch": "2.13.0"}
    for name in lists:
        pins |= read_pins(repository / "requirements" / name)
    missing = []
    for name in pins:
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            wanted = canonicalize_name(requirement.name)
            if wanted not in pins and wanted not in LEFT_OUT and not wanted.startswith(("nvidia-", "cuda-", "triton")):
                missing.append(f"{name} needs {line}")
    assert missing == []


def test_the_pins_satisfy_what_the_project_asks_for(repository: Path, pyproject: dict[str, Any]):
    cpu = read_pins(repository / "requirements" / "cpu.txt") | {"torch": "2.13.0"}
    dev = read_pins(repository / "requirements" / "dev.txt")
    extras = pyproject["project"]["optional-dependencies"]
    for line in [*pyproject["project"]["dependencies"], *extras["cpu"], *extras["demo"]]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(cpu[canonicalize_name(requirement.name)]), line
    docs = read_pins(repository / "requirements" / "docs.txt")
    for group, pins in (("dev", dev), ("docs", docs)):
        for line in pyproject["dependency-groups"][group]:
            requirement = Requirement(line)
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), line


def test_the_doctor_expects_what_is_installed(repository: Path, pyproject: dict[str, Any]):
    cpu = read_pins(repository / "requirements" / "cpu.txt")
    expected = {
        "fbgemm-gpu-cpu": diagnosis.FBGEMM,
        "torchrec": diagnosis.TORCHREC,
        "torchmetrics": diagnosis.TORCHMETRICS,
        "duckdb": diagnosis.DUCKDB,
    }
    assert {name: cpu[name] for name in expected} == expected
    assert f"torch=={diagnosis.TORCH}" in pyproject["project"]["dependencies"]
    assert pyproject["project"]["optional-dependencies"]["gpu"] == [f"fbgemm-gpu=={diagnosis.FBGEMM}"]
    assert f"pip_install torch=={diagnosis.TORCH} " in (repository / "requirements" / "install.sh").read_text()
    assert diagnosis.PYG_WHEELS in (repository / "requirements" / "pyg-lib.txt").read_text()


def test_no_source_of_packages_is_named_but_the_two_optional_public_ones(repository: Path):
    files = [repository / name for name in ("Makefile", "pyproject.toml", ".ci/run", ".pre-commit-config.yaml")]
    files += sorted((repository / "requirements").iterdir())
    hosts = {host for file in files for host in re.findall(r"(?:https?|file)://([^/\s]*)", file.read_text())}
    assert hosts <= {"data.pyg.org", "download.pytorch.org", "docs.astral.sh"}
