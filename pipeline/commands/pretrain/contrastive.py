"""`multifacet pretrain contrastive`: user and pin tables, from a store or from plain pairs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multifacet.pipeline.commands.pretrain import options as common
from multifacet.pipeline.commands.pretrain.run import Learning, PretrainRun, open_view
from multifacet.pipeline.commands.pretrain.searching import Minutes, Seeds, Space, read_search
from multifacet.pipeline.options import AsOf, CheckpointEvery, Resume, Settings, Since, parse_settings
from multifacet.pipeline.terminal.output import AsJson

if TYPE_CHECKING:
    from multifacet import contrastive
    from multifacet.graphdb import GraphView

__all__ = ["pretrain_contrastive"]


def pretrain_contrastive(
    paths: common.Paths,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Plain pairs to learn from, instead of a store: Parquet or CSV with a header, or tab-separated lines."
        ),
    ] = None,
    columns: common.Columns = None,
    weight: common.Weight = None,
    as_of: AsOf = None,
    since: Since = None,
    relation: common.Relations = None,
    settings: Settings = None,
    checkpoint: common.Checkpoint = None,
    checkpoint_every: CheckpointEvery = 600.0,
    resume: Resume = False,
    warm_start: common.WarmStartFrom = None,
    pull: common.Pull = 0.0,
    keep_state: common.KeepState = 1.0,
    new_rows: common.NewRows = "random",
    align_to: common.AlignTo = None,
    preset: common.Preset = None,
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
    store, output = common.split_paths(paths, pairs, "--pairs")
    common.refuse_mixed(pairs, "--pairs", {"--as-of": as_of, "--since": since, "--relation": relation})
    common.refuse_without(pairs, "--pairs", {"--columns": columns, "--weight": weight})
    run = PretrainRun.read(
        *(output, checkpoint, checkpoint_every, warm_start, pull, keep_state, new_rows),
        resume=resume,
        align_to=align_to,
        chooser=chooser,
        as_json=as_json,
    )
    config = contrastive.ContrastiveConfig(**common.with_preset(parse_settings(settings), preset))
    if pairs is not None:
        run.pretrain(config, nullcontext(_of_pairs(pairs, config, columns, weight)))
        return
    assert store is not None  # noqa: S101 - `split_paths` has looked
    window = {"as_of": as_of, "since": since, "relations": relation}
    run.pretrain(config, open_view(store, window, _of_view))


def _of_view(view: GraphView) -> Learning:
    from multifacet import contrastive

    def search(config: contrastive.ContrastiveConfig, *args: Any, **options: Any) -> Any:
        return contrastive.search(*contrastive.split_view(view, config), config, *args, **options)

    return Learning(train=partial(contrastive.train, view), search=search, unit="pairs", source=view)


def _of_pairs(path: Path, config: contrastive.ContrastiveConfig, columns: str | None, weight: str | None) -> Learning:
    import numpy as np

    from multifacet import contrastive
    from multifacet.contrastive.positives import hold_out_latest

    read = contrastive.read_pairs(path, columns=columns.split(",") if columns else ("user", "item"), weight=weight)
    # Pairs have no times, so that a query's held-out items are a random choice.
    positives, held_out = hold_out_latest(read.positives, config.validation, np.random.default_rng(config.seed))
    pairs = replace(read, positives=positives)
    return Learning(
        train=partial(contrastive.train_pairs, pairs, held_out=held_out),
        search=partial(contrastive.search, pairs, held_out),
        unit="pairs",
        source=read,
    )
