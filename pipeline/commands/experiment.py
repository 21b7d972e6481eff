"""`multifacet experiment`: the paper's findings and its open questions, each by one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from multifacet.artifacts import write_file
from multifacet.pipeline.terminal.console import ConsoleWatcher
from multifacet.pipeline.terminal.output import AsJson, emit_json, emit_rows, stdout

WORK_DIR = Path("runs/experiments")


def experiment(
    name: Annotated[str, typer.Argument(help="Name of the experiment, or `list` to see them all.")],
    source: Annotated[
        Literal["completejourney", "world", "world-noise", "world-silent"],
        typer.Option(
            help="The data: The Complete Journey, a synthetic world with interests, the same with much noise, or one "
            "without interests, where nothing is to be found."
        ),
    ] = "completejourney",
    store: Annotated[Path | None, typer.Option(help="A store of your own with the ranking tables, instead.")] = None,
    splits: Annotated[
        str | None,
        typer.Option(
            metavar="PERIODS",
            help='With --store: first and last period of pretraining, fine-tuning, validation, test: "1 36 37 46 47 48 49 53".',
        ),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Folder of the raw files, if not the installed package's.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of pretraining, negatives and fits.")] = 5,
    trials: Annotated[int, typer.Option(min=1, max=4, help="Trials on the validation periods, the same for every arm.")] = 4,
    quick: Annotated[
        bool, typer.Option("--quick", help="The same on a small sample, in minutes; its figures say little.")
    ] = False,
    work_dir: Annotated[Path, typer.Option(help="Folder of the stages, results and the page.")] = WORK_DIR,
    as_json: AsJson = False,
) -> None:
    """Runs an experiment: equal trials for every arm, several seeds, paired intervals, a verdict on each claim."""
    from multifacet.pipeline.experiments import CATALOGUE, Settings, run_experiment
    from multifacet.pipeline.experiments.page import write_page
    from multifacet.pipeline.experiments.writing import to_markdown, verdicts
    from multifacet.pipeline.runs.workspace import Workspace

    if name == "list":
        rows = [{"experiment": key, "what": (make.__doc__ or "").strip()} for key, make in CATALOGUE.items()]
        if as_json:
            emit_json(rows)
        else:
            emit_rows(rows)
        return
    if name not in CATALOGUE:
        msg = f"no experiment {name!r}; there are {', '.join(CATALOGUE)}"
        raise typer.BadParameter(msg)
    settings = Settings(
        source=_source(source, store, splits, folder, quick=quick),
        num_seeds=min(seeds, 2) if quick else seeds,
        num_trials=1 if quick else trials,
        **({"num_resamples": 100, "max_epochs": 2, "pretraining_share": 0.25} if quick else {}),
    )
    watcher = ConsoleWatcher()
    workspace = Workspace(work_dir / settings.source.name, watcher)
    try:
        with workspace.locked():
            document = run_experiment(CATALOGUE[name](settings), settings, workspace)
            results = workspace.root / f"results-{name}.json"
            write_file(results, json.dumps(document, indent=1), durable=False)
            write_file(results.with_suffix(".md"), to_markdown(document), durable=False)
            page = write_page(work_dir)
    finally:
        watcher.stop()
    if as_json:
        emit_json(document)
        return
    for task in document["effects"]:
        emit_rows(
            (
                {
                    "arms": f"{row['arm']} - {row['baseline']}",
                    "difference (95% interval)": f"{row['difference']:+.4f} ({row['low']:+.4f}, {row['high']:+.4f})",
                    "p": f"{row['adjusted_p_value']:.3f}",
                    "verdict": row["verdict"],
                }
                for row in verdicts(document, task)
            ),
            title=f"{task.upper()} ROC-AUC, {settings.source.title}, {settings.num_seeds} seeds",
        )
    stdout.print(f"results: {results}\npage: [bold]{page}[/bold]", soft_wrap=True, highlight=False)


def _source(kind: str, store: Path | None, splits: str | None, folder: Path | None, *, quick: bool) -> Any:
    from multifacet.graphdb import Splits
    from multifacet.pipeline.experiments.source import Source, make_world

    if store is None:
        if kind == "completejourney":
            return Source.journey(folder, is_sample=quick)
        return make_world(kind, is_small=quick)
    numbers = (splits or "").split()
    if len(numbers) != 8 or not all(number.isdigit() for number in numbers):
        msg = 'a --store needs --splits of eight periods, such as "1 36 37 46 47 48 49 53"'
        raise typer.BadParameter(msg)
    spans = [(int(numbers[place]), int(numbers[place + 1])) for place in range(0, 8, 2)]
    return Source.of_store(store, Splits(pretraining=spans[0], training=spans[1], validation=spans[2], test=spans[3]))
