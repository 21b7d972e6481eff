"""`multifacet pretrain`: from a store to a snapshot."""

from __future__ import annotations

import datetime as dt
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.console import stderr
from pipeline.options import CheckpointEvery, Resume, Settings, checkpoint_beside, parse_settings
from pipeline.output import AsJson, emit_json, stdout
from pipeline.processes import count_processes, join_processes

if TYPE_CHECKING:
    from collections.abc import Callable

    import contrastive
    import kge
    from graphdb import GraphView
    from tables import Lifecycle

app = typer.Typer(no_args_is_help=True, help="Pretrain embedding tables on a window of a graph store.")

Store = Annotated[Path, typer.Argument(help="Path of the graph store.")]
Output = Annotated[Path, typer.Argument(help="Snapshot to write: a folder that does not exist yet.")]
AsOf = Annotated[dt.datetime | None, typer.Option(help="End of the window (UTC, not within it).")]
Since = Annotated[dt.datetime | None, typer.Option(help="Start of the window (UTC, within it).")]
Relations = Annotated[list[str] | None, typer.Option("--relation", help="Only these relations of the view.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        help="Folder that keeps the training's last state until the snapshot is written; OUTPUT.checkpoint by default.",
    ),
]
WarmStartFrom = Annotated[
    Path | None,
    typer.Option("--warm-start", metavar="SNAPSHOT", help="Older snapshot to start from; ids are matched by external id."),
]
Pull = Annotated[float, typer.Option(min=0.0, help="Warm start: weight of the pull of old rows towards where they were.")]
KeepState = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="Warm start: share of the optimiser's state that old rows keep; less moves them more."),
]
NewRows = Annotated[
    Literal["random", "mean"],
    typer.Option(help="Warm start: new ids begin at random, or around the mean of their type's old rows."),
]

Searches = Annotated[
    bool,
    typer.Option("--search", help="First choose the configuration on validation, by successive halving over a small space."),
]
Trials = Annotated[int, typer.Option(min=1, help="Search: configurations of the first round.")]
Space = Annotated[
    list[str] | None,
    typer.Option(
        "--try",
        metavar="FIELD=[VALUES]",
        help="Search: a field and the JSON list of values to try, instead of the default space; may be given several times.",
    ),
]


@app.command("kge")
def pretrain_kge(
    store: Store,
    output: Output,
    as_of: AsOf = None,
    since: Since = None,
    relation: Relations = None,
    settings: Settings = None,
    checkpoint: Checkpoint = None,
    checkpoint_every: CheckpointEvery = 600.0,
    resume: Resume = False,
    warm_start: WarmStartFrom = None,
    pull: Pull = 0.0,
    keep_state: KeepState = 1.0,
    new_rows: NewRows = "random",
    search: Searches = False,
    trials: Trials = 9,
    space: Space = None,
    as_json: AsJson = False,
) -> None:
    """Trains knowledge graph embeddings of all node types.

    Started by torchrun, its processes share the tables out and train them together.
    """
    import kge
    from tables.allocator import keep_freed_memory

    if search and count_processes() > 1:
        msg = f"--search runs in one process, and torchrun has started {count_processes()}: give what a search chose by --set"
        raise typer.BadParameter(msg)
    if not search and (space or trials != 9):
        msg = "--try and --trials say how to search; give --search too"
        raise typer.BadParameter(msg)
    if search and warm_start is not None:
        msg = "--search compares trainings from scratch, so --warm-start is not for it: give what a search chose by --set"
        raise typer.BadParameter(msg)
    life = _lifecycle(output, checkpoint, checkpoint_every, warm_start, pull, keep_state, new_rows, resume=resume)
    config = kge.KgeConfig(**parse_settings(settings))
    if config.full_softmax is not None:
        keep_freed_memory()  # each step makes gradients of whole tables anew
    chooser = _Chooser(_parse_space(space), trials) if search else None
    _pretrain(kge.train, config, store, output, as_of, since, relation, life, unit="edges", as_json=as_json, chooser=chooser)


@app.command("contrastive")
def pretrain_contrastive(
    store: Store,
    output: Output,
    as_of: AsOf = None,
    since: Since = None,
    relation: Relations = None,
    settings: Settings = None,
    checkpoint: Checkpoint = None,
    checkpoint_every: CheckpointEvery = 600.0,
    resume: Resume = False,
    warm_start: WarmStartFrom = None,
    pull: Pull = 0.0,
    keep_state: KeepState = 1.0,
    new_rows: NewRows = "random",
    as_json: AsJson = False,
) -> None:
    """Trains user and pin tables by contrast.

    Started by torchrun, its processes share the tables out and train them together.
    """
    import contrastive

    life = _lifecycle(output, checkpoint, checkpoint_every, warm_start, pull, keep_state, new_rows, resume=resume)
    config = contrastive.ContrastiveConfig(**parse_settings(settings))
    _pretrain(contrastive.train, config, store, output, as_of, since, relation, life, unit="pairs", as_json=as_json)


