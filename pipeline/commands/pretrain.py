"""`multifacet pretrain`: from a store to a snapshot."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.console import stderr
from pipeline.options import Settings, parse_settings
from pipeline.output import AsJson, emit_json, stdout

if TYPE_CHECKING:
    import contrastive
    import kge

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
CheckpointEvery = Annotated[float, typer.Option(min=0.0, help="Seconds between two checkpoints.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the checkpoint, if there is one: the same command, after a kill or Ctrl-C.")
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
    as_json: AsJson = False,
) -> None:
    """Trains knowledge graph embeddings of all node types."""
    import kge

    life = _lifecycle(output, checkpoint, checkpoint_every, warm_start, pull, keep_state, new_rows, resume=resume)
    config = kge.KgeConfig(**parse_settings(settings))
    _pretrain(kge.train, config, store, output, as_of, since, relation, life, unit="edges", as_json=as_json)


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
    """Trains user and pin tables by contrast."""
    import contrastive

    life = _lifecycle(output, checkpoint, checkpoint_every, warm_start, pull, keep_state, new_rows, resume=resume)
    config = contrastive.ContrastiveConfig(**parse_settings(settings))
    _pretrain(contrastive.train, config, store, output, as_of, since, relation, life, unit="pairs", as_json=as_json)


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
        "checkpoint": checkpoint or output.with_name(f"{output.name}.checkpoint"),
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
) -> None:
    from graphdb import GraphStore
    from pipeline.training import StopOnSignal, TrainingDisplay
    from tables import Lifecycle

    with GraphStore.open(store, read_only=True) as graph:
        view = graph.view(as_of=as_of, since=since, relations=relations)
        with TrainingDisplay(unit) as display, StopOnSignal() as stop:
            lifecycle = Lifecycle(**life, on_step=display.on_step, stop=stop.event)
            result = train(view, config, progress=display.on_epoch, lifecycle=lifecycle)
        with stderr.status("writing the snapshot"):
            snapshot = result.write_snapshot(output, view)
    # The snapshot stands for good: there is nothing left to go on with.
    shutil.rmtree(life["checkpoint"], ignore_errors=True)
    if as_json:
        emit_json({"snapshot": str(output), "fingerprint": snapshot.fingerprint, "metrics": dict(snapshot.metrics)})
        return
    stdout.print(snapshot)
    if "drift" in snapshot.metrics:
        from pipeline.commands.snapshot import emit_drift

        emit_drift(snapshot.metrics["drift"])
