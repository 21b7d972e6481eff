"""The environment is gathered from this very installation, and from modules that break in every way there is."""

import json
import os
from pathlib import Path

import pytest
import torch

from multifacet.pipeline.doctor.doctor import doctor_command
from multifacet.pipeline.doctor.environment import Environment, Probe, probe_modules, unmet_requirements

BROKEN_MODULES = {
    "breaks_importerror": "raise ImportError('libtorch_cuda.so: cannot open shared object file')",
    "breaks_oserror": "raise OSError('Could not load this library:\\n\\n/x.so')",
    "breaks_attributeerror": "import math\nmath.no_such_kernel",
    "breaks_exit": "raise SystemExit(7)",
    "breaks_hard_exit": "import os\nos._exit(3)",
    "breaks_abort": "import os\nos.abort()",
    "prints_much": "print('{ no report', end='')",
    "works": "",
}


BROKEN = Environment(
    python_version=(3, 11, 7),
    python_command="'/opt/a place with a long name for its fix to be wrapped/bin/python'",
    system="Linux",
    num_cores=2,
    memory_bytes=2**35,
    distributions={
        "multifacet": "0.1.0",
        "torch": "2.13.0",
        "torchrec": "1.8.0",
        "fbgemm-gpu-cpu": "1.8.0",
        "torchmetrics": "1.0.3",
        "duckdb": "1.4.2",
    },
    unmet=[],
    probes={"torch": Probe(loads=True), "fbgemm_gpu": Probe(loads=True)},
    fbgemm_variant="cpu",
    has_gpu=False,
    c_compiler=None,
    huge_pages=None,
    thp_mem_alloc=False,
)


@pytest.fixture
def module_environ(tmp_path: Path) -> dict[str, str]:
    for name, source in BROKEN_MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_modules_that_break_while_they_load_are_reported_each_with_its_error(module_environ: dict[str, str]):
    probes = probe_modules(list(BROKEN_MODULES), environ=module_environ)
    assert {name: (probe.loads, probe.error) for name, probe in probes.items()} == {
        "breaks_importerror": (False, "ImportError: libtorch_cuda.so: cannot open shared object file"),
        "breaks_oserror": (False, "OSError: Could not load this library: /x.so"),
        "breaks_attributeerror": (False, "AttributeError: module 'math' has no attribute 'no_such_kernel'"),
        "breaks_exit": (False, "SystemExit: 7"),
        "breaks_hard_exit": (False, "importing it ended the process with exit code 3"),
        "breaks_abort": (False, "importing it killed the process with signal 6"),
        "prints_much": (True, ""),
        "works": (True, ""),
    }


def test_requirements_that_are_missing_or_of_the_wrong_version_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    information = tmp_path / "wanting-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: wanting\nVersion: 1.0\n"
        "Requires-Dist: numpy>=2\nRequires-Dist: rich<1\nRequires-Dist: no-such-thing>=3\n"
        'Requires-Dist: absent-extra; extra == "more"\nRequires-Dist: absent-system; sys_platform == "win32"\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    unmet = unmet_requirements("wanting")
    assert [requirement for requirement, _ in unmet] == ["rich<1", "no-such-thing>=3"]
    assert unmet[0][1]
    assert not unmet[1][1]


@pytest.mark.slow
def test_the_command_describes_this_installation_and_finds_nothing_wrong(capsys: pytest.CaptureFixture[str]):
    exit_code = doctor_command(as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert [finding for finding in document["findings"] if finding["severity"] == "fault"] == []
    assert document["ok"] is True
    assert exit_code == 0
    environment = document["environment"]
    assert environment["distributions"]["torch"] == torch.__version__
    assert environment["probes"]["torch"]["facts"]["cuda"] == (torch.version.cuda or "")
    assert environment["probes"]["fbgemm_gpu"]["loads"] is True
    assert environment["fbgemm_variant"] in {"cpu", "cuda"}


def test_a_fault_is_printed_with_its_fix_on_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("multifacet.pipeline.doctor.doctor.inspect_environment", lambda: BROKEN)
    assert doctor_command() == 1
    lines = capsys.readouterr().out.splitlines()
    assert "'/opt/a place with a long name for its fix to be wrapped/bin/python' -m pip install duckdb==2.0.0" in lines
    assert lines[-1] == "1 fault, from the first down"
