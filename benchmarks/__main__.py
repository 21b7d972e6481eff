"""Lists the benchmarks, or runs one."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness.machine import describe_machine, describe_versions
from benchmarks.harness.registry import Benchmark, find_benchmarks
from benchmarks.harness.results import RESULTS, cells, save

QUICK_LIMIT_S = 60

# Plain tracebacks: they are whole, and go into logs.
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    name: Annotated[str | None, typer.Argument(help="The benchmark to run; none: list them.", show_default=False)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small size, within 60 s on two cores.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row on stdout.")] = False,
    output: Annotated[Path | None, typer.Option(help="Also write the rows to this file, one JSON object a line.")] = None,
    keep: Annotated[bool, typer.Option("--save", help="Also write a dated report below docs/results.")] = False,
) -> None:
    """Lists the benchmarks, or runs one. A ratio says how many times better than the peer, whatever the unit."""
    benchmarks = find_benchmarks()
    if name is None:
        _list(list(benchmarks.values()), as_json=as_json)
        return
    if name not in benchmarks:
        message = f"there is no benchmark {name!r}; there are: {', '.join(benchmarks)}"
        raise typer.BadParameter(message, param_hint="NAME")
    benchmark = benchmarks[name]
    started = time.perf_counter()
    if output is None:
        rows = _run(benchmark, quick=quick, streams=[sys.stdout] if as_json else [])
    else:
        with output.open("w") as file:
            rows = _run(benchmark, quick=quick, streams=[file, sys.stdout] if as_json else [file])
    seconds = time.perf_counter() - started
    if not as_json:
        _print_table(rows, benchmark)
    if quick and seconds > QUICK_LIMIT_S:
        _say(f"{name} --quick took {seconds:.0f} s: more than the {QUICK_LIMIT_S} s that it should keep to")
    if keep:
        command = f"python -m benchmarks {name}{' --quick' if quick else ''} --save"
        report = save(rows, help_text=benchmark.help, command=command, seconds=seconds, plot=benchmark.load_plot())
        _say(f"saved {report.relative_to(RESULTS.parents[1])}")


def _run(benchmark: Benchmark, *, quick: bool, streams: list[TextIO]) -> list[dict[str, Any]]:
    """Collect the rows, and write each to the streams as soon as it is there."""
    machine, versions = describe_machine(), describe_versions()
    rows = []
    for row in benchmark.load()(quick):
        document = row.document(benchmark.name, machine, versions)
        document["config"] = {"quick": quick, **document["config"]}
        rows.append(document)
        for stream in streams:
            stream.write(json.dumps(document) + "\n")
            stream.flush()
    if not rows:
        raise RuntimeError(f"{benchmark.name} yielded no row")
    return rows


def _list(benchmarks: list[Benchmark], *, as_json: bool) -> None:
    if as_json:
        for benchmark in benchmarks:
            sys.stdout.write(json.dumps({"benchmark": benchmark.name, "help": benchmark.help}) + "\n")
        return
    width = max(len(benchmark.name) for benchmark in benchmarks)
    for benchmark in benchmarks:
        sys.stdout.write(f"{benchmark.name:{width}}  {benchmark.help}\n")


def _print_table(rows: list[dict[str, Any]], benchmark: Benchmark) -> None:
    table = Table(title=benchmark.help, title_justify="left", box=None, pad_edge=False)
    for column in ("case", "metric"):
        table.add_column(column)
    table.add_column("value", justify="right")
    if any(row["peer"] for row in rows):
        table.add_column("peer")
        table.add_column("peer's value", justify="right")
        table.add_column("better by", justify="right")
    for row in rows:
        table.add_row(*cells(row)[: len(table.columns)])
    Console().print(table)


def _say(message: str) -> None:
    sys.stderr.write(f"benchmarks: {message}\n")


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
