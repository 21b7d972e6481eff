"""What `multifacet pretrain kge` and `contrastive` ask in common, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

__all__ = [
    "AlignTo",
    "Checkpoint",
    "Columns",
    "KeepState",
    "NewRows",
    "Paths",
    "Preset",
    "Pull",
    "Relations",
    "WarmStartFrom",
    "Weight",
    "refuse_mixed",
    "refuse_without",
    "split_paths",
    "with_preset",
]

Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="[STORE] OUTPUT",
        help="Graph store to read, unless plain data are named; and the snapshot to write, a folder that does not exist yet.",
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="Plain data: names of the columns, with commas between them, e.g. head,relation,tail."),
]
Weight = Annotated[str | None, typer.Option(help="Plain data: column that says how often each row stands there.")]
Relations = Annotated[list[str] | None, typer.Option("--relation", help="Only these relations of the view.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        help="Folder that keeps the training's last state until the snapshot is written; OUTPUT.checkpoint by default.",
    ),
]
WarmStartFrom = Annotated[
    Path | None,
    typer.Option("--warm-start", metavar="SNAPSHOT", help="Older snapshot to start from; ids are matched by external id."),
]
Pull = Annotated[float, typer.Option(min=0.0, help="Warm start: weight of the pull of old rows towards where they were.")]
KeepState = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="Warm start: share of the optimiser's state that old rows keep; less moves them more."),
]
NewRows = Annotated[
    Literal["random", "mean"],
    typer.Option(help="Warm start: new ids begin at random, or around the mean of their type's old rows."),
]

Preset = Annotated[
    str | None,
    typer.Option(help="Start from this preset instead of the defaults; --set changes its fields (see the manual's table)."),
]

AlignTo = Annotated[
    Path | None,
    typer.Option(
        metavar="SNAPSHOT",
        help="Older snapshot in whose basis the tables are written, every score kept, so that what reads the old ones can read "
        "them.",
    ),
]


def split_paths(paths: list[Path], plain: Path | None, option: str) -> tuple[Path | None, Path]:
    """Tell the store from the output."""
    if len(paths) != (1 if plain is not None else 2):
        wanted = (
            "one path, the snapshot to write"
            if plain is not None
            else f"two paths, STORE and OUTPUT, or {option} FILE and OUTPUT"
        )
        msg = f"expected {wanted}; got {' '.join(map(str, paths))}"
        raise typer.BadParameter(msg)
    return (None if plain is not None else paths[0]), paths[-1]


def refuse_mixed(plain: Path | None, option: str, of_stores: dict[str, Any]) -> None:
    """Refuses options of a graph store beside plain data."""
    given = [name for name, value in of_stores.items() if value]
    if plain is not None and given:
        msg = f"{', '.join(given)}: of a graph store; leave it out with {option}"
        raise typer.BadParameter(msg)


def refuse_without(plain: Path | None, option: str, of_plain: dict[str, Any]) -> None:
    """Refuses options of plain data where none are named."""
    given = [name for name, value in of_plain.items() if value]
    if plain is None and given:
        msg = f"{', '.join(given)}: goes with {option}"
        raise typer.BadParameter(msg)


def with_preset(settings: dict[str, Any], preset: str | None) -> dict[str, Any]:
    """Adds the preset that an option names to the settings."""
    if preset is not None and "preset" in settings:
        msg = f"--preset {preset} and --set preset={settings['preset']} both name one; give one of them"
        raise typer.BadParameter(msg)
    return settings if preset is None else {**settings, "preset": preset}
