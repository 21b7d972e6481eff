"""`multifacet pretrain`: from a store to a snapshot."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from multifacet.pipeline.alignment import write_aligned
from multifacet.pipeline.commands.searching import Chooser, Minutes, Seeds, Space, read_search, tell_search
from multifacet.pipeline.options import AsOf, CheckpointEvery, Resume, Settings, Since, checkpoint_beside, parse_settings
from multifacet.pipeline.processes import count_processes, join_processes
from multifacet.pipeline.terminal.console import stderr
from multifacet.pipeline.terminal.output import AsJson, emit_json, stdout
from multifacet.pipeline.tracking.run import track_made

if TYPE_CHECKING:
    from collections.abc import Callable

    from multifacet import contrastive, kge
    from multifacet.graphdb import Feed, GraphView
    from multifacet.tables import Snapshot
    from multifacet.training import Lifecycle, SearchReport

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

Preset = Annotated[
    str | None,
    typer.Option(help="Start from this preset instead of the defaults; --set changes its fields (see the manual's table)."),
]

AlignTo = Annotated[
    Path | None,
    typer.Option(
        metavar="SNAPSHOT",
        help="Older snapshot in whose basis the tables are written, every score kept, so that what reads the old ones can read "
        "them.",
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
    feed: Annotated[
        Path | None,
        typer.Option(
            help="Feed to learn from, instead of a store: `multifacet graph feed` writes it. Memory does not grow with it."
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
    preset: Preset = None,
    search: Minutes = None,
    search_seeds: Seeds = 3,
    space: Space = None,
    as_json: AsJson = False,
) -> None:
    """Trains knowledge graph embeddings of all node types, of a window of a store or of plain triples.

    multifacet pretrain kge graph.duckdb snapshot --as-of 2025-01-01

    multifacet pretrain kge --triples train.tsv snapshot

    multifacet pretrain kge --feed feed snapshot

    Started by torchrun, its processes share the tables out and train them together.
    """
    from multifacet import kge
    from multifacet.kernels.memory import keep_freed_memory

    chooser = read_search(search, search_seeds, space, warm_start)
    store, output = _split_paths(paths, triples or feed, "--triples" if feed is None else "--feed")
    _refuse_mixed(triples, "--triples", {"--as-of": as_of, "--since": since, "--relation": relation})
    _refuse_mixed(feed, "--feed", {"--as-of": as_of, "--since": since, "--relation": relation})
    if feed is not None and (triples is not None or chooser is not None):
        msg = "--triples, --search: they hold all edges in memory, which --feed does not; leave one or the other out"
        raise typer.BadParameter(msg)
    _refuse_without(
        triples,
        "--triples",
        {"--valid": valid, "--columns": columns, "--weight": weight, "--type": types},
    )
    life = _lifecycle(output, checkpoint, checkpoint_every, warm_start, pull, keep_state, new_rows, resume=resume)
    given = parse_settings(settings)
    # Nothing that has to stay as it was is known of plain triples, and a preset that suits them is far ahead of the defaults.
    if triples is not None and warm_start is None and count_processes() == 1 and not {"preset", "full_softmax"} & set(given):
        preset = preset or "auto"
    config = kge.KgeConfig(**_with_preset(given, preset))
    if config.full_softmax is not None or config.preset == "auto" or chooser is not None:
        keep_freed_memory()  # each step makes gradients of whole tables anew
    if feed is not None:
        _pretrain_feed(feed, config, output, life, align_to, as_json=as_json)
        return
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
            lambda chosen, **options: kge.train_triples(split, chosen, **options),
            config,
            split,
            output,
            life,
            align_to,
            unit="edges",
            as_json=as_json,
            choose=partial(chooser, partial(kge.search, split, config)) if chooser else None,
        )
        return
    assert store is not None  # noqa: S101 - `_split_paths` has looked

    def choose(view: GraphView, lifecycle: Lifecycle, folder: Path) -> Any:
        import numpy as np

        assert chooser is not None  # noqa: S101 - given only if there is one
        split = kge.split_view(view, config, np.random.default_rng(config.seed))
        return chooser(partial(kge.search, split, config), lifecycle, folder)

    window = {"as_of": as_of, "since": since, "relations": relation}
    _pretrain(
        *(kge.train, config, store, output, window, life, align_to),
        unit="edges",
        as_json=as_json,
        choose=choose if chooser else None,
    )


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
    preset: Preset = None,
    search: Minutes = None,
    search_seeds: Seeds = 3,
    space: Space = None,
    as_json: AsJson = False,
) -> None:
    """Trains user and pin tables by contrast, of a window of a store or of plain pairs.

    multifacet pretrain contrastive graph.duckdb snapshot --as-of 2025-01-01

    multifacet pretrain contrastive --pairs pairs.csv --columns user,item snapshot

    Started by torchrun, its processes share the tables out and train them together.
    """
    from multifacet import contrastive

    chooser = read_search(search, search_seeds, space, warm_start)
    store, output = _split_paths(paths, pairs, "--pairs")
    _refuse_mixed(pairs, "--pairs", {"--as-of": as_of, "--since": since, "--relation": relation})
    _refuse_without(pairs, "--pairs", {"--columns": columns, "--weight": weight})
    life = _lifecycle(output, checkpoint, checkpoint_every, warm_start, pull, keep_state, new_rows, resume=resume)
    config = contrastive.ContrastiveConfig(**_with_preset(parse_settings(settings), preset))
    if pairs is not None:
        _pretrain_pairs(pairs, config, columns, weight, output, life, align_to, chooser, as_json=as_json)
        return
    assert store is not None  # noqa: S101 - `_split_paths` has looked

    def choose(view: GraphView, lifecycle: Lifecycle, folder: Path) -> Any:
        assert chooser is not None  # noqa: S101 - given only if there is one
        positives, held_out = contrastive.split_view(view, config)
        return chooser(partial(contrastive.search, positives, held_out, config), lifecycle, folder)

    window = {"as_of": as_of, "since": since, "relations": relation}
    _pretrain(
        *(contrastive.train, config, store, output, window, life, align_to),
        unit="pairs",
        as_json=as_json,
        choose=choose if chooser else None,
    )


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


def _with_preset(settings: dict[str, Any], preset: str | None) -> dict[str, Any]:
    if preset is not None and "preset" in settings:
        msg = f"--preset {preset} and --set preset={settings['preset']} both name one; give one of them"
        raise typer.BadParameter(msg)
    return settings if preset is None else {**settings, "preset": preset}


def _pretrain_plain(
    train: Callable[..., Any],
    config: kge.KgeConfig | contrastive.ContrastiveConfig,
    source: kge.TripleSplit | Feed | contrastive.Pairs,
    output: Path,
    life: dict[str, Any],
    align_to: Path | None,
    *,
    unit: str,
    as_json: bool,
    choose: Callable[[Lifecycle, Path], Any] | None = None,
) -> None:
    """Trains on plain triples or pairs, or on a feed, and writes the snapshot."""
    from multifacet.pipeline.terminal.training import StopOnSignal, TrainingDisplay
    from multifacet.training import Lifecycle

    with join_processes() as speaks:
        with TrainingDisplay(unit, shown=speaks) as display, StopOnSignal() as stop:
            lifecycle = Lifecycle(**life, on_step=display.on_step, stop=stop.event)
            found = choose(lifecycle, _trials_folder(life)) if choose is not None else None
            chosen = found.config if found is not None else config
            result = train(chosen, progress=display.on_epoch, lifecycle=lifecycle)
        if not speaks:
            return
        report = found.report if found is not None else None
        snapshot = write_aligned(output, align_to, lambda path: result.write_snapshot(path, source, search=report))
    _clear(life)
    _tell(snapshot, output, report, as_json=as_json)


def _pretrain_feed(
    path: Path, config: kge.KgeConfig, output: Path, life: dict[str, Any], align_to: Path | None, *, as_json: bool
) -> None:
    from multifacet import kge
    from multifacet.graphdb import Feed

    # Each shard is compared with its sha256 as it is read: by one process each, instead of all by all.
    feed = Feed.open(path, verify=False)
    _pretrain_plain(
        lambda chosen, **options: kge.train(feed, chosen, **options),
        config,
        feed,
        output,
        life,
        align_to,
        unit="edges",
        as_json=as_json,
    )


def _pretrain_pairs(
    path: Path,
    config: contrastive.ContrastiveConfig,
    columns: str | None,
    weight: str | None,
    output: Path,
    life: dict[str, Any],
    align_to: Path | None,
    chooser: Chooser | None,
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
        lambda chosen, **options: contrastive.train_pairs(pairs, chosen, held_out=held_out, **options),
        config,
        read,
        output,
        life,
        align_to,
        unit="pairs",
        as_json=as_json,
        choose=partial(chooser, partial(contrastive.search, pairs, held_out, config)) if chooser else None,
    )


def _trials_folder(life: dict[str, Any]) -> Path:
    folder: Path = life["checkpoint"].with_name(f"{life['checkpoint'].name}.search")
    return folder


def _clear(life: dict[str, Any]) -> None:
    """Removes what an interrupted run would go on from: the snapshot stands for good."""
    for folder in (life["checkpoint"], _trials_folder(life)):
        shutil.rmtree(folder, ignore_errors=True)


def _tell(snapshot: Snapshot, output: Path, report: SearchReport | None = None, *, as_json: bool) -> None:
    track_made(output, snapshot.metrics)
    if as_json:
        emit_json({"snapshot": str(output), "fingerprint": snapshot.fingerprint, "metrics": dict(snapshot.metrics)})
        return
    stdout.print(snapshot)
    if report is not None:
        tell_search(report)
    if "drift" in snapshot.metrics:
        from multifacet.pipeline.commands.snapshot import emit_drift

        emit_drift(snapshot.metrics["drift"])


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
    choose: Callable[[GraphView, Lifecycle, Path], Any] | None = None,
) -> None:
    from multifacet.graphdb import GraphStore
    from multifacet.pipeline.terminal.training import StopOnSignal, TrainingDisplay
    from multifacet.training import Lifecycle

    with GraphStore.open(store, read_only=True) as graph, join_processes() as speaks:
        view = graph.view(**window)
        with TrainingDisplay(unit, shown=speaks) as display, StopOnSignal() as stop:
            lifecycle = Lifecycle(**life, on_step=display.on_step, stop=stop.event)
            found = choose(view, lifecycle, _trials_folder(life)) if choose is not None else None
            chosen = found.config if found is not None else config
            result = train(view, chosen, progress=display.on_epoch, lifecycle=lifecycle)
        if not speaks:
            return
        with stderr.status("writing the snapshot"):
            report = found.report if found is not None else None
            snapshot = write_aligned(output, align_to, lambda path: result.write_snapshot(path, view, search=report))
    _clear(life)
    _tell(snapshot, output, report, as_json=as_json)
