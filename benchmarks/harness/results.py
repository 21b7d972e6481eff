"""Results on file: a dated report to read, and its rows to compute with."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def save(
    rows: Sequence[Mapping[str, Any]],
    *,
    help_text: str,
    command: str,
    seconds: float,
    folder: Path = RESULTS,
    plot: Callable[[Sequence[Mapping[str, Any]], Path], None] | None = None,
) -> Path:
    """Write `<date>-<name>.md` and `.jsonl`, and `.png` where there is a plot; a later run of the same day replaces them.

    Args:
        rows: Documents of rows, all of one benchmark and one run.
        help_text: What the benchmark measures.
        command: The line that was run.
        seconds: How long the whole run took.
        folder: Where to write.
        plot: Draws the rows to a file.

    Returns:
        The path of the report.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("the benchmark yielded no row: there is nothing to save")
    date = dt.datetime.now(dt.UTC).date().isoformat()
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / f"{date}-{rows[0]['benchmark']}.md"
    report.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = _report(rows, date, help_text, command, seconds)
    if plot is not None:
        plot(rows, report.with_suffix(".png"))
        text += f"\n![{help_text}]({report.stem}.png)\n"
    report.write_text(text)
    return report


def format_value(value: float | None, unit: str = "") -> str:
    """Four significant digits, bytes in binary units, and no exponent where a person reads it."""
    if value is None:
        return ""
    if unit == "bytes":
        for prefix, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if abs(value) >= size:
                return f"{value / size:.1f} {prefix}"
        return f"{value:.0f} B"
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{number} {unit}".strip()


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row for a table with the columns case, metric, value, peer, peer's value, ratio."""
    return [
        str(row["case"]),
        str(row["metric"]),
        format_value(row["value"], row["unit"]),
        row["peer"] or "",
        format_value(row["peer_value"], row["unit"]),
        "" if row["ratio"] is None else f"{row['ratio']:.2f}x",
    ]


def _report(rows: Sequence[Mapping[str, Any]], date: str, help_text: str, command: str, seconds: float) -> str:
    first = rows[0]
    # What all rows share is told once; a row's own configuration is in the .jsonl.
    shared = {key: value for key, value in first["config"].items() if all(row["config"].get(key) == value for row in rows)}
    lines = [
        f"# {first['benchmark']}, {date}",
        "",
        help_text,
        "",
        f"    {command}",
        "",
        "| case | metric | value | peer | peer's value | better by |",
        "| --- | --- | ---: | --- | ---: | ---: |",
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
        "",
        f"The run took {seconds:.0f} s. The rows, each with its configuration, are in `{date}-{first['benchmark']}.jsonl`.",
        "",
        *_table("machine", first["machine"]),
        *_table("version of", first["versions"]),
        *_table("configuration", shared),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _table(title: str, fields: Mapping[str, Any]) -> list[str]:
    if not fields:
        return []
    return [f"| {title} | |", "| --- | --- |", *(f"| {key} | {_plain(key, value)} |" for key, value in fields.items()), ""]


def _plain(key: str, value: object) -> str:
    if key.endswith("_bytes") and isinstance(value, int):
        return format_value(value, "bytes")
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
