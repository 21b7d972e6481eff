"""What `--search` does before a pretraining: it chooses the configuration, and tells how."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multifacet.pipeline.processes import count_processes
from multifacet.pipeline.terminal.console import stderr
from multifacet.pipeline.terminal.output import stdout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from multifacet.training import Choice, Lifecycle, Range, Record, SearchReport

__all__ = ["Chooser", "Minutes", "Seeds", "Space", "parse_space", "read_search", "tell_search"]

Minutes = Annotated[
    float | None,
    typer.Option(
        "--search",
        metavar="MINUTES",
        min=0.001,
        help="First choose the configuration on validation, within so many CPU minutes, over all threads.",
    ),
]
Seeds = Annotated[int, typer.Option("--search-seeds", min=0, help="Search: trainings of the winner, whose mean is its figure.")]
Space = Annotated[
    list[str] | None,
    typer.Option(
        "--try",
        metavar="FIELD=[VALUES]|LOW..HIGH",
        help="Search: a field and the JSON list, or the range, of values to try, instead of the default space; may be given "
        "several times.",
    ),
]
_NUM_SEEDS = 3


def parse_space(options: list[str] | None) -> dict[str, list[Any] | Range | Choice] | None:
    """Reads `FIELD=[VALUES]` and `FIELD=LOW..HIGH` options.

    Example:
        >>> parse_space(["lr=0.01..1", "dim=[32, 64]"])
        {'lr': Range(low=0.01, high=1.0, least=0.0, most=inf, whole=False), 'dim': [32, 64]}
    """
    if not options:
        return None
    from multifacet.training import Range

    space: dict[str, list[Any] | Range | Choice] = {}
    for option in options:
        name, _, text = option.partition("=")
        low, dots, high = text.partition("..")
        try:
            if dots:
                space[name] = Range(low=float(low), high=float(high), whole=low.strip().isdigit() and high.strip().isdigit())
                continue
            values = json.loads(text)
        except ValueError as error:
            values = error
        if not name or not isinstance(values, list) or not values:
            msg = (
                f"--try takes FIELD=[VALUES] with a JSON list, such as --try 'lr=[0.1, 0.3]', or FIELD=LOW..HIGH, such as "
                f"--try lr=0.01..1; got {option!r}"
            )
            raise typer.BadParameter(msg)
        space[name] = values
    return space


@dataclass(frozen=True, kw_only=True, slots=True)
class Chooser:
    """How a configuration is chosen; its trials are kept beside the training's checkpoint.

    Attributes:
        minutes: CPU minutes.
        num_seeds: trainings of the winner.
        space: what is tried; None for the default space.
    """

    minutes: float
    num_seeds: int
    space: dict[str, list[Any] | Range | Choice] | None

    def __call__(self, search: Callable[..., Any], lifecycle: Lifecycle, folder: Path) -> Any:
        """Runs a search that all but its budget is known of."""
        return search(
            self.space,
            minutes=self.minutes,
            num_seeds=self.num_seeds,
            progress=_tell_trial,
            lifecycle=replace(lifecycle, checkpoint=folder),
        )


def read_search(minutes: float | None, num_seeds: int, space: list[str] | None, warm_start: Path | None) -> Chooser | None:
    """Reads the options of a search, and refuses what does not go with it.

    Raises:
        typer.BadParameter: They do not go together.
    """
    if minutes is None:
        if space or num_seeds != _NUM_SEEDS:
            msg = "--try and --search-seeds say how to search; give --search MINUTES too"
            raise typer.BadParameter(msg)
        return None
    if count_processes() > 1:
        msg = f"--search runs in one process, and torchrun has started {count_processes()}: give what a search chose by --set"
        raise typer.BadParameter(msg)
    if warm_start is not None:
        msg = "--search compares trainings from scratch, so --warm-start is not for it: give what a search chose by --set"
        raise typer.BadParameter(msg)
    return Chooser(minutes=minutes, num_seeds=num_seeds, space=parse_space(space))


def tell_search(report: SearchReport) -> None:
    """Says what a search has found, what mattered, and what to try next."""
    best, (mean, spread) = report.best, report.figure
    values = ", ".join(f"{name} {value}" for name, value in best.values.items()) or "the defaults"
    lines = [f"chosen of {len(report.records)} trials ({best.family}): {values}"]
    if report.finals:
        lines.append(f"in {len(report.finals)} seeds that chose nothing: {mean:.4f} +- {spread:.4f} on validation")
    if shares := report.importance():
        told = ", ".join(f"{name} {share:.0%}" for name, share in list(shares.items())[:5])
        lines.append(f"what mattered in the first round: {told}")
    for line in [*lines, *report.advice()]:
        stdout.print(line, highlight=False, soft_wrap=True)


def _tell_trial(record: Record) -> None:
    values = ", ".join(f"{name} {value}" for name, value in record.values.items()) or "the defaults"
    stopped = ", stopped early" if record.pruned else ""
    line = f"trial of {record.epochs} epochs{stopped}: {record.score:.4f} with {values} ({record.family}, {record.source})"
    stderr.print(line, highlight=False, soft_wrap=True)
