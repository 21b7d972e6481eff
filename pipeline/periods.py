"""Which periods of a store are learned from, validated on and tested on: as they are named, or by the periods that exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from multifacet.pipeline.options import parse_time

if TYPE_CHECKING:
    import datetime as dt
    from pathlib import Path

    from multifacet.graphdb import Splits

__all__ = ["choose_splits", "infer_splits", "parse_span", "read_periods"]

_PARTS = ("pretraining", "training", "validation", "test")
# The Complete Journey's 36, 10, 2 and 5 of 53 weeks.
_SHARES = {"training": 10 / 53, "validation": 2 / 53, "test": 5 / 53}


def read_periods(store: Path) -> dict[int, dt.datetime]:
    """Gives the start of each period of a store, in the periods' order.

    Raises:
        ValueError: The store has no table `periods`, or it is empty.
    """
    from multifacet.graphdb import GraphStore  # noqa: PLC0415 - it takes time to import
    from multifacet.ranking.examples import load_periods  # noqa: PLC0415 - likewise

    with GraphStore.open(store, read_only=True) as graph:
        rows = sorted((row["period"], row["start_time"]) for row in load_periods(graph).to_pylist())
    if not rows:
        raise ValueError(f"{store}: its table `periods` is empty; it has a row (period, start_time, end_time) for each period")
    return dict(rows)


def infer_splits(periods: dict[int, dt.datetime]) -> Splits:
    """Divides periods as The Complete Journey's are: the first 36 of 53 for pretraining, then 10, 2 and 5.

    Args:
        periods: What `read_periods` gave.

    Raises:
        ValueError: There are fewer than four.

    Example:
        >>> infer_splits(dict.fromkeys(range(1, 54))).training
        (37, 46)
        >>> infer_splits(dict.fromkeys(range(1, 11)))
        Splits(pretraining=(1, 6), training=(7, 8), validation=(9, 9), test=(10, 10))
    """
    from multifacet.graphdb import Splits  # noqa: PLC0415 - it takes time to import

    numbers = list(periods)
    if len(numbers) < len(_PARTS):
        raise ValueError(
            f"the store has the periods {numbers}: pretraining, fine-tuning, validation and test need one each, four at least. "
            "Divide its time into shorter periods"
        )
    lengths = {name: max(1, round(share * len(numbers))) for name, share in _SHARES.items()}
    lengths["training"] = min(lengths["training"], len(numbers) - 1 - lengths["validation"] - lengths["test"])
    spans, stop = {}, len(numbers)
    for name in ("test", "validation", "training"):
        spans[name] = (numbers[stop - lengths[name]], numbers[stop - 1])
        stop -= lengths[name]
    return Splits(pretraining=(numbers[0], numbers[stop - 1]), **spans)


def parse_span(text: str, periods: dict[int, dt.datetime], option: str) -> tuple[int, int]:
    """Reads periods: `37..46` or `37`; or those that begin within times, `2025-01-01..2025-03-01`, the second not within.

    Args:
        text: What was given.
        periods: What `read_periods` gave.
        option: Where it was given, for errors.

    Returns:
        The first and the last period.

    Raises:
        BadParameter: It is neither, there are no such periods, or they do not rise.

    Example:
        >>> import datetime as dt
        >>> months = {month: dt.datetime(2025, month, 1) for month in range(1, 13)}
        >>> parse_span("3..5", months, "--test"), parse_span("2025-10-15..2026-01-01", months, "--test")
        ((3, 5), (11, 12))
    """
    first, dots, last = (part.strip() for part in text.partition(".."))
    if first.isdigit() and (last.isdigit() or not dots):
        span = (int(first), int(last or first))
        missing = [number for number in span if number not in periods]
        if missing:
            msg = f"{option} {text}: the store has no period {missing[0]}; it has {_describe(periods)}"
            raise typer.BadParameter(msg)
        if span[0] > span[1]:
            msg = f"{option} {text}: the first period comes behind the last"
            raise typer.BadParameter(msg)
        return span
    if not dots or not first or not last:
        msg = f"{option} {text!r}: expected periods, such as 37..46 or 37, or times, such as 2025-01-01..2025-03-01"
        raise typer.BadParameter(msg)
    since, until = parse_time(first), parse_time(last)
    within = [number for number, start in periods.items() if since <= start < until]
    if not within:
        msg = f"{option} {text}: no period begins within these times; the store has {_describe(periods)}"
        raise typer.BadParameter(msg)
    return within[0], within[-1]


def choose_splits(
    periods: dict[int, dt.datetime],
    *,
    pretrain: str | None = None,
    finetune: str | None = None,
    validate: str | None = None,
    test: str | None = None,
) -> Splits:
    """Gives the periods of each part, of options, or by the periods that exist.

    Without any option all are inferred. Otherwise pretraining takes all before fine-tuning, and the test all behind validation,
    if they are not named.

    Args:
        periods: What `read_periods` gave.
        pretrain: As `parse_span` reads it.
        finetune: Likewise.
        validate: Likewise.
        test: Likewise.

    Raises:
        BadParameter: An option is not understood, one is missing, or the parts overlap or are not in time's order.
        ValueError: Without options, there are too few periods.
    """
    from multifacet.graphdb import Splits  # noqa: PLC0415 - it takes time to import

    if pretrain is finetune is validate is test is None:
        return infer_splits(periods)
    if finetune is None or validate is None:
        msg = (
            "--finetune and --validate go together, such as --finetune 37..46 --validate 47..48; by default pretraining is on "
            "all periods before and the test on all behind. Without any of them the periods that exist are divided"
        )
        raise typer.BadParameter(msg)
    training, validation = parse_span(finetune, periods, "--finetune"), parse_span(validate, periods, "--validate")
    before = [number for number in periods if number < training[0]]
    behind = [number for number in periods if number > validation[1]]
    if (pretrain is None and not before) or (test is None and not behind):
        missing = "before --finetune, to pretrain on" if not before else "behind --validate, to test on"
        msg = f"the store has no periods {missing}; it has {_describe(periods)}"
        raise typer.BadParameter(msg)
    spans = {
        "--pretrain": (before[0], before[-1]) if pretrain is None else parse_span(pretrain, periods, "--pretrain"),
        "--finetune": training,
        "--validate": validation,
        "--test": (behind[0], behind[-1]) if test is None else parse_span(test, periods, "--test"),
    }
    for (earlier, one), (later, other) in zip(list(spans.items())[:-1], list(spans.items())[1:], strict=True):
        if one[1] >= other[0]:
            msg = (
                f"{earlier} ends with period {one[1]}, and {later} begins with {other[0]}: the parts follow each other in "
                "time, and none overlaps the next"
            )
            raise typer.BadParameter(msg)
    return Splits(**dict(zip(_PARTS, spans.values(), strict=True)))


def _describe(periods: dict[int, dt.datetime]) -> str:
    first, last = min(periods), max(periods)
    return f"{len(periods)} periods, {first} (from {periods[first]}) to {last} (from {periods[last]})"
