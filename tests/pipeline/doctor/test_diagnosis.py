"""Each wrong installation that is known to happen gets its own diagnosis and one line that mends it."""

import dataclasses
from typing import Any

import pytest

from multifacet.pipeline.doctor.diagnosis import Finding, diagnose
from multifacet.pipeline.doctor.environment import Environment, Probe

TORCH_CPU = Probe(loads=True, facts={"cuda": "", "num_gpus": "0"})
TORCH_CUDA = Probe(loads=True, facts={"cuda": "13.0", "num_gpus": "0"})
TORCH_CUDA_WITH_GPU = Probe(loads=True, facts={"cuda": "13.0", "num_gpus": "1"})
LOADS = Probe(loads=True)
VERSIONS = {
    "multifacet": "0.1.0",
    "torch": "2.13.0+cpu",
    "torchrec": "1.8.0",
    "fbgemm-gpu-cpu": "1.8.0",
    "torchmetrics": "1.0.3",
    "torch-geometric": "2.8.1",
    "duckdb": "2.0.0",
}
HEALTHY = Environment(
    python_version=(3, 11, 7),
    python_command=".venv/bin/python",
    system="Linux",
    num_cores=2,
    memory_bytes=24 * 1024**3,
    distributions=VERSIONS,
    unmet=[],
    probes={"torch": TORCH_CPU, "fbgemm_gpu": LOADS},
    fbgemm_variant="cpu",
    has_gpu=False,
    c_compiler="/usr/bin/cc",
    huge_pages="always",
    thp_mem_alloc=False,
)
UNINSTALL_FBGEMM = ".venv/bin/python -m pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu"
INSTALL_CPU = f"{UNINSTALL_FBGEMM} && .venv/bin/python -m pip install --no-deps fbgemm-gpu-cpu==1.8.0"
INSTALL_CUDA = f"{UNINSTALL_FBGEMM} && .venv/bin/python -m pip install --no-deps fbgemm-gpu==1.8.0"


def environment(versions: dict[str, str | None] | None = None, **changes: Any) -> Environment:
    """A healthy environment with some versions changed (None: not installed) and some facts replaced."""
    distributions = {**VERSIONS, **(versions or {})}
    installed = {name: version for name, version in distributions.items() if version is not None}
    return dataclasses.replace(HEALTHY, distributions=installed, **changes)


def only(findings: list[Finding], *severities: str) -> Finding:
    """The one finding of these severities."""
    found = [finding for finding in findings if finding.severity in severities]
    assert len(found) == 1, found
    return found[0]


def test_a_healthy_cpu_installation_has_no_fault_and_no_warning():
    findings = diagnose(HEALTHY)
    assert {finding.severity for finding in findings} <= {"ok", "hint"}
    assert [finding.check for finding in findings if finding.severity == "hint"] == ["pyg-lib"]


def test_a_healthy_gpu_installation_has_no_fault_and_no_warning():
    findings = diagnose(
        environment(
            {"torch": "2.13.0", "fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.8.0"},
            probes={"torch": TORCH_CUDA_WITH_GPU, "fbgemm_gpu": LOADS},
            fbgemm_variant="cuda",
            has_gpu=True,
        )
    )
    assert {finding.severity for finding in findings} <= {"ok", "hint"}


def test_the_cuda_build_of_torch_works_on_a_machine_without_a_gpu():
    findings = diagnose(environment({"torch": "2.13.0"}, probes={"torch": TORCH_CUDA, "fbgemm_gpu": LOADS}))
    assert {finding.severity for finding in findings} <= {"ok", "hint"}


@pytest.mark.parametrize(("version", "torch"), [("1.7.0", "2.12"), ("1.9.0", "2.14")])
def test_an_fbgemm_of_another_torch_is_named_with_the_torch_that_it_is_for(version: str, torch: str):
    broken = Probe(loads=False, error="OSError: undefined symbol: _ZN3c10")
    found = only(diagnose(environment({"fbgemm-gpu-cpu": version}, probes={"torch": TORCH_CPU, "fbgemm_gpu": broken})), "fault")
    assert found.check == "fbgemm"
    assert f"fbgemm-gpu-cpu {version} is built for torch {torch}" in found.message
    assert found.fix == INSTALL_CPU


def test_both_builds_of_fbgemm_in_one_folder_are_both_removed_first():
    broken = Probe(loads=False, error="OSError: libtorch_cuda.so: cannot open shared object file")
    found = only(
        diagnose(
            environment(
                {"fbgemm-gpu": "1.8.0"},
                probes={"torch": TORCH_CPU, "fbgemm_gpu": broken},
                fbgemm_variant="cuda",
            )
        ),
        "fault",
    )
    assert "fbgemm-gpu and fbgemm-gpu-cpu are both installed" in found.message
    assert "the cuda build's" in found.message
    assert found.fix == INSTALL_CPU


