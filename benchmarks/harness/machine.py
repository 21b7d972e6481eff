"""What a measurement was made on: the machine, without its name, and the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch",
    "torchrec",
    "fbgemm-gpu-cpu",
    "fbgemm-gpu",
    "torch-geometric",
    "pyg-lib",
    "duckdb",
    "numba",
    "numpy",
    "pyarrow",
    "grpcio",
)


def describe_machine() -> dict[str, Any]:
    """CPU model, cores that this process may use, memory, system, huge pages and GPUs."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.machine()}",
        "huge_pages": _huge_pages(),
        "gpus": _gpus(),
    }


def describe_versions() -> dict[str, str]:
    """Versions of Python, of what does the work, and of this project, with its commit if it is a checkout."""
    versions = {"python": platform.python_version(), "multifacet": _own_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_model() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        match = None
    return match.group(1) if match else platform.processor() or platform.machine()


def _huge_pages() -> str:
    try:
        setting = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "unknown"
    match = re.search(r"\[(\w+)\]", setting)
    return match.group(1) if match else "unknown"


def _gpus() -> list[str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=name", "--format=csv,noheader"]
    listing = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return [line.strip() for line in listing.stdout.splitlines()] if listing.returncode == 0 else []


def _own_version() -> str:
    try:
        version = importlib.metadata.version("multifacet")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    root = Path(__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return version
    command = [git, "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    described = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return f"{version}+g{described.stdout.strip()}" if described.returncode == 0 else version
