"""`multifacet train`, `evaluate`, `publish`, `fold` and `verify`: from snapshots to a release."""

from __future__ import annotations

import datetime as dt
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from multifacet.pipeline.example_sources import LabelledRows, StorePeriods, read_query, split_paths
from multifacet.pipeline.options import (
    CheckpointEvery,
    HashRows,
    Resume,
    Settings,
    checkpoint_beside,
    parse_hash_rows,
    parse_settings,
    parse_time,
)
from multifacet.pipeline.terminal.console import stderr
from multifacet.pipeline.terminal.output import AsJson, emit_json, emit_rows, show_bytes, stdout
from multifacet.pipeline.tracking.run import track_made

if TYPE_CHECKING:
    from multifacet import ranking, serving
    from multifacet.tables import Snapshot

TrainPaths = Annotated[
    list[Path],
    typer.Argument(
        metavar="[STORE] OUTPUT",
        help="Graph store to read, unless --examples names labelled rows; and the model to write, a new folder.",
    ),
]
EvaluatePaths = Annotated[
    list[Path],
    typer.Argument(
        metavar="[STORE] MODEL", help="Graph store to read, unless --examples names labelled rows; and a model's folder."
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="FIELD=COLUMN",
        help="Labelled rows: which column is what, e.g. user=user_id, click=clicked, time=shown_at; see LabelledColumns.",
    ),
]
Features = Annotated[
    list[str] | None,
    typer.Option(
        "--feature", metavar="NAME[=COLUMN]", help="Labelled rows: a further id feature, e.g. country; a list has several."
    ),
]
Dense = Annotated[
    list[str] | None, typer.Option(help="Labelled rows: a numeric column that is a feature; may be given several times.")
]
Query = Annotated[str | None, typer.Option(help="Labelled rows: a SQL query of the store that gives them.")]
Model = Annotated[Path, typer.Argument(help="Folder of a trained model.")]
Release = Annotated[Path, typer.Argument(help="Folder of a release.")]
WeightingOption = Annotated[Literal["demand", "uniform"], typer.Option(help="How negatives are drawn.")]
Seed = Annotated[int, typer.Option(help="Seed of the negatives.")]
RecentPinsOption = Annotated[
    int, typer.Option(min=0, help="Recent pins of the user that each example has, for a model with --set sequence=...")
]


def register(app: typer.Typer) -> None:
    """Adds the commands to the root."""
    app.command()(train)
    app.command()(evaluate)
    app.command()(publish)
    app.command()(fold)
    app.command()(verify)


