"""`multifacet renew`: a ranker's tables follow newer snapshots, without a training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from multifacet.pipeline.terminal.output import AsJson, emit_json, emit_rows, stdout


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""
    app.command()(renew)


def renew(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    output: Annotated[Path, typer.Argument(help="The renewed model, a folder that does not exist yet.")],
    tables: Annotated[
        list[str],
        typer.Option(
            metavar="OLD,...,NEW",
            help="A facet's snapshots, with commas between them: the one that the model was trained from, then newer ones, "
            "each aligned to the one before or trained on from it. Once a facet.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Gives a ranker's tables the rows of newer snapshots; new ids get rows. The model above the tables stays as it is.

    multifacet renew ranker renewed --tables monday,friday
    """
    from multifacet import ranking
    from multifacet.tables import Snapshot

    chains = [[Snapshot.load(Path(path)) for path in chain.split(",")] for chain in tables]
    artifact, renewals = ranking.renew_model(model, output, chains)
    rows = [asdict(renewal) for renewal in renewals]
    if as_json:
        emit_json({"model": str(output), "fingerprint": artifact.fingerprint, "tables": rows})
        return
    emit_rows(
        ({"table": row["table"], "moved": row["num_moved"], "new": row["num_placed"], "kept": row["num_kept"]} for row in rows),
        title="rows",
    )
    stdout.print(f"{output}: {artifact.fingerprint[:16]}", soft_wrap=True, highlight=False)
