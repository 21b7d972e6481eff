"""Options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the configuration; the value is JSON or a bare word."),
]
CheckpointEvery = Annotated[float, typer.Option(min=0.0, help="Seconds between two checkpoints.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the checkpoint, if there is one: the same command, after a kill or Ctrl-C.")
]


def checkpoint_beside(output: Path) -> Path:
    """Gives the folder of the checkpoint of a training that will write `output`."""
    return output.with_name(f"{output.name}.checkpoint")


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """Reads `FIELD=VALUE` options; a value that is not JSON is taken as text."""
    fields = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            msg = f"--set takes FIELD=VALUE, got {setting!r}"
            raise typer.BadParameter(msg)
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            fields[name] = value
    return fields