class _Chooser:
    """Chooses a configuration by a search whose trials are kept beside the training's checkpoint.

    Args:
        space: field -> values to try; None for the default space.
        num_trials: of the first round.
    """

    def __init__(self, space: dict[str, list[Any]] | None, num_trials: int) -> None:
        self._space = space
        self._num_trials = num_trials

    def __call__(self, view: GraphView, base: kge.KgeConfig, lifecycle: Lifecycle, folder: Path) -> kge.Search:
        import numpy as np

        import kge

        def report(trial: kge.Trial) -> None:
            values = ", ".join(f"{name} {value}" for name, value in trial.values.items())
            line = (
                f"trial of {trial.config.epochs} epochs: filtered MRR {trial.filtered_mrr:.4f} with {values or 'the defaults'}"
            )
            stderr.print(line, highlight=False, soft_wrap=True)

        return kge.search(
            kge.split_view(view, base, np.random.default_rng(base.seed)),
            base,
            self._space,
            num_trials=self._num_trials,
            progress=report,
            lifecycle=replace(lifecycle, checkpoint=folder),
        )


def _parse_space(options: list[str] | None) -> dict[str, list[Any]] | None:
    """Reads `FIELD=[VALUES]` options."""
    if not options:
        return None
    space = parse_settings(options)
    for name, values in space.items():
        if not isinstance(values, list) or not values:
            msg = f"--try takes FIELD=[VALUES] with a JSON list, such as --try 'lr=[0.1, 0.3]'; got {values!r} for {name}"
            raise typer.BadParameter(msg)
    return space


def _lifecycle(
    output: Path,
    checkpoint: Path | None,
    every_seconds: float,
    warm_start: Path | None,
    pull: float,
    keep_state: float,
    new_rows: str,
    *,
    resume: bool,
) -> dict[str, Any]:
    """Reads the options that say how a training begins and is saved; fields of `tables.Lifecycle`."""
    from tables import WarmStart

    if output.exists():
        msg = f"{output} exists; name a folder that does not"
        raise typer.BadParameter(msg)
    if warm_start is None and (pull, keep_state, new_rows) != (0.0, 1.0, "random"):
        msg = "--pull, --keep-state and --new-rows say how to start from an older snapshot; name it with --warm-start"
        raise typer.BadParameter(msg)
    return {
        "checkpoint": checkpoint or checkpoint_beside(output),
        "every_seconds": every_seconds,
        "resume": resume,
        "warm_start": warm_start and WarmStart.load(warm_start, pull=pull, keep_state=keep_state, new_rows=new_rows),
    }


def _pretrain(
    train: Any,
    config: kge.KgeConfig | contrastive.ContrastiveConfig,
    store: Path,
    output: Path,
    as_of: dt.datetime | None,
    since: dt.datetime | None,
    relations: list[str] | None,
    life: dict[str, Any],
    *,
    unit: str,
    as_json: bool,
    chooser: Callable[[GraphView, Any, Lifecycle, Path], kge.Search] | None = None,
) -> None:
    from graphdb import GraphStore
    from pipeline.training import StopOnSignal, TrainingDisplay
    from tables import Lifecycle

    trials_folder = life["checkpoint"].with_name(f"{life['checkpoint'].name}.search")
    with GraphStore.open(store, read_only=True) as graph, join_processes() as speaks:
        view = graph.view(as_of=as_of, since=since, relations=relations)
        with TrainingDisplay(unit, shown=speaks) as display, StopOnSignal() as stop:
            lifecycle = Lifecycle(**life, on_step=display.on_step, stop=stop.event)
            found = chooser(view, config, lifecycle, trials_folder) if chooser is not None else None
            chosen = found.config if found is not None else config
            result = train(view, chosen, progress=display.on_epoch, lifecycle=lifecycle)
        if not speaks:
            return
        with stderr.status("writing the snapshot"):
            searched = {} if found is None else {"search": found}
            snapshot = result.write_snapshot(output, view, **searched)
    # The snapshot stands for good: there is nothing left to go on with.
    for folder in (life["checkpoint"], trials_folder):
        shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        emit_json({"snapshot": str(output), "fingerprint": snapshot.fingerprint, "metrics": dict(snapshot.metrics)})
        return
    stdout.print(snapshot)
    if found is not None:
        stdout.print(f"chosen of {len(found.trials)} trials: {dict(found.trials[-1].values)}", highlight=False, soft_wrap=True)
    if "drift" in snapshot.metrics:
        from pipeline.commands.snapshot import emit_drift

        emit_drift(snapshot.metrics["drift"])
