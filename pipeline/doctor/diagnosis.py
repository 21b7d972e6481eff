"""Judges an installation: what is wrong with it, and for each fault the one line that mends it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from multifacet.pipeline.doctor.environment import Environment, Probe

Severity = Literal["ok", "hint", "warning", "fault"]

TORCH, FBGEMM, TORCHREC, TORCHMETRICS, DUCKDB = "2.13.0", "1.8.0", "1.8.0", "1.0.3", "2.0.0"
PYG_WHEELS = f"https://data.pyg.org/whl/torch-{TORCH}+cpu.html"

# FBGEMM's binaries load on one torch only, and TorchRec shares FBGEMM's number; no package declares either.
TORCH_OF_FBGEMM = {"1.5": "2.10", "1.6": "2.11", "1.7": "2.12", "1.8": "2.13", "1.9": "2.14"}

_MIN_MEMORY_BYTES = 4 * 1024**3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that the doctor looked at.

    Attributes:
        severity: `ok`; `hint`: an option that would be faster; `warning`: works, but loses something; `fault`: fails.
        check: What was looked at.
        message: What was found, and, where it is wrong, what was expected.
        fix: The one shell line that mends it; None where nothing is wrong.
    """

    severity: Severity
    check: str
    message: str
    fix: str | None = None


def diagnose(environment: Environment) -> list[Finding]:
    """Judge an environment.

    Args:
        environment: The facts, as `inspect_environment` gathers them.

    Returns:
        At least one finding for each check, in the order in which faults are best mended.
    """
    findings: list[Finding] = []
    for check in (_python, _torch, _fbgemm, _torchrec, _torchmetrics, _duckdb, _pyg_lib, _requirements, _gpu, _machine):
        findings.extend(check(environment))
    return findings


def _release(version: str) -> str:
    """`2.13.0+cpu` -> `2.13.0`."""
    return version.partition("+")[0]


def _minor(version: str) -> str:
    """`2.13.0+cpu` -> `2.13`."""
    return ".".join(_release(version).split(".")[:2])


def _pip(environment: Environment, arguments: str) -> str:
    return f"{environment.python_command} -m pip {arguments}"


def _wants_cuda(environment: Environment) -> bool:
    """Whether the CUDA builds are the right ones here: there is a GPU, and torch is built for it."""
    torch = environment.probes.get("torch", Probe(loads=False))
    return environment.has_gpu and torch.facts.get("cuda", "") != ""


def _install_fbgemm(environment: Environment) -> str:
    """Both builds unpack into one folder, so both go before one comes."""
    build = "fbgemm-gpu" if _wants_cuda(environment) else "fbgemm-gpu-cpu"
    uninstall = _pip(environment, "uninstall -y fbgemm-gpu fbgemm-gpu-cpu")
    return f"{uninstall} && {_pip(environment, f'install --no-deps {build}=={FBGEMM}')}"


def _python(environment: Environment) -> Iterator[Finding]:
    version = ".".join(map(str, environment.python_version))
    if not (3, 11) <= environment.python_version[:2] < (3, 14):
        message = f"Python {version}; 3.11, 3.12 or 3.13 is wanted"
        yield Finding(severity="fault", check="python", message=message, fix="make distclean && make demo PYTHON=python3.11")
    else:
        yield Finding(severity="ok", check="python", message=f"Python {version}")
    if environment.system != "Linux":
        message = f"{environment.system}: FBGEMM has wheels for Linux only"
        fix = "docker run -it -v .:/multifacet -w /multifacet python:3.11 make demo"
        yield Finding(severity="fault", check="system", message=message, fix=fix)


def _torch(environment: Environment) -> Iterator[Finding]:
    installed = environment.distributions.get("torch")
    fix = _pip(environment, f"install torch=={TORCH}")
    if installed is None:
        yield Finding(severity="fault", check="torch", message=f"not installed; torch {TORCH} is wanted", fix=fix)
        return
    if _release(installed) != TORCH:
        message = f"torch {installed}; {TORCH} is wanted, the one that fbgemm {FBGEMM} and torchrec {TORCHREC} load on"
        yield Finding(severity="fault", check="torch", message=message, fix=fix)
        return
    probe = environment.probes.get("torch", Probe(loads=False, error="its files are gone"))
    if not probe.loads:
        fix = _pip(environment, f"install --force-reinstall --no-deps torch=={TORCH}")
        yield Finding(severity="fault", check="torch", message=f"torch {installed} does not load: {probe.error}", fix=fix)
        return
    build = f"CUDA {probe.facts['cuda']} build" if probe.facts.get("cuda") else "CPU build"
    yield Finding(severity="ok", check="torch", message=f"torch {installed}, {build}")


