"""`multifacet experiment`: the paper's findings and its open questions, each by one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from multifacet.artifacts import write_file
from multifacet.pipeline.terminal.console import ConsoleWatcher, stderr
from multifacet.pipeline.terminal.output import AsJson, emit_json, emit_rows, stdout

WORK_DIR = Path("runs/experiments")
SPAN = "FIRST..LAST"


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
    pretrain: Annotated[
        str | None, typer.Option(metavar=SPAN, help="With --store: periods to pretrain on; default: all before --finetune.")
    ] = None,
    finetune: Annotated[
        str | None,
        typer.Option(
            metavar=SPAN,
            help="With --store: periods to fine-tune on, such as 37..46, or times such as 2025-01-01..2025-03-01. Without it "
            "the periods that exist are divided as The Complete Journey's are: 36, 10, 2 and 5 of 53.",
        ),
    ] = None,
    validate: Annotated[
        str | None, typer.Option(metavar=SPAN, help="With --store: periods on which settings are chosen, such as 47..48.")
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(metavar=SPAN, help="With --store: periods scored once; default: all behind --validate."),
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
    spans = {"pretrain": pretrain, "finetune": finetune, "validate": validate, "test": test}
    settings = Settings(
        source=_source(source, store, folder, spans, quick=quick),
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
    stdout.print(f"results: {results}\npage: {page}", soft_wrap=True, highlight=False)


def _source(kind: str, store: Path | None, folder: Path | None, spans: dict[str, str | None], *, quick: bool) -> Any:
    from multifacet.pipeline.experiments.source import Source, make_world
    from multifacet.pipeline.periods import choose_splits, read_periods

    if store is None:
        given = [f"--{name}" for name, span in spans.items() if span is not None]
        if given:
            msg = f"{', '.join(given)}: periods of a store of your own; name it with --store"
            raise typer.BadParameter(msg)
        if kind == "completejourney":
            return Source.journey(folder, is_sample=quick)
        return make_world(kind, is_small=quick)
    splits = choose_splits(read_periods(store), **spans)
    if not any(spans.values()):
        told = ", ".join(f"{name} {first}..{last}" for name, (first, last) in splits)
        stderr.print(f"periods of {store}: {told}", highlight=False, soft_wrap=True)
    return Source.of_store(store, splits)
