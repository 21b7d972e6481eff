"""`multifacet train`, `evaluate`, `publish` and `verify`: from snapshots to a release."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.console import stderr
from pipeline.options import CheckpointEvery, HashRows, Resume, Settings, checkpoint_beside, parse_hash_rows, parse_settings
from pipeline.output import AsJson, emit_json, emit_rows, show_bytes, stdout

if TYPE_CHECKING:
    import ranking

Store = Annotated[Path, typer.Argument(help="Graph store with the ranking tables (periods, placements, responses, ...).")]
Model = Annotated[Path, typer.Argument(help="Folder of a trained model.")]
Release = Annotated[Path, typer.Argument(help="Folder of a release.")]
Span = Annotated[tuple[int, int], typer.Option(metavar="FIRST LAST", help="First and last period.")]
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
    app.command()(verify)


def train(
    store: Store,
    output: Annotated[Path, typer.Argument(help="Model to write: a folder that does not exist yet.")],
    snapshot: Annotated[list[Path] | None, typer.Option(help="Snapshot to start tables from, one a facet.")] = None,
    arm: Annotated[
        Literal["no_ids", "scratch", "pretrained"], typer.Option(help="What the id tables start from.")
    ] = "pretrained",
    training: Span = (37, 46),
    validation: Span = (47, 48),
    labels_known_before: Annotated[
        int | None, typer.Option(help="Leave out training conversions that are known only after this period begins.")
    ] = 49,
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

    Started by torchrun, its processes shard the tables and train them together.
    """
    import ranking
    from pipeline.processes import join_processes
    from pipeline.training import StopOnSignal, TrainingDisplay
    from tables import Lifecycle, Snapshot
    from tables.allocator import keep_freed_memory

    if output.exists():
        msg = f"{output} exists; name a folder that does not"
        raise typer.BadParameter(msg)
    if arm == "pretrained" and not snapshot:
        msg = "the pretrained arm needs a --snapshot for each facet; or choose --arm scratch"
        raise typer.BadParameter(msg)
    fields = parse_settings(settings)
    if recent_pins and fields.get("sequence", "none") == "none":
        msg = "--recent-pins is for a model that reads them: give --set sequence=attention or --set sequence=transformer too"
        raise typer.BadParameter(msg)
    if hash_rows:
        if "hash_rows" in fields:
            msg = "--hash-rows and --set hash_rows=... say the same; give one of them"
            raise typer.BadParameter(msg)
        fields["hash_rows"] = parse_hash_rows(hash_rows)
    snapshots = [Snapshot.load(path) for path in snapshot or []]
    facets = {} if arm == "no_ids" or not snapshots else {"facets": tuple(item.facet for item in snapshots)}
    if arm == "pretrained":
        facets["pretrained_facets"] = facets["facets"]
    config = ranking.arm_config(arm, **{**facets, **fields})
    kept = checkpoint or checkpoint_beside(output)
    keep_freed_memory()
    with join_processes() as speaks:
        examples_train, examples_valid = _draw_examples(
            store,
            (training, validation),
            labels_known_before,
            weighting,
            seed,
            ranking.FeatureConfig(recent_pins=recent_pins),
            folder=kept.absolute().parent,
            draws=speaks,
        )
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
    collisions = {feature: asdict(report) for feature, report in result.collisions.items()}
    if as_json:
        document = {"model": str(output), "validation": result.metrics, "config": config.model_dump(mode="json")}
        emit_json({**document, "collisions": collisions})
    else:
        emit_rows([result.metrics], title="validation")
        if collisions:
            emit_rows(({"feature": feature, **report} for feature, report in collisions.items()), title="ids that share rows")


def _draw_examples(
    store: Path,
    spans: tuple[tuple[int, int], tuple[int, int]],
    labels_known_before: int | None,
    weighting: ranking.Weighting,
    seed: int,
    features: ranking.FeatureConfig,
    *,
    folder: Path,
    draws: bool,
) -> list[ranking.Examples]:
    """Draws training's and validation's examples; of several processes, one does, for all."""
    import ranking
    from graphdb import GraphStore
    from pipeline.processes import count_processes
    from pipeline.stages import period_start

    drawn: list[Any] = [None, None]
    if draws:
        with GraphStore.open(store, read_only=True) as graph, stderr.status("drawing examples"):
            known = period_start(graph, labels_known_before) if labels_known_before is not None else None
            drawn = [
                ranking.build_examples(
                    graph,
                    range(first, last + 1),
                    weighting=weighting,
                    seed=seed + number,
                    labels_known_before=before,
                    features=features,
                )
                for number, ((first, last), before) in enumerate(zip(spans, (known, None), strict=True))
            ]
    return [ranking.share_examples(part, folder) for part in drawn] if count_processes() > 1 else drawn


def evaluate(
    store: Store,
    model: Model,
    periods: Span = (49, 53),
    weighting: WeightingOption = "demand",
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "int4"], typer.Option(help="Precision that the tables' rows go through.")
    ] = "fp32",
    seed: Seed = 2,
    recent_pins: RecentPinsOption = 0,
    as_json: AsJson = False,
) -> None:
    """Scores the exposures of some periods and prints metrics with intervals over users."""
    import ranking
    from graphdb import GraphStore

    with GraphStore.open(store, read_only=True) as graph, stderr.status("scoring"):
        examples = ranking.build_examples(
            graph,
            range(periods[0], periods[1] + 1),
            weighting=weighting,
            seed=seed,
            features=ranking.FeatureConfig(recent_pins=recent_pins),
        )
        scores, num_bytes = ranking.quantized_scores(model, precision, examples)
        metrics = ranking.evaluate(scores, examples)
    if as_json:
        emit_json({"model": str(model), "precision": precision, "bytes": num_bytes, "metrics": metrics})
    else:
        emit_rows(({"task": task, **row} for task, row in metrics.items()), title=f"{model}, tables {show_bytes(num_bytes)}")


def publish(
    model: Model,
    output: Annotated[Path, typer.Argument(help="Release to write: a folder that does not exist yet.")],
    precision: Annotated[Literal["int4", "int8", "fp16", "fp32"], typer.Option(help="Precision of the tables' rows.")] = "int4",
    shards: Annotated[int, typer.Option(min=1, help="Lookup hosts that the tables' rows are split over.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Cuts a model into its lookup half and its ranker half, under one version."""
    import serving

    release = serving.publish(model, output, precision=precision, shards=shards)
    if as_json:
        fields = {"release": str(output), "version": release.version, "precision": release.precision}
        emit_json({**fields, "shards": release.num_shards})
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
    """Reads every file of a release and compares its checksum; fails by the file's name."""
    import serving

    if shard is not None and half != "lookup":
        msg = "--shard goes with --half lookup"
        raise typer.BadParameter(msg)
    opened = serving.Release.open(release, verify=True, half=half, shard=shard)
    if as_json:
        sequence = opened.manifest.sequence
        fields = {"release": str(release), "version": opened.version, "precision": opened.precision}
        emit_json({**fields, "sequence": None if sequence is None else sequence.model_dump(mode="json")})
    else:
        stdout.print(f"{release}: version {opened.version}, whole and unchanged", soft_wrap=True)
