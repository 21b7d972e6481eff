"""`multifacet push` and `multifacet pull`: artifacts elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multifacet.pipeline.terminal.output import AsJson, emit_json, stdout

_ADDRESS = "hf://OWNER/NAME, or a folder's URI: s3://BUCKET/KEY, gs://, hdfs://, file://, a path."


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(push)
    app.command()(pull)


def push(
    path: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder of a snapshot, a release, an index or a model.")],
    address: Annotated[str, typer.Argument(help=_ADDRESS)],
    license: Annotated[str, typer.Option(help="License in a snapshot's card, such as apache-2.0.")] = "other",  # noqa: A002
    card: Annotated[bool, typer.Option(help="Put a snapshot's card beside it.")] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Replace another artifact that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copies an artifact to a hub, an object store or another folder: whole or not at all."""
    from multifacet.artifacts import Artifact
    from multifacet.pipeline.sharing.card import make_card
    from multifacet.pipeline.sharing.transfer import push as push_artifact
    from multifacet.tables import Snapshot

    text = None
    if card and Artifact.open(path, verify=False).kind == "snapshot":
        text = make_card(Snapshot.load(path, verify=False), name=path.resolve().name, license=license)
    fingerprint = push_artifact(path, address, card=text, replace=replace)
    if as_json:
        emit_json({"address": address, "fingerprint": fingerprint})
    else:
        stdout.print(f"{address} holds {fingerprint[:12]}", highlight=False, soft_wrap=True)


def pull(
    address: Annotated[str, typer.Argument(help=_ADDRESS)],
    path: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder to write; it must not exist.")],
    fingerprint: Annotated[str | None, typer.Option(help="What it must be, or how that begins.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an artifact that is there, in one step.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copies an artifact from elsewhere, and checks every file against its manifest before it appears."""
    from multifacet.pipeline.sharing.transfer import pull as pull_artifact

    artifact = pull_artifact(address, path, fingerprint=fingerprint, replace=replace)
    if as_json:
        emit_json({"path": str(path), "kind": artifact.kind, "fingerprint": artifact.fingerprint})
    else:
        stdout.print(
            f"{path}: {artifact.kind} {artifact.fingerprint[:12]}, whole and unchanged", highlight=False, soft_wrap=True
        )