def _fbgemm(environment: Environment) -> Iterator[Finding]:
    fault = _fbgemm_fault(environment)
    if fault is not None:
        yield Finding(severity="fault", check="fbgemm", message=fault, fix=_install_fbgemm(environment))
        return
    name, version = next(iter(_fbgemm_builds(environment).items()))
    yield Finding(severity="ok", check="fbgemm", message=f"{name} {version}, {environment.fbgemm_variant} build")


def _fbgemm_builds(environment: Environment) -> dict[str, str]:
    return {
        name: environment.distributions[name] for name in ("fbgemm-gpu-cpu", "fbgemm-gpu") if name in environment.distributions
    }


def _fbgemm_fault(environment: Environment) -> str | None:
    """What is wrong with the installed builds of fbgemm, as far as their packages tell."""
    builds = _fbgemm_builds(environment)
    variant = environment.fbgemm_variant
    if not builds:
        return "not installed" if variant is None else "its files are there, but no package owns them"
    if len(builds) == 2:
        return f"fbgemm-gpu and fbgemm-gpu-cpu are both installed, in one folder: its files are now the {variant} build's"
    ((name, version),) = builds.items()
    if _minor(version) != _minor(FBGEMM):
        wanted = TORCH_OF_FBGEMM.get(_minor(version))
        built_for = f" is built for torch {wanted}" if wanted else ""
        return f"{name} {version}{built_for}; {FBGEMM} is wanted, the one that loads on torch {TORCH}"
    expected = "cpu" if name == "fbgemm-gpu-cpu" else "cuda"
    if variant != expected:
        return f"{name} {version} is the {expected} build, but its files are the {variant} build's: they were overwritten"
    return _fbgemm_load_fault(environment, f"{name} {version}")


def _fbgemm_load_fault(environment: Environment, build: str) -> str | None:
    """What is wrong with a build whose packages look right, by what came of importing it."""
    probe = environment.probes.get("fbgemm_gpu", Probe(loads=False, error="its files are gone"))
    if probe.loads:
        return None
    torch = environment.probes.get("torch", Probe(loads=False))
    if environment.fbgemm_variant == "cuda" and torch.loads and not torch.facts.get("cuda"):
        version = environment.distributions["torch"]
        return f"{build} is the CUDA build, and torch {version} is the CPU build: {probe.error}"
    return f"{build} does not load: {probe.error}"


def _torchrec(environment: Environment) -> Iterator[Finding]:
    installed = environment.distributions.get("torchrec")
    # --no-deps: torchrec asks for fbgemm-gpu, which would overwrite the CPU build.
    fix = _pip(environment, f"install --no-deps torchrec=={TORCHREC}")
    if installed is None:
        yield Finding(severity="fault", check="torchrec", message=f"not installed; {TORCHREC} is wanted", fix=fix)
    elif _minor(installed) != _minor(TORCHREC):
        message = f"torchrec {installed}; {TORCHREC} is wanted: its number is fbgemm's, for torch {TORCH}"
        yield Finding(severity="fault", check="torchrec", message=message, fix=fix)
    else:
        yield Finding(severity="ok", check="torchrec", message=f"torchrec {installed}")


def _torchmetrics(environment: Environment) -> Iterator[Finding]:
    installed = environment.distributions.get("torchmetrics")
    if installed == TORCHMETRICS:
        yield Finding(severity="ok", check="torchmetrics", message=f"torchmetrics {installed}")
        return
    message = f"{installed or 'not installed'}; torchrec {TORCHREC} works with {TORCHMETRICS} only"
    fix = _pip(environment, f"install --no-deps torchmetrics=={TORCHMETRICS}")
    yield Finding(severity="fault", check="torchmetrics", message=message, fix=fix)


def _duckdb(environment: Environment) -> Iterator[Finding]:
    installed = environment.distributions.get("duckdb")
    if installed is not None and installed.startswith("2."):
        yield Finding(severity="ok", check="duckdb", message=f"duckdb {installed}")
        return
    message = f"{installed or 'not installed'}; 2.x is wanted: 1.x has another interface and cannot read 2.x files"
    yield Finding(severity="fault", check="duckdb", message=message, fix=_pip(environment, f"install duckdb=={DUCKDB}"))


