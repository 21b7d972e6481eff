"""`multifacet pretrain`: from a store to a snapshot."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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


@app.command("kge")
def pretrain_kge(
    store: Store,
    output: Output,
    as_of: AsOf = None,
    since: Since = None,
    relation: Relations = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Trains knowledge graph embeddings of all node types."""
    import kge

    _pretrain(kge.train, kge.KgeConfig(**parse_settings(settings)), store, output, as_of, since, relation, as_json=as_json)


@app.command("contrastive")
def pretrain_contrastive(
    store: Store,
    output: Output,
    as_of: AsOf = None,
    since: Since = None,
    relation: Relations = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Trains user and pin tables by contrast."""
    import contrastive

    config = contrastive.ContrastiveConfig(**parse_settings(settings))
    _pretrain(contrastive.train, config, store, output, as_of, since, relation, as_json=as_json)


def _pretrain(
    train: Any,
    config: kge.KgeConfig | contrastive.ContrastiveConfig,
    store: Path,
    output: Path,
    as_of: dt.datetime | None,
    since: dt.datetime | None,
    relations: list[str] | None,
    *,
    as_json: bool,
) -> None:
    from graphdb import GraphStore

    if output.exists():
        msg = f"{output} exists; name a folder that does not"
        raise typer.BadParameter(msg)
    with GraphStore.open(store, read_only=True) as graph, stderr.status("pretraining") as status:
        view = graph.view(as_of=as_of, since=since, relations=relations)

        def progress(row: Mapping[str, float]) -> None:
            line = ", ".join(f"{name} {value:,.4g}" for name, value in row.items())
            if stderr.is_terminal:
                status.update(line)
            else:
                stderr.print(line, highlight=False, soft_wrap=True)

        result = train(view, config, progress=progress)
        snapshot = result.write_snapshot(output, view)
    if as_json:
        emit_json({"snapshot": str(output), "fingerprint": snapshot.fingerprint, "metrics": result.metrics})
    else:
        stdout.print(snapshot)
