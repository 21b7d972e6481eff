"""`multifacet snapshot`: look at embedding snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.output import AsJson, emit_json, emit_rows, show_bytes, stdout

app = typer.Typer(no_args_is_help=True, help="Show and verify embedding snapshots.")

Path_ = Annotated[Path, typer.Argument(metavar="SNAPSHOT", help="Folder of a snapshot.")]


@app.command()
def show(path: Path_, as_json: AsJson = False) -> None:
    """Prints what a snapshot holds and where it came from."""
    from tables import Snapshot

    snapshot = Snapshot.load(path, verify=False)
    if as_json:
        emit_json({"fingerprint": snapshot.fingerprint, **snapshot.manifest})
        return
    stdout.print(snapshot)
    emit_rows({"node type": name, "rows": snapshot.num_rows(name), "dim": snapshot.dim(name)} for name in snapshot.node_types)
    for title in ("window", "parents", "metrics", "config"):
        stdout.print(f"[bold]{title}[/bold]")
        stdout.print_json(data=snapshot.manifest[title])


@app.command()
def verify(path: Path_, as_json: AsJson = False) -> None:
    """Reads every file of a snapshot and compares its checksum; fails by the file's name."""
    from tables import Snapshot

    snapshot = Snapshot.load(path, verify=True)
    num_bytes = sum(entry["bytes"] for entry in snapshot.manifest["files"].values())
    if as_json:
        emit_json({"fingerprint": snapshot.fingerprint, "files": len(snapshot.manifest["files"]), "bytes": num_bytes})
    else:
        stdout.print(f"{path}: {len(snapshot.manifest['files'])} files, {show_bytes(num_bytes)}, whole and unchanged")