def test_the_cuda_build_of_fbgemm_on_the_cpu_build_of_torch_cannot_load():
    broken = Probe(loads=False, error="OSError: libtorch_cuda.so: cannot open shared object file")
    found = only(
        diagnose(
            environment(
                {"fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.8.0"},
                probes={"torch": TORCH_CPU, "fbgemm_gpu": broken},
                fbgemm_variant="cuda",
            )
        ),
        "fault",
    )
    assert "is the CUDA build, and torch 2.13.0+cpu is the CPU build" in found.message
    assert "libtorch_cuda.so" in found.message
    assert found.fix == INSTALL_CPU


def test_files_of_the_other_build_under_a_package_are_recognised_by_their_variant():
    found = only(diagnose(environment(fbgemm_variant="cuda")), "fault")
    assert "fbgemm-gpu-cpu 1.8.0 is the cpu build, but its files are the cuda build's" in found.message
    assert found.fix == INSTALL_CPU


@pytest.mark.parametrize(
    "error",
    [
        "ImportError: libgomp.so.1: cannot open shared object file",
        "OSError: Could not load this library",
        "AttributeError: '_OpNamespace' 'fbgemm' object has no attribute 'FloatOrHalf'",
        "importing it killed the process with signal 11",
    ],
)
def test_an_fbgemm_that_does_not_load_is_a_fault_that_quotes_the_error(error: str):
    probes = {"torch": TORCH_CPU, "fbgemm_gpu": Probe(loads=False, error=error)}
    found = only(diagnose(environment(probes=probes)), "fault")
    assert found.message == f"fbgemm-gpu-cpu 1.8.0 does not load: {error}"
    assert found.fix == INSTALL_CPU


def test_no_fbgemm_at_all():
    found = only(diagnose(environment({"fbgemm-gpu-cpu": None}, probes={"torch": TORCH_CPU}, fbgemm_variant=None)), "fault")
    assert (found.check, found.message, found.fix) == ("fbgemm", "not installed", INSTALL_CPU)


def test_cuda_torch_with_the_cpu_build_of_fbgemm_wastes_the_gpu_of_a_gpu_machine():
    found = only(
        diagnose(environment({"torch": "2.13.0"}, probes={"torch": TORCH_CUDA_WITH_GPU, "fbgemm_gpu": LOADS}, has_gpu=True)),
        "warning",
        "fault",
    )
    assert (found.severity, found.check) == ("warning", "gpu")
    assert "fbgemm-gpu-cpu cannot" in found.message
    assert found.fix == INSTALL_CUDA


def test_cpu_torch_wastes_the_gpu_of_a_gpu_machine_and_goes_before_the_cuda_build_comes():
    found = only(diagnose(environment(has_gpu=True)), "warning", "fault")
    assert (found.severity, found.check) == ("warning", "gpu")
    assert found.fix is not None
    steps = found.fix.split(" && ")
    assert [step.split(" -m pip ")[1] for step in steps] == [
        "uninstall -y torch fbgemm-gpu fbgemm-gpu-cpu",
        "install torch==2.13.0",
        "install --no-deps fbgemm-gpu==1.8.0",
    ]


def test_a_gpu_that_torch_does_not_see_points_at_the_driver():
    found = only(
        diagnose(
            environment(
                {"torch": "2.13.0", "fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.8.0"},
                probes={"torch": TORCH_CUDA, "fbgemm_gpu": LOADS},
                fbgemm_variant="cuda",
                has_gpu=True,
            )
        ),
        "warning",
        "fault",
    )
    assert "driver" in found.message


@pytest.mark.parametrize("version", ["2.12.1", "2.14.0+cpu", None])
def test_another_torch_is_replaced_by_the_one_of_the_pair(version: str | None):
    found = only(diagnose(environment({"torch": version})), "fault")
    assert found.check == "torch"
    assert "2.13.0" in found.message
    assert found.fix == ".venv/bin/python -m pip install torch==2.13.0"


def test_a_torch_that_does_not_load_is_installed_over_itself():
    probes = {"torch": Probe(loads=False, error="ImportError: libtorch.so: file too short"), "fbgemm_gpu": LOADS}
    found = only(diagnose(environment(probes=probes)), "fault")
    assert "libtorch.so: file too short" in found.message
    assert found.fix == ".venv/bin/python -m pip install --force-reinstall --no-deps torch==2.13.0"


@pytest.mark.parametrize("version", ["1.7.0", "1.9.0", None])
def test_a_torchrec_of_another_number_than_fbgemm_is_replaced_without_its_requirements(version: str | None):
    found = only(diagnose(environment({"torchrec": version})), "fault")
    assert found.check == "torchrec"
    assert found.fix == ".venv/bin/python -m pip install --no-deps torchrec==1.8.0"


