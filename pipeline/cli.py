"""The `multifacet` command."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.logging import RichHandler
from rich.markup import escape

from multifacet.pipeline.commands import (
    admin,
    bench_serving,
    daily,
    data,
    diagnose,
    experiment,
    graph,
    pretrain,
    ranking,
    renew,
    rollout,
    serve,
    sharing,
    snapshot,
)
from multifacet.pipeline.terminal.console import ConsoleWatcher, stderr
from multifacet.pipeline.terminal.output import AsJson, emit_json, stdout
from multifacet.pipeline.tracking.run import end_tracking, run_name, start_tracking
from multifacet.serving.tracing import TraceFormatter

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A graph-centric embedding engine: interaction logs to pretrained tables to rankers served in INT4.",
)
app.add_typer(data.app, name="data")
app.add_typer(graph.app, name="graph")
app.add_typer(pretrain.app, name="pretrain")
app.add_typer(snapshot.app, name="snapshot")
ranking.register(app)
renew.register(app)
daily.register(app)
app.command()(diagnose.diagnose)
sharing.register(app)
app.add_typer(rollout.app, name="rollout")
app.add_typer(admin.app, name="admin")
app.add_typer(serve.app, name="serve")
app.command()(experiment.experiment)
app.command("bench-serving")(bench_serving.bench_serving)


def _show_version(asked: bool) -> None:
    if asked:
        stdout.print(f"multifacet {importlib.metadata.version('multifacet')}", highlight=False)
        raise typer.Exit


@app.callback()
def configure(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what the library does.")] = False,
    show_version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and exit.")
    ] = False,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PLACE",
            help="Tell the run to mlflow:URI or tensorboard:FOLDER (the extra `track`): multifacet --track PLACE train ...",
        ),
    ] = None,
) -> None:
    """Sets up logging: to stderr, quiet on a terminal, where live lines tell the progress."""
    if stderr.is_terminal:
        handler: logging.Handler = RichHandler(console=stderr, show_path=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(TraceFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if verbose or not stderr.is_terminal:
        logging.getLogger("multifacet").setLevel(logging.INFO)  # not the root: libraries log there as they load
    if track and os.environ.get("RANK", "0") == "0":  # of processes that train together, one tells
        start_tracking(track, run_name(context.invoked_subcommand or "multifacet"))


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Run on the sample that comes with the project.")] = False,
    work_dir: Annotated[
        Path | None, typer.Option(help="Folder of the stages and the report; runs/demo or runs/demo-quick by default.")
    ] = None,
    source: Annotated[Path | None, typer.Option(help="Folder of the raw files, if not the installed package's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Runs the main job on real data: graph, pretraining, ranking, INT4 release, serving, report."""
    from multifacet.pipeline.demo import DemoConfig, run_demo

    config = DemoConfig.quick() if quick else DemoConfig()
    if source is not None:
        config = config.model_copy(update={"source": source})
    watcher = ConsoleWatcher()
    try:
        folder = work_dir or Path("runs") / ("demo-quick" if quick else "demo")
        document = run_demo(config, folder, watcher, quick=quick)
    finally:
        watcher.stop()
    if as_json:
        emit_json(document)
    else:
        from multifacet.pipeline.report.summary import print_summary

        print_summary(document)


@app.command("compile")
def compile_ahead() -> None:
    """Compiles the kernels that a first run would wait for, on all cores; an image's build may do so."""
    from multifacet.pipeline.compiling import compile_kernels

    started = time.perf_counter()
    with stderr.status("compiling kernels") as status:

        def say(name: str) -> None:
            status.update(f"compiling kernels: {name}")
            if not stderr.is_terminal:
                stderr.print(f"compiling kernels: {name}", markup=False, highlight=False)

        compile_kernels(say)
    stderr.print(f"kernels are compiled ({time.perf_counter() - started:.0f} s)", highlight=False)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Checks the environment and prints, for each fault, the line that fixes it."""
    from multifacet.pipeline.doctor.doctor import doctor_command

    raise typer.Exit(doctor_command(as_json=as_json))


@app.command()
def report(
    work_dir: Annotated[Path, typer.Argument(help="Folder of a run, with its results.json.")] = Path("runs/demo"),
    output: Annotated[Path | None, typer.Option(help="Page to write; report.html in the folder by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Writes the page of a demo, or of all experiments in a folder, again from the results."""
    import json

    from multifacet.pipeline.experiments.page import find_results, write_page
    from multifacet.pipeline.report.page import render

    results = work_dir / "results.json"
    if results.is_file():
        page = output or work_dir / "report.html"
        page.write_text(render(json.loads(results.read_text(encoding="utf-8"))), encoding="utf-8")
    elif find_results(work_dir):
        page = write_page(work_dir, output)
    else:
        msg = (
            f"{work_dir} holds neither a demo's results.json nor experiments' results; run `multifacet demo` or "
            "`multifacet experiment NAME` first, or name the folder of a finished run"
        )
        raise FileNotFoundError(msg)
    if as_json:
        emit_json({"report": str(page)})
    else:
        stdout.print(str(page), soft_wrap=True, highlight=False)


def main() -> None:
    """Runs the command; exit codes are 0 for success, 1 for failure and 2 for wrong usage."""
    try:
        _call()
    except KeyboardInterrupt:
        stderr.print("interrupted; run the same command again to go on", highlight=False)
        sys.exit(130)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ImportError) and "pip install" not in str(error):
            raise  # no extra that is missing, but a defect
        # What a user can mend is said in a line; anything else is a defect and shows its traceback.
        if logging.getLogger().isEnabledFor(logging.DEBUG):
            raise
        stderr.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _call() -> None:
    """Calls the command, and ends what it told to trackers."""
    try:
        app()
    except SystemExit as ended:
        end_tracking(failed=bool(ended.code))
        raise
    except BaseException:
        end_tracking(failed=True)
        raise
    end_tracking(failed=False)


if __name__ == "__main__":
    main()
