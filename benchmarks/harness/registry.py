"""Which benchmarks there are: the modules of the folder `benchmarks`, and of its folders but this one."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.row import Row

FOLDER = Path(__file__).resolve().parents[1]
HARNESS = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark that is known but not imported yet: some import half of the field.

    Attributes:
        name: Its module's name.
        help: The first line of its module's docstring.
        package: The package that it is a module of.
    """

    name: str
    help: str
    package: str = "benchmarks"

    def load(self) -> Callable[[bool], Iterator[Row]]:
        """Import the module and return its `run`.

        Raises:
            TypeError: If the module has no `run(quick)`.
        """
        run = getattr(importlib.import_module(f"{self.package}.{self.name}"), "run", None)
        if not callable(run) or list(inspect.signature(run).parameters) != ["quick"]:
            raise TypeError(f"{self.package}.{self.name} should define run(quick: bool) -> Iterator[Row]")
        return run  # type: ignore[no-any-return]

    def load_plot(self) -> Callable[[Sequence[Mapping[str, Any]], Path], None] | None:
        """Import the module and return its `plot(rows, path)`, if it has one."""
        plot: Callable[[Sequence[Mapping[str, Any]], Path], None] | None
        plot = getattr(importlib.import_module(f"{self.package}.{self.name}"), "plot", None)
        return plot


def find_benchmarks(folder: Path = FOLDER) -> dict[str, Benchmark]:
    """The benchmarks of a folder and of its packages by name, in order; read without importing them.

    Raises:
        ValueError: If a module has no docstring to tell what it measures, or two have one name.
    """
    benchmarks: dict[str, Benchmark] = {}
    packages = [found.parent for found in folder.glob("*/__init__.py") if found.parent != HARNESS]
    for path in sorted((path for part in (folder, *packages) for path in part.glob("[!_]*.py")), key=lambda path: path.stem):
        docstring = ast.get_docstring(ast.parse(path.read_text(), filename=str(path)))
        if not docstring:
            raise ValueError(f"{path}: a benchmark's docstring should tell in its first line what it measures")
        if path.stem in benchmarks:
            raise ValueError(f"{path}: there is a benchmark {path.stem!r} already, in {benchmarks[path.stem].package}")
        package = ".".join((folder.name, *path.parent.relative_to(folder).parts))
        benchmarks[path.stem] = Benchmark(name=path.stem, help=docstring.splitlines()[0], package=package)
    return benchmarks
