"""Options that several commands share."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the configuration; the value is JSON or a bare word."),
]


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
