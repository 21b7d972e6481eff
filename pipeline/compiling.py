"""Compiles what a first run would wait for: numba keeps its kernels beside the source, for all later processes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from multifacet.pipeline.demo import SAMPLE, DemoConfig, run_demo

if TYPE_CHECKING:
    from collections.abc import Callable

    from multifacet.pipeline.runs.workspace import Stage, Watcher

_NUM_HOUSEHOLDS = 40
#: Table of the sample -> which of its rows belong to the households that are kept.
_ROWS = {
    "transactions": "household_id IN (SELECT household_id FROM households)",
    "campaigns": "household_id IN (SELECT household_id FROM households)",
    "promotions": "store_id IN (SELECT store_id FROM bought)",
}


def compile_kernels(say: Callable[[str], None]) -> None:
    """Runs the whole flow on a few households of the sample, on all cores, and throws away what it makes.

    Args:
        say: Told what the kernels are compiled for, one after the other.

    Raises:
        RuntimeError: The flow failed; the message has what it said.
    """
    # A process of its own: what it says of so little data is of no use to anybody.
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", "multifacet.pipeline.compiling"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as process:
            assert process.stdout is not None  # noqa: S101 - asked for above
            last = ""
            for line in process.stdout:
                if line != last:  # a stage is told of when it is asked for, and when a process takes it
                    say(line.strip())
                last = line
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"the kernels could not be compiled; a run will try again. What it said:\n{said.read()}")


class _Told:
    """Prints the names of stages."""

    def started(self, name: str) -> None:
        print(name, flush=True)  # noqa: T201 - the other process reads it

    def progressed(self, name: str, message: str) -> None:
        """Nothing: so little data is through at once."""

    def finished(self, stage: Stage) -> None:
        """Nothing: the next stage tells of it."""


def _run_few(watcher: Watcher) -> None:
    with tempfile.TemporaryDirectory(prefix="multifacet-compile-") as name:
        source = Path(name) / "source"
        source.mkdir()
        _write_few(source)
        quick = DemoConfig.quick()
        config = quick.model_copy(
            update={
                "source": source,
                "kge": quick.kge.model_copy(update={"epochs": 1, "max_edges_per_relation": 2000}),
                "contrastive": quick.contrastive.model_copy(update={"epochs": 1}),
                "ranking": quick.ranking | {"max_epochs": 1},
                "num_seeds": 1,
                "num_resamples": 20,
            }
        )
        run_demo(config, Path(name) / "run", watcher, quick=True)


def _write_few(folder: Path) -> None:
    """Writes the sample's tables, of few households."""
    with duckdb.connect() as database:
        for file in SAMPLE.glob("*.parquet"):
            database.execute(f"CREATE VIEW {file.stem} AS FROM '{file}'")
        database.execute(
            "CREATE TABLE households AS SELECT DISTINCT household_id FROM transactions ORDER BY household_id "
            f"LIMIT {_NUM_HOUSEHOLDS}"
        )
        database.execute(f"CREATE VIEW bought AS FROM transactions WHERE {_ROWS['transactions']}")
        for file in SAMPLE.glob("*.parquet"):
            rows = f"SELECT * FROM {file.stem} WHERE {_ROWS.get(file.stem, 'true')}"
            database.execute(f"COPY ({rows}) TO '{folder / file.name}' (FORMAT parquet)")


if __name__ == "__main__":
    _run_few(_Told())