def train(
    paths: TrainPaths,
    examples: Annotated[Path | None, typer.Option(help="Labelled rows to learn from: Parquet, or CSV with a header.")] = None,
    validation_examples: Annotated[Path | None, typer.Option(help="Labelled rows to validate on, of the same columns.")] = None,
    validate_from: Annotated[
        dt.datetime | None,
        typer.Option(
            parser=parse_time,
            metavar="TIME",
            help="Labelled rows: validate on those from this time on (needs --column time=...).",
        ),
    ] = None,
    query: Query = None,
    column: Columns = None,
    feature: Features = None,
    dense: Dense = None,
    snapshot: Annotated[list[Path] | None, typer.Option(help="Snapshot to start tables from, one a facet.")] = None,
    arm: Annotated[
        Literal["no_ids", "scratch", "pretrained"], typer.Option(help="What the id tables start from.")
    ] = "pretrained",
    training: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="FIRST LAST", help="Periods to learn from, such as 37 46; default: 10 of 53, before validation."),
    ] = None,
    validation: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="FIRST LAST", help="Periods to validate on, such as 47 48; default: 2 of 53, before the test."),
    ] = None,
    labels_known_before: Annotated[
        int | None,
        typer.Option(
            help="Leave out training conversions that are known only after this period begins; with the default periods the "
            "test's first."
        ),
    ] = None,
    weighting: WeightingOption = "demand",
    seed: Seed = 0,
    recent_pins: RecentPinsOption = 0,
    hash_rows: HashRows = None,
    settings: Settings = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps the last state until the model is written; OUTPUT.checkpoint by default."),
    ] = None,
    checkpoint_every: CheckpointEvery = 600.0,
    resume: Resume = False,
    logs: Annotated[
        Path | None,
        typer.Option(
            # torchrun takes --logs for an abbreviation of an option of its own.
            "--logs",
            "--log-folder",
            help="Folder for metrics.jsonl, a line a validation, and TensorBoard's files if it is there.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Trains a CTR/CVR model whose tables start from snapshots.

    Of labelled rows, such as a log of one's own:

    multifacet train --examples log.csv --column user=user --column pin=item --column time=shown_at --feature country
    --feature hour --validate-from 2025-03-01 --arm scratch model

    Of a store with the plain tables periods, placements, responses, visits and purchases:

    multifacet train graph.duckdb model --training 37 46 --validation 47 48 --snapshot kge

    Started by torchrun, its processes shard the tables and train them together.
    """
    from multifacet import ranking
    from multifacet.kernels.memory import keep_freed_memory
    from multifacet.pipeline.processes import join_processes
    from multifacet.pipeline.terminal.training import StopOnSignal, TrainingDisplay
    from multifacet.tables import Snapshot
    from multifacet.training import Lifecycle

    store, output = split_paths(paths, examples, "OUTPUT")
    labelled = LabelledRows.of(
        store,
        examples,
        query,
        columns=column,
        features=feature,
        dense=dense,
        validation=validation_examples,
        validate_from=validate_from,
    )
    if labelled is not None and (training or validation or labels_known_before or recent_pins):
        msg = (
            "--training, --validation, --labels-known-before and --recent-pins are of a store's periods; leave them out with "
            "labelled rows"
        )
        raise typer.BadParameter(msg)
    if output.exists():
        msg = f"{output} exists; name a folder that does not"
        raise typer.BadParameter(msg)
    snapshots = [Snapshot.load(path) for path in snapshot or []]
    fields = _parse_fields(settings, hash_rows, recent_pins)
    config = _build_config(arm, snapshots, fields, labelled)
    kept = checkpoint or checkpoint_beside(output)
    keep_freed_memory()
    with join_processes() as speaks:
        if labelled is not None:
            examples_train, examples_valid = labelled.read()
        else:
            assert store is not None  # noqa: S101 - `split_paths` has looked
            source = StorePeriods(store=store, weighting=weighting, seed=seed, recent_pins=recent_pins)
            folder = kept.absolute().parent
            examples_train, examples_valid = source.read(training, validation, labels_known_before, folder=folder, draws=speaks)
        with TrainingDisplay("examples", shown=speaks) as display, StopOnSignal() as stop:
            result = ranking.train(
                examples_train,
                examples_valid,
                config,
                snapshots=snapshots if arm == "pretrained" else [],
                progress=display.on_epoch,
                lifecycle=Lifecycle(
                    checkpoint=kept, every_seconds=checkpoint_every, resume=resume, on_step=display.on_step, stop=stop.event
                ),
                log_folder=logs,
            )
        if not speaks:
            return
        ranking.export_model(output, result)
    # The model stands for good: there is nothing left to go on with.
    shutil.rmtree(kept, ignore_errors=True)
    track_made(output, result.metrics)
    collisions = {feature: asdict(report) for feature, report in result.collisions.items()}
    if as_json:
        document = {"model": str(output), "validation": result.metrics, "config": config.model_dump(mode="json")}
        emit_json({**document, "collisions": collisions})
    else:
        emit_rows([result.metrics], title="validation")
        if collisions:
            emit_rows(({"feature": feature, **report} for feature, report in collisions.items()), title="ids that share rows")


def _parse_fields(settings: list[str] | None, hash_rows: list[str] | None, recent_pins: int) -> dict[str, Any]:
    """Reads the options that are fields of the configuration."""
    fields = parse_settings(settings)
    if recent_pins and fields.get("sequence", "none") == "none":
        msg = "--recent-pins is for a model that reads them: give --set sequence=attention or --set sequence=transformer too"
        raise typer.BadParameter(msg)
    if hash_rows:
        if "hash_rows" in fields:
            msg = "--hash-rows and --set hash_rows=... say the same; give one of them"
            raise typer.BadParameter(msg)
        fields["hash_rows"] = parse_hash_rows(hash_rows)
    return fields


def _build_config(
    arm: ranking.Arm, snapshots: list[Snapshot], fields: dict[str, Any], labelled: LabelledRows | None
) -> ranking.RankingConfig:
    """Fills in the facets of the snapshots, and the features of the labelled rows."""
    from multifacet import ranking

    if arm == "pretrained" and not snapshots:
        msg = "the pretrained arm needs a --snapshot for each facet; or choose --arm scratch"
        raise typer.BadParameter(msg)
    filled: dict[str, Any] = {}
    if arm != "no_ids" and snapshots:
        filled["facets"] = tuple(snapshot.facet for snapshot in snapshots)
    elif arm == "scratch" and labelled is not None:
        filled["facets"] = ("scratch",)
    if arm == "pretrained":
        filled["pretrained_facets"] = filled["facets"]
    if labelled is not None:
        filled["features"] = labelled.id_features
    return ranking.arm_config(arm, **{**filled, **fields})


def evaluate(
    paths: EvaluatePaths,
    examples: Annotated[
        Path | None, typer.Option(help="Labelled rows to score, of the columns that the model was trained on: Parquet or CSV.")
    ] = None,
    query: Query = None,
    scores: Annotated[
        Path | None, typer.Option(help="File to write the scores to, as Parquet: ctr and cvr of each row.")
    ] = None,
    periods: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="FIRST LAST", help="Periods of a store to score, such as 49 53; default: the last 5 of 53."),
    ] = None,
    weighting: WeightingOption = "demand",
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "int4"], typer.Option(help="Precision that the tables' rows go through.")
    ] = "fp32",
    seed: Seed = 2,
    recent_pins: RecentPinsOption = 0,
    as_json: AsJson = False,
) -> None:
    """Scores labelled rows, or the exposures of some periods of a store, and prints metrics with intervals over users.

    multifacet evaluate --examples test.parquet model
    """
    from multifacet import ranking

    _, model = split_paths(paths, examples, "MODEL")
    loaded = ranking.load_model(model)
    if examples is not None or query is not None:
        if periods is not None:
            msg = "--periods are of a store's exposures; leave them out with labelled rows"
            raise typer.BadParameter(msg)
        columns = ranking.LabelledColumns(**_trained_columns(loaded))
        source = examples if examples is not None else read_query(paths[0], query or "")
        rows = ranking.read_examples(source, columns)
    else:
        rows = StorePeriods(store=paths[0], weighting=weighting, seed=seed, recent_pins=recent_pins).read_one(periods)
    with stderr.status("scoring"):
        found, num_bytes = ranking.quantized_scores(loaded, precision, rows)
        metrics = ranking.evaluate(found, rows)
    if scores is not None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"ctr": found[:, 0], "cvr": found[:, 1]}), scores)
    if as_json:
        emit_json({"model": str(model), "precision": precision, "bytes": num_bytes, "metrics": metrics})
    else:
        emit_rows(({"task": task, **row} for task, row in metrics.items()), title=f"{model}, tables {show_bytes(num_bytes)}")


def _trained_columns(model: ranking.ExportedModel) -> dict[str, Any]:
    """Gives the columns that a model was trained on."""
    columns = model.artifact.manifest.get("examples", {}).get("columns")
    if columns is None:
        msg = (
            f"{model.artifact.path} was not trained on labelled rows, so their columns are not known; score it by "
            f"ranking.load_model"
        )
        raise ValueError(msg)
    return dict(columns)


def publish(
    model: Model,
    output: Annotated[Path, typer.Argument(help="Release to write: a folder that does not exist yet.")],
    precision: Annotated[Literal["int4", "int8", "fp16", "fp32"], typer.Option(help="Precision of the tables' rows.")] = "int4",
    shards: Annotated[int, typer.Option(min=1, help="Lookup hosts that the tables' rows are split over.")] = 1,
    layout: Annotated[
        Literal["plain", "placed"],
        typer.Option(help="placed: rows of exact int64 ids stand where their ids say: faster lookups, more memory."),
    ] = "plain",
    base: Annotated[
        Path | None,
        typer.Option(
            help="Write only what differs from this release, in its precision and shards. Servers look for it beside."
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(min=0, max=1, help="With --base: rows that moved by at most this share of their length stay as they are."),
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Cuts a model into its lookup half and its ranker half, under one version."""
    from multifacet import serving

    if base is None:
        if tolerance:
            raise typer.BadParameter("--tolerance compares with a base: give --base RELEASE")
        release = serving.publish(model, output, precision=precision, shards=shards, layout=layout)
    else:
        if (shards, precision, layout) != (1, "int4", "plain"):
            raise typer.BadParameter(
                "--base says the precision, the shards and the layout: leave --precision, --shards and --layout out"
            )
        release = serving.publish_delta(model, output, base, tolerance=tolerance)
    _emit_release(release, as_json=as_json)


def fold(
    release: Release,
    output: Annotated[Path, typer.Argument(help="Release to write: a folder that does not exist yet.")],
    as_json: AsJson = False,
) -> None:
    """Writes the whole release that a delta and its bases are; every score stays what it was, under another version."""
    from multifacet import serving

    _emit_release(serving.fold(release, output), as_json=as_json)


def _emit_release(release: serving.Release, *, as_json: bool) -> None:
    if as_json:
        fields = {"release": str(release.path), "version": release.version, "precision": release.precision}
        emit_json({**fields, "shards": release.num_shards, "base": release.base or None, "bytes": release.lookup_bytes})
    else:
        stdout.print(release)


def verify(
    release: Release,
    half: Annotated[
        Literal["lookup", "ranker"] | None, typer.Option(help="Only this half, on a host that has no other; both by default.")
    ] = None,
    shard: Annotated[
        int | None, typer.Option(min=0, help="With --half lookup: this shard; by default the only one that is there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Reads every file of a release, and of those that it lies over, and compares its checksum; fails by the file's name."""
    from multifacet import serving

    if shard is not None and half != "lookup":
        msg = "--shard goes with --half lookup"
        raise typer.BadParameter(msg)
    opened = serving.Release.open(release, verify=True, half=half, shard=shard)
    if half != "ranker":  # which needs no rows, and so no base
        serving.lineage(opened, verify=True, half=half)
    if as_json:
        sequence = opened.manifest.sequence
        fields = {"release": str(release), "version": opened.version, "precision": opened.precision}
        emit_json(
            {**fields, "sequence": None if sequence is None else sequence.model_dump(mode="json"), "base": opened.base or None}
        )
    else:
        over = f", over {opened.base}" if opened.base else ""
        stdout.print(f"{release}: version {opened.version}{over}, whole and unchanged", soft_wrap=True)
