"""`multifacet pretrain`: from a store to a snapshot."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from multifacet.pipeline.alignment import write_aligned
from multifacet.pipeline.options import AsOf, CheckpointEvery, Resume, Settings, Since, checkpoint_beside, parse_settings
from multifacet.pipeline.processes import count_processes, join_processes
from multifacet.pipeline.terminal.console import stderr
from multifacet.pipeline.terminal.output import AsJson, emit_json, stdout

if TYPE_CHECKING:
    from collections.abc import Callable

    from multifacet import contrastive, kge
    from multifacet.graphdb import GraphView
    from multifacet.tables import Snapshot
    from multifacet.training import Lifecycle

app = typer.Typer(no_args_is_help=True, help="Pretrain embedding tables on a window of a graph store.")

Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="[STORE] OUTPUT",
        help="Graph store to read, unless plain data are named; and the snapshot to write, a folder that does not exist yet.",
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="Plain data: names of the columns, with commas between them, e.g. head,relation,tail."),
]
Weight = Annotated[str | None, typer.Option(help="Plain data: column that says how often each row stands there.")]
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

AlignTo = Annotated[
    Path | None,
    typer.Option(
        metavar="SNAPSHOT",
        help="Older snapshot in whose basis the tables are written, every score kept, so that what reads the old ones can read "
        "them.",
    ),
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
    paths: Paths,
    triples: Annotated[
        Path | None,
        typer.Option(
            help="Plain triples to learn from, instead of a store: Parquet or CSV with a header, or tab-separated lines."
        ),
    ] = None,
    valid: Annotated[
        Path | None, typer.Option(help="With --triples: triples to validate on; by default some of them are held out.")
    ] = None,
    columns: Columns = None,
    weight: Weight = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="RELATION=HEADS,TAILS",
            help="With --triples: node types that a relation joins; by default all entities are of one.",
        ),
    ] = None,
    duplicates: Annotated[
        Literal["refuse", "drop", "keep"],
        typer.Option(help="With --triples: what becomes of a triple that stands there twice."),
    ] = "refuse",
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
    align_to: AlignTo = None,
    search: Searches = False,
    trials: Trials = 9,
    space: Space = None,
    as_json: AsJson = False,
) -> None:
    """Trains knowledge graph embeddings of all node types, of a window of a store or of plain triples.

    multifacet pretrain kge graph.duckdb snapshot --as-of 2025-01-01

    multifacet pretrain kge --triples train.tsv snapshot

    Started by torchrun, its processes share the tables out and train them together.
    """
    from multifacet import kge
    from multifacet.kernels.memory import keep_freed_memory

    if search and count_processes() > 1:
        msg = f"--search runs in one process, and torchrun has started {count_processes()}: give what a search chose by --set"
        raise typer.BadParameter(msg)
    if not search and (space or trials != 9):
        msg = "--try and --trials say how to search; give --search too"
        raise typer.BadParameter(msg)
    if search and warm_start is not None:
        msg = "--search compares trainings from scratch, so --warm-start is not for it: give what a search chose by --set"
        raise typer.BadParameter(msg)
    store, output = _split_paths(paths, triples, "--triples")
    _refuse_mixed(
        triples, "--triples", {"--as-of": as_of, "--since": since, "--relation": relation, "--search": search or None}
    )
    _refuse_without(
        triples,
        "--triples",
        {"--valid": valid, "--columns": columns, "--weight": weight, "--type": types},
    )
    life = _lifecycle(output, checkpoint, checkpoint_every, warm_start, pull, keep_state, new_rows, resume=resume)
    config = kge.KgeConfig(**parse_settings(settings))
    if config.full_softmax is not None:
        keep_freed_memory()  # each step makes gradients of whole tables anew
    if triples is not None:
        split = kge.read_split(
            triples,
            valid,
            columns=columns.split(",") if columns else ("head", "relation", "tail"),
            weight=weight,
            types=_parse_types(types),
            duplicates=duplicates,
        )
        if valid is None:
            import numpy as np

            split = split.train.hold_out(config.validation, np.random.default_rng(config.seed))
        _pretrain_plain(
            lambda **options: kge.train_triples(split, config, **options),
            split,
            output,
            life,
            align_to,
            unit="edges",
            as_json=as_json,
        )
        return
    assert store is not None  # noqa: S101 - `_split_paths` has looked
    chooser = _Chooser(_parse_space(space), trials) if search else None
    view = {"as_of": as_of, "since": since, "relations": relation}
    _pretrain(kge.train, config, store, output, view, life, align_to, unit="edges", as_json=as_json, chooser=chooser)


@app.command("contrastive")
def pretrain_contrastive(
    paths: Paths,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Plain pairs to learn from, instead of a store: Parquet or CSV with a header, or tab-separated lines."
        ),
    ] = None,
    columns: Columns = None,
    weight: Weight = None,
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
    align_to: AlignTo = None,
    as_json: AsJson = False,
) -> None:
    """Trains user and pin tables by contrast, of a window of a store or of plain pairs.

    multifacet pretrain contrastive graph.duckdb snapshot --as-of 2025-01-01

    multifacet pretrain contrastive --pairs pairs.csv --columns user,item snapshot

    Started by torchrun, its processes share the tables out and train them together.
    """
    from multifacet import contrastive

    store, output = _split_paths(paths, pairs, "--pairs")
    _refuse_mixed(pairs, "--pairs", {"--as-of": as_of, "--since": since, "--relation": relation})
    _refuse_without(pairs, "--pairs", {"--columns": columns, "--weight": weight})
    life = _lifecycle(output, checkpoint, checkpoint_every, warm_start, pull, keep_state, new_rows, resume=resume)
    config = contrastive.ContrastiveConfig(**parse_settings(settings))
    if pairs is not None:
        _pretrain_pairs(pairs, config, columns, weight, output, life, align_to, as_json=as_json)
        return
    assert store is not None  # noqa: S101 - `_split_paths` has looked
    view = {"as_of": as_of, "since": since, "relations": relation}
    _pretrain(contrastive.train, config, store, output, view, life, align_to, unit="pairs", as_json=as_json)


def _split_paths(paths: list[Path], plain: Path | None, option: str) -> tuple[Path | None, Path]:
    """Tell the store from the output."""
    if len(paths) != (1 if plain is not None else 2):
        wanted = (
            "one path, the snapshot to write"
            if plain is not None
            else f"two paths, STORE and OUTPUT, or {option} FILE and OUTPUT"
        )
        msg = f"expected {wanted}; got {' '.join(map(str, paths))}"
        raise typer.BadParameter(msg)
    return (None if plain is not None else paths[0]), paths[-1]


def _refuse_mixed(plain: Path | None, option: str, of_stores: dict[str, Any]) -> None:
    given = [name for name, value in of_stores.items() if value]
    if plain is not None and given:
        msg = f"{', '.join(given)}: of a graph store; leave it out with {option}"
        raise typer.BadParameter(msg)


def _refuse_without(plain: Path | None, option: str, of_plain: dict[str, Any]) -> None:
    given = [name for name, value in of_plain.items() if value]
    if plain is None and given:
        msg = f"{', '.join(given)}: goes with {option}"
        raise typer.BadParameter(msg)


def _parse_types(options: list[str] | None) -> dict[str, tuple[str, str]] | None:
    """Reads `RELATION=HEADS,TAILS` options."""
    types = {}
    for option in options or []:
        relation, _, ends = option.rpartition("=")
        parts = ends.split(",")
        if not relation or len(parts) != 2 or not all(parts):
            msg = f"--type takes RELATION=HEADS,TAILS, such as buys=user,pin; got {option!r}"
            raise typer.BadParameter(msg)
        types[relation] = (parts[0], parts[1])
    return types or None


def _pretrain_plain(
    train: Callable[..., Any],
    source: kge.TripleSplit | contrastive.Pairs,
    output: Path,
    life: dict[str, Any],
    align_to: Path | None,
    *,
    unit: str,
    as_json: bool,
) -> None:
    """Trains on plain triples or pairs and writes the snapshot."""
    from multifacet.pipeline.terminal.training import StopOnSignal, TrainingDisplay
    from multifacet.training import Lifecycle

    with join_processes() as speaks:
        with TrainingDisplay(unit, shown=speaks) as display, StopOnSignal() as stop:
            result = train(progress=display.on_epoch, lifecycle=Lifecycle(**life, on_step=display.on_step, stop=stop.event))
        if not speaks:
            return
        snapshot = write_aligned(output, align_to, lambda path: result.write_snapshot(path, source))
    shutil.rmtree(life["checkpoint"], ignore_errors=True)
    _tell(snapshot, output, as_json=as_json)


def _pretrain_pairs(
    path: Path,
    config: contrastive.ContrastiveConfig,
    columns: str | None,
    weight: str | None,
    output: Path,
    life: dict[str, Any],
    align_to: Path | None,
    *,
    as_json: bool,
) -> None:
    import numpy as np

    from multifacet import contrastive
    from multifacet.contrastive.positives import hold_out_latest

    read = contrastive.read_pairs(path, columns=columns.split(",") if columns else ("user", "item"), weight=weight)
    # Pairs have no times, so that a query's held-out items are a random choice.
    positives, held_out = hold_out_latest(read.positives, config.validation, np.random.default_rng(config.seed))
    pairs = replace(read, positives=positives)
    _pretrain_plain(
        lambda **options: contrastive.train_pairs(pairs, config, held_out=held_out, **options),
        read,
        output,
        life,
        align_to,
        unit="pairs",
        as_json=as_json,
    )


def _tell(snapshot: Snapshot, output: Path, found: kge.Search | None = None, *, as_json: bool) -> None:
    if as_json:
        emit_json({"snapshot": str(output), "fingerprint": snapshot.fingerprint, "metrics": dict(snapshot.metrics)})
        return
    stdout.print(snapshot)
    if found is not None:
        stdout.print(f"chosen of {len(found.trials)} trials: {dict(found.trials[-1].values)}", highlight=False, soft_wrap=True)
    if "drift" in snapshot.metrics:
        from multifacet.pipeline.commands.snapshot import emit_drift

        emit_drift(snapshot.metrics["drift"])


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

        from multifacet import kge

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
    from multifacet.training import WarmStart

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
    window: dict[str, Any],
    life: dict[str, Any],
    align_to: Path | None,
    *,
    unit: str,
    as_json: bool,
    chooser: Callable[[GraphView, Any, Lifecycle, Path], kge.Search] | None = None,
) -> None:
    from multifacet.graphdb import GraphStore
    from multifacet.pipeline.terminal.training import StopOnSignal, TrainingDisplay
    from multifacet.training import Lifecycle

    trials_folder = life["checkpoint"].with_name(f"{life['checkpoint'].name}.search")
    with GraphStore.open(store, read_only=True) as graph, join_processes() as speaks:
        view = graph.view(**window)
        with TrainingDisplay(unit, shown=speaks) as display, StopOnSignal() as stop:
            lifecycle = Lifecycle(**life, on_step=display.on_step, stop=stop.event)
            found = chooser(view, config, lifecycle, trials_folder) if chooser is not None else None
            chosen = found.config if found is not None else config
            result = train(view, chosen, progress=display.on_epoch, lifecycle=lifecycle)
        if not speaks:
            return
        with stderr.status("writing the snapshot"):
            searched = {} if found is None else {"search": found}
            snapshot = write_aligned(output, align_to, lambda path: result.write_snapshot(path, view, **searched))
    # The snapshot stands for good: there is nothing left to go on with.
    for folder in (life["checkpoint"], trials_folder):
        shutil.rmtree(folder, ignore_errors=True)
    _tell(snapshot, output, found, as_json=as_json)
