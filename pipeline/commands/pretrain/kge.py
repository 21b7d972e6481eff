"""`multifacet pretrain kge`: tables of all node types, from a store or from plain triples."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from multifacet.pipeline.commands.pretrain import options as common
from multifacet.pipeline.commands.pretrain.run import Learning, PretrainRun, open_view
from multifacet.pipeline.commands.pretrain.searching import Minutes, Seeds, Space, read_search
from multifacet.pipeline.options import AsOf, CheckpointEvery, Resume, Settings, Since, parse_settings
from multifacet.pipeline.processes import count_processes
from multifacet.pipeline.terminal.output import AsJson

if TYPE_CHECKING:
    from multifacet import kge
    from multifacet.graphdb import GraphView

__all__ = ["pretrain_kge"]


def pretrain_kge(
    paths: common.Paths,
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
    columns: common.Columns = None,
    weight: common.Weight = None,
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
    """Trains knowledge graph embeddings of all node types, of a window of a store or of plain triples.

    multifacet pretrain kge graph.duckdb snapshot --as-of 2025-01-01

    multifacet pretrain kge --triples train.tsv snapshot

    multifacet pretrain kge --feed feed snapshot

    Started by torchrun, its processes share the tables out and train them together.
    """
    from multifacet import kge
    from multifacet.kernels.memory import keep_freed_memory

    chooser = read_search(search, search_seeds, space, warm_start)
    store, output = common.split_paths(paths, triples or feed, "--triples" if feed is None else "--feed")
    common.refuse_mixed(triples, "--triples", {"--as-of": as_of, "--since": since, "--relation": relation})
    common.refuse_mixed(feed, "--feed", {"--as-of": as_of, "--since": since, "--relation": relation})
    if feed is not None and (triples is not None or chooser is not None):
        msg = "--triples, --search: they hold all edges in memory, which --feed does not; leave one or the other out"
        raise typer.BadParameter(msg)
    common.refuse_without(
        triples,
        "--triples",
        {"--valid": valid, "--columns": columns, "--weight": weight, "--type": types},
    )
    run = PretrainRun.read(
        *(output, checkpoint, checkpoint_every, warm_start, pull, keep_state, new_rows),
        resume=resume,
        align_to=align_to,
        chooser=chooser,
        as_json=as_json,
    )
    given = parse_settings(settings)
    # Nothing that has to stay as it was is known of plain triples, and a preset that suits them is far ahead of the defaults.
    if triples is not None and warm_start is None and count_processes() == 1 and not {"preset", "full_softmax"} & set(given):
        preset = preset or "auto"
    config = kge.KgeConfig(**common.with_preset(given, preset))
    if config.full_softmax is not None or config.preset == "auto" or chooser is not None:
        keep_freed_memory()  # each step makes gradients of whole tables anew
    if feed is not None:
        run.pretrain(config, nullcontext(_of_feed(feed)))
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
        run.pretrain(config, nullcontext(_of_triples(split)))
        return
    assert store is not None  # noqa: S101 - `split_paths` has looked
    window = {"as_of": as_of, "since": since, "relations": relation}
    run.pretrain(config, open_view(store, window, _of_view))


def _of_view(view: GraphView) -> Learning:
    import numpy as np

    from multifacet import kge

    def search(config: kge.KgeConfig, *args: Any, **options: Any) -> Any:
        split = kge.split_view(view, config, np.random.default_rng(config.seed))
        return kge.search(split, config, *args, **options)

    return Learning(train=partial(kge.train, view), search=search, unit="edges", source=view)


def _of_feed(path: Path) -> Learning:
    from multifacet import kge
    from multifacet.graphdb import Feed

    # Each shard is compared with its sha256 as it is read: by one process each, instead of all by all.
    feed = Feed.open(path, verify=False)
    return Learning(train=partial(kge.train, feed), search=None, unit="edges", source=feed)


def _of_triples(split: kge.TripleSplit) -> Learning:
    from multifacet import kge

    return Learning(train=partial(kge.train_triples, split), search=partial(kge.search, split), unit="edges", source=split)


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
