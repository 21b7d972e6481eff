"""The doctor: says what is wrong with this installation, and for each fault the one line that mends it."""

from __future__ import annotations

import dataclasses
import json
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from multifacet.pipeline.diagnosis import Finding, Severity, diagnose
from multifacet.pipeline.environment import inspect_environment

_COLOURS: dict[Severity, str] = {"ok": "green", "hint": "cyan", "warning": "yellow", "fault": "bold red"}


def doctor_command(*, as_json: bool = False) -> int:
    """Inspect this installation and print the findings: a table, or one JSON document.

    Args:
        as_json: Write `{"ok", "findings", "environment"}` to stdout instead of the table.

    Returns:
        The exit code: 1 if there is a fault, 0 if there is none (hints and warnings do not count).
    """
    environment = inspect_environment()
    findings = diagnose(environment)
    num_faults = sum(finding.severity == "fault" for finding in findings)
    if as_json:
        document = {
            "ok": num_faults == 0,
            "findings": [dataclasses.asdict(finding) for finding in findings],
            "environment": dataclasses.asdict(environment),
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        _print_table(findings, num_faults)
    return 1 if num_faults else 0


def _print_table(findings: list[Finding], num_faults: int) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False)
    for title in ("", "check", "found"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        colour = _COLOURS[finding.severity]
        table.add_row(Text(finding.severity, style=colour), finding.check, Text(finding.message))
    console.print(table)
    for finding in findings:
        if finding.fix is not None:
            # Not wrapped: a fix is copied as one line.
            console.print(Text(f"\n# {finding.check} ({finding.severity})"), soft_wrap=True)
            console.print(Text(finding.fix), soft_wrap=True)
    verdict = "nothing is wrong" if not num_faults else f"{num_faults} fault{'s' * (num_faults > 1)}, from the first down"
    console.print(Text(f"\n{verdict}", style=_COLOURS["fault" if num_faults else "ok"]))
