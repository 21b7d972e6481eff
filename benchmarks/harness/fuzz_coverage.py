"""Fuzzes one target by coverage: ``python -m benchmarks.harness.fuzz_coverage TARGET CORPUS [libFuzzer's options]``.

Needs atheris (the group `fuzz` of pyproject.toml). A crash ends it, and its input is written as libFuzzer's options say.
"""

from __future__ import annotations

import importlib
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import atheris

from benchmarks.harness.fuzzing import targets

# By name, and not with whatever they import: numba compiles the kernels' bytecode, and must find it as it was written.
_READERS = (
    "multifacet.artifacts.artifact",
    "multifacet.artifacts.manifest",
    "multifacet.artifacts.safetensors_file",
    "multifacet.serving.lookup.server",
    "multifacet.serving.ranker.request_ids",
    "multifacet.serving.release.manifest",
    "multifacet.serving.release.parts",
    "multifacet.serving.release.release",
    "multifacet.serving.wire.frames",
    "multifacet.serving.wire.packing",
    "multifacet.tables.ids.id_map",
    "multifacet.tables.snapshot",
    "multifacet.tables.snapshot_table",
)


def main() -> None:
    """Fuzz the target that is named until libFuzzer is told to stop."""
    name, corpus, *options = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    for reader in _READERS:
        for function in _functions(importlib.import_module(reader)):
            atheris.instrument_func(function)
    with tempfile.TemporaryDirectory(prefix="multifacet-fuzz-") as folder:
        target = targets(Path(folder))[name]
        Path(corpus).mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
        atheris.Setup([sys.argv[0], corpus, *options], lambda data: _try_one(target.try_one, data))
        atheris.Fuzz()


def _try_one(try_one: Any, data: bytes) -> None:
    try_one(data)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """The functions of a module, and of its classes, that are written there."""
    for found in list(vars(module).values()):
        members = list(vars(found).values()) if isinstance(found, type) else [found]
        for member in members:
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                yield function


if __name__ == "__main__":
    main()