@pytest.mark.parametrize("version", ["1.8.2", None])
def test_torchmetrics_must_be_the_version_that_torchrec_pins(version: str | None):
    found = only(diagnose(environment({"torchmetrics": version})), "fault")
    assert found.check == "torchmetrics"
    assert found.fix == ".venv/bin/python -m pip install --no-deps torchmetrics==1.0.3"


@pytest.mark.parametrize("version", ["1.4.2", "3.0.0", None])
def test_duckdb_must_be_2(version: str | None):
    found = only(diagnose(environment({"duckdb": version})), "fault")
    assert found.check == "duckdb"
    assert found.fix == ".venv/bin/python -m pip install duckdb==2.0.0"


def test_pyg_library_is_not_pyg_lib():
    found = only(diagnose(environment({"pyg-library": "0.1.0"})), "fault")
    assert found.check == "pyg-lib"
    assert found.fix is not None
    assert "uninstall -y pyg-library" in found.fix
    assert found.fix.endswith("--find-links https://data.pyg.org/whl/torch-2.13.0+cpu.html pyg-lib")


def test_a_pyg_lib_of_another_torch_is_a_fault_since_pyg_would_use_it():
    probes = {**HEALTHY.probes, "pyg_lib": Probe(loads=False, error="OSError: undefined symbol")}
    found = only(diagnose(environment({"pyg-lib": "0.4.0"}, probes=probes)), "fault")
    assert "undefined symbol" in found.message


def test_a_pyg_lib_that_loads_is_used():
    probes = {**HEALTHY.probes, "pyg_lib": LOADS}
    findings = diagnose(environment({"pyg-lib": "0.7.0"}, probes=probes))
    assert Finding(severity="ok", check="pyg-lib", message="pyg-lib 0.7.0") in findings


@pytest.mark.parametrize("version", [(3, 10, 14), (3, 9, 2), (3, 14, 0)])
def test_pythons_without_wheels_are_a_fault(version: tuple[int, int, int]):
    found = only(diagnose(environment(python_version=version)), "fault")
    assert found.check == "python"
    assert found.fix == "make distclean && make demo PYTHON=python3.11"


def test_another_system_than_linux_is_a_fault():
    assert only(diagnose(environment(system="Darwin")), "fault").check == "system"


def test_requirements_without_a_check_of_their_own_are_named_together():
    unmet = [("numpy<2.5,>=2.4", "2.5.0"), ("safetensors>=0.8", ""), ("duckdb<3,>=2", "1.4.2")]
    findings = diagnose(environment({"duckdb": "1.4.2"}, unmet=unmet))
    found = only([finding for finding in findings if finding.check == "requirements"], "fault")
    assert found.message == "numpy<2.5,>=2.4 is wanted, 2.5.0 is installed; safetensors>=0.8 is wanted, none is installed"
    assert found.fix == ".venv/bin/python -m pip install --no-deps 'numpy<2.5,>=2.4' 'safetensors>=0.8'"


def test_multifacet_run_from_its_sources_without_being_installed_is_a_fault():
    assert only(diagnose(environment({"multifacet": None})), "fault").check == "requirements"


@pytest.mark.parametrize(
    ("huge_pages", "asked_for", "severity"),
    [
        ("never", False, "warning"),
        ("never", True, "warning"),
        ("madvise", False, "hint"),
        ("madvise", True, "ok"),
        ("always", False, "ok"),
        (None, False, "ok"),
    ],
)
def test_huge_pages_are_wanted_but_not_required(huge_pages: str | None, asked_for: bool, severity: str):
    findings = diagnose(environment(huge_pages=huge_pages, thp_mem_alloc=asked_for))
    (found,) = [finding for finding in findings if finding.check == "huge pages"]
    assert found.severity == severity


def test_little_memory_is_a_warning():
    found = only(diagnose(environment(memory_bytes=2 * 1024**3)), "warning", "fault")
    assert (found.severity, found.check) == ("warning", "machine")


def test_no_compiler_is_no_fault():
    findings = diagnose(environment(c_compiler=None))
    assert {finding.severity for finding in findings} <= {"ok", "hint"}


def test_every_fault_and_warning_has_a_fix_of_one_line():
    broken = environment(
        dict.fromkeys(VERSIONS),
        python_version=(3, 10, 0),
        system="Darwin",
        memory_bytes=1,
        probes={},
        fbgemm_variant=None,
        has_gpu=True,
        huge_pages="never",
    )
    wrong = [finding for finding in diagnose(broken) if finding.severity in {"fault", "warning"}]
    assert len(wrong) == 11
    for finding in wrong:
        assert finding.fix, finding
        assert "\n" not in finding.fix
