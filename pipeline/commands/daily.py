"""`multifacet run`, `runs` and `init`: one file that runs every day."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from multifacet.pipeline.terminal.console import ConsoleWatcher, stderr
from multifacet.pipeline.terminal.output import AsJson, emit_json, emit_rows, stdout

if TYPE_CHECKING:
    from multifacet.pipeline.daily.config import Pipeline
    from multifacet.pipeline.daily.history import RunRecord

File = Annotated[Path, typer.Argument(metavar="PIPELINE.toml", help="The pipeline's file.")]


def _parse_day(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError as error:
        msg = f"{text!r} is no day: expected one such as 2026-11-29"
        raise typer.BadParameter(msg) from error


def register(app: typer.Typer) -> None:
    """Adds the commands to the root."""
    app.command()(run)
    app.command()(runs)
    app.command()(init)


def run(
    pipeline: File,
    day: Annotated[
        dt.date | None,
        typer.Option(parser=_parse_day, metavar="DAY", help="Day whose files are loaded and by whose end all is known."),
    ] = None,
    backfill: Annotated[
        str | None, typer.Option(metavar="DAY..DAY", help="Many days, one after the other, in place of --day.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="With --backfill: days from one to the next.")] = 1,
    until: Annotated[
        Literal["load", "pretrain", "train", "evaluate", "judge", "publish", "roll_out"],
        typer.Option(help="The last step to do, such as load to bring a store up to a day."),
    ] = "roll_out",
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run and why; change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Runs a day: load, pretrain, train, evaluate, gates, publish, roll out. What is done already is found done.

    multifacet run pipeline.toml --day 2026-11-29

    Ends with 1 where a gate stops a release, or a step fails; the same command goes on after a kill.
    """
    from multifacet.kernels.memory import keep_freed_memory
    from multifacet.pipeline.daily.reading import read_pipeline
    from multifacet.pipeline.daily.run import backfill as run_many
    from multifacet.pipeline.daily.run import run_day

    if (day is None) == (backfill is None):
        msg = "give either --day DAY or --backfill DAY..DAY"
        raise typer.BadParameter(msg)
    read = read_pipeline(pipeline)
    first, last = (day, day) if day is not None else _parse_days(str(backfill))
    if plan:
        _show_plans(read, first, last, every, as_json=as_json)
        return
    keep_freed_memory()
    watcher = ConsoleWatcher()
    try:
        if day is not None:
            done = [run_day(read, day, watcher, until=until)]
        else:
            done = list(run_many(read, first, last, watcher, every_days=every, until=until))
    finally:
        watcher.stop()
    _show_runs(done, as_json=as_json, with_steps=day is not None)
    stopped = [record for record in done if record.status == "stopped"]
    for record in stopped:
        reason = f"{record.day} is not released: {record.reason}"
        stderr.print(reason, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if stopped:
        raise typer.Exit(1)


def runs(
    pipeline: File,
    day: Annotated[dt.date | None, typer.Option(parser=_parse_day, metavar="DAY", help="Only the runs of this day.")] = None,
    last: Annotated[int, typer.Option(min=1, help="How many to show, the latest.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Shows what the pipeline's runs did: their days, how they ended, what they measured and what it cost."""
    from multifacet.pipeline.daily.history import History
    from multifacet.pipeline.daily.reading import read_pipeline

    found = History(read_pipeline(pipeline).folder).runs()
    chosen = [record for record in found if day is None or record.day == day][-last:]
    _show_runs(chosen, as_json=as_json, with_steps=day is not None)


def init(
    output: Annotated[Path, typer.Argument(metavar="PIPELINE.toml", help="File to write; it must not exist.")],
    events: Annotated[
        Path | None, typer.Option(help="Parquet or CSV file of events, whose columns say what the pipeline is about.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Column of the user's id.")] = None,
    pin: Annotated[str | None, typer.Option(help="Column of the item's id.")] = None,
    time: Annotated[str | None, typer.Option(help="Column of the event's time.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of 0 and 1: whether the shown item was clicked.")] = None,
    as_json: AsJson = False,
) -> None:
    """Writes a commented pipeline, by the columns of a file of events; on a terminal it asks what it cannot tell."""
    import sys

    from multifacet.pipeline.daily.writing import Answers, guess, write_pipeline

    if events is None:
        if not sys.stdin.isatty():
            msg = "give --events FILE: a Parquet or CSV file of events"
            raise typer.BadParameter(msg)
        events = Path(typer.prompt("Parquet or CSV file of events"))
    guessed = guess(events)
    given = {"user": user, "pin": pin, "time": time, "label": label}
    chosen: dict[str, Any] = {name: value or guessed.get(name) for name, value in given.items()}
    columns = guessed["columns"]
    for name, question in (("user", "who acts"), ("pin", "what is acted on"), ("time", "when"), ("label", "0 or 1: clicked")):
        if chosen[name] is None and sys.stdin.isatty():
            chosen[name] = typer.prompt(f"column of {question}, of {', '.join(columns)}")
    missing = [name for name, value in chosen.items() if value is None]
    if missing:
        msg = f"{events} has the columns {', '.join(columns)}: say which is which by --{missing[0]} COLUMN"
        raise typer.BadParameter(msg)
    unknown = [value for value in chosen.values() if value not in columns]
    if unknown:
        msg = f"{events} has no column {unknown[0]!r}; it has {', '.join(columns)}"
        raise typer.BadParameter(msg)
    written = write_pipeline(
        output, Answers(events=events, dense=tuple(guessed["dense"]), id_types=guessed["id_types"], **chosen)
    )
    if as_json:
        emit_json({"pipeline": str(output), "schema": str(written), **chosen})
    else:
        stdout.print(
            f"wrote {output} and {written}; look through them, then `multifacet run {output} --day ... --plan`", soft_wrap=True
        )


def _parse_days(text: str) -> tuple[dt.date, dt.date]:
    first, dots, last = (part.strip() for part in text.partition(".."))
    if not dots:
        msg = f"--backfill takes DAY..DAY, such as 2026-11-01..2026-11-29; got {text!r}"
        raise typer.BadParameter(msg)
    return _parse_day(first), _parse_day(last)


def _show_plans(pipeline: Pipeline, first: dt.date, last: dt.date, every: int, *, as_json: bool) -> None:
    from dataclasses import asdict

    from multifacet.pipeline.daily.run import plan_day

    documents = []
    while first <= last:
        steps = [asdict(step) for step in plan_day(pipeline, first, ConsoleWatcher())]
        documents.append({"day": first.isoformat(), "steps": steps})
        if not as_json:
            emit_rows(steps, title=f"plan of {first}")
        first += dt.timedelta(days=every)
    if as_json:
        emit_json(documents)


def _show_runs(records: list[RunRecord], *, as_json: bool, with_steps: bool) -> None:
    documents = [record.to_dict() for record in records]
    if as_json:
        emit_json(documents)
        return
    emit_rows(
        (
            {
                "run": document["run"],
                "day": document["day"],
                "status": document["status"],
                "ctr roc auc": _auc(document),
                "release": _release(document)[:12],
                "warnings": _num_warnings(document),
                "seconds": round(document["seconds"], 1),
                "cpu seconds": round(document["cpu_seconds"], 1),
                "reason": document["reason"],
            }
            for document in documents
        ),
        empty="no runs yet",
    )
    if with_steps:
        for document in documents:
            steps = (
                {
                    "step": step["name"],
                    "done": "found" if step["reused"] else "made",
                    "why": step["why"],
                    "seconds": step["seconds"],
                    "stage": step["stage"],
                }
                for step in document["steps"]
            )
            emit_rows(steps, title=f"run {document['run']} of {document['day']}")


def _result(document: dict[str, Any], name: str) -> dict[str, Any]:
    found = [step["result"] for step in document["steps"] if step["name"] == name]
    return found[-1] if found else {}


def _auc(document: dict[str, Any]) -> float | None:
    metrics: dict[str, Any] = _result(document, "evaluation").get("metrics", {})
    found: float | None = metrics.get("ctr", {}).get("roc_auc")
    return found


def _release(document: dict[str, Any]) -> str:
    return str(_result(document, "release").get("version", ""))


def _num_warnings(document: dict[str, Any]) -> int:
    return len(_result(document, "gates").get("warnings", []))
