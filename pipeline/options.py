"""Options that several commands share."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the configuration; the value is JSON or a bare word."),
]


def parse_time(text: str) -> dt.datetime:
    """Reads a time: ISO 8601, in UTC unless it has an offset.

    Example:
        >>> parse_time("2026-07-01T14:00:00+02:00")
        datetime.datetime(2026, 7, 1, 12, 0)
    """
    from multifacet.graphdb.times import utc

    try:
        time = utc(text)
    except ValueError as error:
        msg = f"{text!r} is not a time: expected one such as 2026-07-01, '2026-07-01 12:00:00' or 2026-07-01T14:00:00+02:00"
        raise typer.BadParameter(msg) from error
    assert time is not None  # noqa: S101 - text is some time, or refused
    return time


AsOf = Annotated[
    dt.datetime | None,
    typer.Option(parser=parse_time, metavar="TIME", help="End of the window (UTC unless it has an offset; not within it)."),
]
Since = Annotated[
    dt.datetime | None,
    typer.Option(parser=parse_time, metavar="TIME", help="Start of the window (UTC unless it has an offset; within it)."),
]
CheckpointEvery = Annotated[float, typer.Option(min=0.0, help="Seconds between two checkpoints.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the checkpoint, if there is one: the same command, after a kill or Ctrl-C.")
]


HashRows = Annotated[
    list[str] | None,
    typer.Option(
        "--hash-rows",
        metavar="FEATURE=ROWS[xHASHES]",
        help="Hash a feature's ids into so many rows, in place of a row for each known id; with xHASHES each id reads as many "
        "rows, summed.",
    ),
]
_HASH_ROWS = re.compile(r"(?P<feature>[^=]+)=(?P<rows>[0-9]+)(x(?P<num_hashes>[0-9]+))?")


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


def parse_hash_rows(options: list[str] | None) -> dict[str, dict[str, int]]:
    """Reads `FEATURE=ROWS` and `FEATURE=ROWSxHASHES` options, as the field `hash_rows` of a ranker's configuration.

    Example:
        >>> parse_hash_rows(["pin=20000", "user=5000x2"])
        {'pin': {'rows': 20000, 'num_hashes': 1}, 'user': {'rows': 5000, 'num_hashes': 2}}
    """
    fields: dict[str, dict[str, int]] = {}
    for option in options or []:
        match = _HASH_ROWS.fullmatch(option)
        if match is None:
            msg = f"--hash-rows takes FEATURE=ROWS or FEATURE=ROWSxHASHES, such as pin=20000 or user=5000x2; got {option!r}"
            raise typer.BadParameter(msg)
        if match["feature"] in fields:
            msg = f"--hash-rows names {match['feature']!r} twice"
            raise typer.BadParameter(msg)
        fields[match["feature"]] = {"rows": int(match["rows"]), "num_hashes": int(match["num_hashes"] or 1)}
    return fields
