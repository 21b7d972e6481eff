"""Writing a window of a store as a feed, for trainings that do not hold it in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multifacet.pipeline.commands.graph.options import MinDegree, Relations, Store, SurfaceOption, open_window
from multifacet.pipeline.options import AsOf, Since
from multifacet.pipeline.terminal.console import stderr
from multifacet.pipeline.terminal.output import AsJson, emit_json, stdout


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(feed)


def feed(
    store: Store,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the feed; one that is finished is left as it is.")],
    shards: Annotated[
        int, typer.Option(min=1, help="Parts: several times as many as processes will train. One is held in memory at a time.")
    ] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order, and of what is held out.")] = 0,
    hold_out: Annotated[int, typer.Option(min=0, help="Pairs to hold out for validation, of all relations together.")] = 0,
    max_fraction: Annotated[float, typer.Option(help="Most of one relation's pairs that may be held out.")] = 0.05,
    memory_limit: Annotated[
        str | None, typer.Option(help="What DuckDB may take, e.g. 1GiB; by default most of the machine's memory.")
    ] = None,
    since: Since = None,
    as_of: AsOf = None,
    relation: Relations = None,
    surface: SurfaceOption = None,
    min_degree: MinDegree = None,
    as_json: AsJson = False,
) -> None:
    """Writes a window as shards in random order, which trainings read part by part (`pretrain kge --feed`)."""
    from multifacet.graphdb import GraphStore, write_feed

    with GraphStore.open(store, read_only=True, memory_limit=memory_limit) as graph, stderr.status("writing the feed"):
        view = open_window(graph, since=since, as_of=as_of, relations=relation, surface=surface, min_degree=min_degree)
        written = write_feed(view, to, num_shards=shards, seed=seed, hold_out=hold_out, max_fraction=max_fraction)
    if as_json:
        emit_json(
            {
                "folder": str(to),
                "shards": written.num_shards,
                "edges": written.num_edges,
                "held_out": written.num_held_out,
                "fingerprint": written.fingerprint,
                "window": written.window,
            }
        )
        return
    stdout.print(written)
