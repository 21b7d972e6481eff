"""What this machine and this Python hold, gathered without trusting any of it to import."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement

PROBED_MODULES = ("torch", "fbgemm_gpu", "pyg_lib")
DISTRIBUTIONS = (
    "multifacet",
    "torch",
    "torchrec",
    "fbgemm-gpu",
    "fbgemm-gpu-cpu",
    "torchmetrics",
    "torch-geometric",
    "pyg-lib",
    "pyg-library",
    "duckdb",
    "numpy",
    "numba",
)
_PROBE_TIMEOUT_S = 120

# Runs in a child process: a library that crashes or exits while it loads takes only the child with it. The reports
# go to a file, as a library may print anything while it loads.
_PROBE = """
import importlib, json, sys
for name in sys.argv[2:]:
    try:
        module = importlib.import_module(name)
        facts = {}
        if name == "torch":
            gpus = module.cuda.device_count() if module.cuda.is_available() else 0
            facts = {"cuda": module.version.cuda or "", "num_gpus": str(gpus)}
        elif name == "fbgemm_gpu":
            import torch
            torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf
        report = {"name": name, "loads": True, "error": "", "facts": facts}
    except BaseException as error:
        report = {"name": name, "loads": False, "error": f"{type(error).__name__}: {error}", "facts": {}}
    with open(sys.argv[1], "a") as reports:
        reports.write(json.dumps(report) + "\\n")
"""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What came of importing a module in a child process.

    Attributes:
        loads: Whether the import succeeded.
        error: The first line of what it failed with; empty if it did not.
        facts: What the module says of itself (torch: `cuda`, `num_gpus`).
    """

    loads: bool
    error: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Everything that `pipeline.doctor.doctor.diagnose` looks at.

    Attributes:
        python_version: (major, minor, micro).
        python_command: How to call this interpreter from a shell; fixes begin with it.
        system: The kernel's name, as `platform.system()` says it.
        num_cores: CPU cores that this process may use.
        memory_bytes: The machine's memory.
        distributions: Installed version by distribution name, for those of `DISTRIBUTIONS` that are installed.
        unmet: Requirements of multifacet that are not met: (requirement, installed version or "").
        probes: Outcome by module name, for the modules that are installed among `PROBED_MODULES`.
        fbgemm_variant: `cpu`, `cuda` or another build's name, read from fbgemm_gpu's files; None without it.
        has_gpu: Whether the machine has an NVIDIA GPU, whatever torch makes of it.
        c_compiler: Path of the C compiler; None without one.
        huge_pages: `always`, `madvise` or `never`; None where the kernel does not say.
        thp_mem_alloc: Whether THP_MEM_ALLOC_ENABLE=1 asks torch to allocate large tensors on huge pages.
    """

    python_version: tuple[int, int, int]
    python_command: str
    system: str
    num_cores: int
    memory_bytes: int
    distributions: Mapping[str, str]
    unmet: Sequence[tuple[str, str]]
    probes: Mapping[str, Probe]
    fbgemm_variant: str | None
    has_gpu: bool
    c_compiler: str | None
    huge_pages: str | None
    thp_mem_alloc: bool


def inspect_environment() -> Environment:
    """Gather the facts about this process's interpreter and machine; takes as long as importing torch does.

    Nothing is imported into this process, so the result describes even an installation that cannot be imported.
    """
    return Environment(
        python_version=sys.version_info[:3],
        python_command=_python_command(),
        system=platform.system(),
        num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        distributions=_installed_versions(DISTRIBUTIONS),
        unmet=unmet_requirements("multifacet"),
        probes=probe_modules([name for name in PROBED_MODULES if importlib.util.find_spec(name)]),
        fbgemm_variant=_fbgemm_variant(),
        has_gpu=_has_gpu(),
        c_compiler=next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None),
        huge_pages=_huge_pages(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        thp_mem_alloc=os.environ.get("THP_MEM_ALLOC_ENABLE", "0") not in {"", "0"},
    )


def probe_modules(names: Sequence[str], *, environ: Mapping[str, str] | None = None) -> dict[str, Probe]:
    """Import modules, in order, in a child process that they may crash.

    Args:
        names: Module names.
        environ: The child's environment; this process's own by default.

    Returns:
        One probe a name. After a module that kills the child, a new child goes on with the next name.
    """
    probes: dict[str, Probe] = {}
    remaining = list(names)
    with tempfile.TemporaryDirectory() as folder:
        reports = Path(folder) / "reports.jsonl"
        while remaining:
            ending = _run_probe([str(reports), *remaining], environ)
            for line in reports.read_text().splitlines() if reports.exists() else []:
                report = json.loads(line)
                error = " ".join(report["error"].split())[:300]
                probes[report["name"]] = Probe(loads=report["loads"], error=error, facts=report["facts"])
            remaining = [name for name in remaining if name not in probes]
            if remaining:
                probes[remaining.pop(0)] = Probe(loads=False, error=ending)
    return probes


def _run_probe(arguments: Sequence[str], environ: Mapping[str, str] | None) -> str:
    """Run one child to its end, and say how it ended."""
    try:
        child = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _PROBE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PROBE_TIMEOUT_S,
            env=environ,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"importing it took more than {_PROBE_TIMEOUT_S} s"
    if child.returncode < 0:
        return f"importing it killed the process with signal {-child.returncode}"
    return f"importing it ended the process with exit code {child.returncode}"


def unmet_requirements(distribution: str) -> list[tuple[str, str]]:
    """Requirements of an installed distribution that this environment does not meet, extras left aside.

    Returns:
        Pairs of the requirement and the installed version, "" where there is none.
    """
    try:
        requirements = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    unmet = []
    for line in requirements:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _installed_versions([requirement.name]).get(requirement.name, "")
        if not version or not requirement.specifier.contains(version, prereleases=True):
            unmet.append((f"{requirement.name}{requirement.specifier}", version))
    return unmet


def _installed_versions(names: Sequence[str]) -> dict[str, str]:
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _python_command() -> str:
    executable = Path(sys.executable)
    here = Path.cwd()
    return shlex.quote(str(executable.relative_to(here) if executable.is_relative_to(here) else executable))


def _fbgemm_variant() -> str | None:
    """The build that fbgemm_gpu's files are of, read without importing it: `__variant__` comes from this file."""
    spec = importlib.util.find_spec("fbgemm_gpu")
    if spec is None:
        return None
    for location in spec.submodule_search_locations or []:
        target = Path(location) / "docs" / "target.default.json.py"
        if target.is_file():
            try:
                return str(json.loads(target.read_text())["variant"])
            except (ValueError, KeyError, TypeError):
                return "unknown"
    return "unknown"


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _has_gpu() -> bool:
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    try:
        listing = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU 0" in listing.stdout


def _huge_pages(path: Path) -> str | None:
    """The word in brackets of the kernel's setting, as in `always [madvise] never`."""
    try:
        match = re.search(r"\[(\w+)\]", path.read_text())
    except OSError:
        return None
    return match.group(1) if match else None