def _pyg_lib(environment: Environment) -> Iterator[Finding]:
    install = _pip(environment, f"install --no-deps --find-links {PYG_WHEELS} pyg-lib")
    if "pyg-library" in environment.distributions:
        message = "pyg-library is not PyG's: PyG's own kernels are named pyg-lib, and are not on PyPI"
        fix = f"{_pip(environment, 'uninstall -y pyg-library pyg-lib')} && {install}"
        yield Finding(severity="fault", check="pyg-lib", message=message, fix=fix)
        return
    installed = environment.distributions.get("pyg-lib")
    if installed is None:
        message = "not installed (optional): neighbours are sampled by multifacet's own sampler"
        yield Finding(severity="hint", check="pyg-lib", message=message, fix=install)
        return
    probe = environment.probes.get("pyg_lib", Probe(loads=False, error="its files are gone"))
    if probe.loads:
        yield Finding(severity="ok", check="pyg-lib", message=f"pyg-lib {installed}")
    else:
        message = f"pyg-lib {installed} does not load: {probe.error}; it must be the build for torch {TORCH}"
        fix = f"{_pip(environment, 'uninstall -y pyg-lib')} && {install}"
        yield Finding(severity="fault", check="pyg-lib", message=message, fix=fix)


def _requirements(environment: Environment) -> Iterator[Finding]:
    """Every requirement that has no check of its own."""
    if "multifacet" not in environment.distributions:
        fix = _pip(environment, "install --no-deps --no-build-isolation --editable .")
        yield Finding(severity="fault", check="requirements", message="multifacet itself is not installed", fix=fix)
        return
    others = [
        (requirement, version)
        for requirement, version in environment.unmet
        if not requirement.startswith(("torch==", "torchrec==", "duckdb"))
    ]
    if others:
        message = "; ".join(f"{requirement} is wanted, {version or 'none'} is installed" for requirement, version in others)
        wanted = " ".join(f"'{requirement}'" for requirement, _ in others)
        fix = _pip(environment, f"install --no-deps {wanted}")
        yield Finding(severity="fault", check="requirements", message=message, fix=fix)
    else:
        yield Finding(severity="ok", check="requirements", message="all others met")


def _gpu(environment: Environment) -> Iterator[Finding]:
    if not environment.has_gpu:
        yield Finding(severity="ok", check="gpu", message="none: everything runs on the CPU")
        return
    torch = environment.probes.get("torch", Probe(loads=False))
    install = (
        f"{_pip(environment, f'install torch=={TORCH}')} && {_pip(environment, f'install --no-deps fbgemm-gpu=={FBGEMM}')}"
    )
    if not torch.facts.get("cuda"):
        message = "a GPU is present, but torch is the CPU build and cannot use it"
        fix = f"{_pip(environment, 'uninstall -y torch fbgemm-gpu fbgemm-gpu-cpu')} && {install}"
        yield Finding(severity="warning", check="gpu", message=message, fix=fix)
    elif "fbgemm-gpu" not in environment.distributions:
        message = "torch can use the GPU, but fbgemm-gpu-cpu cannot: embedding tables stay on the CPU"
        yield Finding(severity="warning", check="gpu", message=message, fix=_install_fbgemm(environment))
    elif torch.facts.get("num_gpus", "0") == "0":
        message = f"a GPU is present, but torch's CUDA {torch.facts['cuda']} sees none: the driver is missing or too old"
        yield Finding(severity="warning", check="gpu", message=message, fix="nvidia-smi")
    else:
        yield Finding(severity="ok", check="gpu", message=f"{torch.facts['num_gpus']} seen by torch")


def _machine(environment: Environment) -> Iterator[Finding]:
    gibibytes = environment.memory_bytes / 1024**3
    message = f"{environment.num_cores} cores, {gibibytes:.1f} GiB of memory"
    if environment.memory_bytes < _MIN_MEMORY_BYTES:
        fix = "multifacet demo --quick"
        yield Finding(severity="warning", check="machine", message=f"{message}: the demo wants 4 GiB", fix=fix)
    else:
        yield Finding(severity="ok", check="machine", message=message)

    compiler = environment.c_compiler or "none: only torch.compile would use one"
    yield Finding(severity="ok", check="c compiler", message=compiler)

    if environment.huge_pages == "never":
        fix = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        message = "switched off: random lookups in large tables take 1.4 to 2.9 times as long"
        yield Finding(severity="warning", check="huge pages", message=message, fix=fix)
    elif environment.huge_pages == "madvise" and not environment.thp_mem_alloc:
        message = "on request only, and torch does not ask: lookups in large tables are 1.4 to 2.9 times as fast with them"
        yield Finding(severity="hint", check="huge pages", message=message, fix="export THP_MEM_ALLOC_ENABLE=1")
    else:
        yield Finding(severity="ok", check="huge pages", message=environment.huge_pages or "the kernel does not say")
