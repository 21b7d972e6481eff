"""`multifacet diagnose`: what is wrong with tables, a model, a release or servers, why, and what mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from multifacet.pipeline.options import Settings, parse_settings
from multifacet.pipeline.terminal.output import AsJson, emit_json, emit_rows, stdout


def diagnose(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="SNAPSHOT|MODEL|RELEASE|PIPELINE.toml|ADDRESS...",
            help="A folder, a pipeline's file (its last gates), or HOST:PORT of the metrics of a deployment's servers.",
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option(help="The older snapshot; of a model the one that serves; of a release the model that it was cut from."),
    ] = None,
    examples: Annotated[Path | None, typer.Option(help="Of a model: labelled rows to measure it by.")] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "int4"], typer.Option(help="Of a model: the precision to be served in.")
    ] = "int4",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Checks each of the known failure signatures, and prints its number, its cause and the line that mends it.

    multifacet diagnose runs/model --examples test.parquet --against runs/serving

    --set changes a limit of the gates, such as --set window_gap_stop_days=60. Ends with 1 if something should stop a release.
    """
    from multifacet.pipeline.daily.judged import last_findings
    from multifacet.pipeline.diagnosis.diagnose import diagnose as find
    from multifacet.pipeline.diagnosis.finding import worst
    from multifacet.pipeline.diagnosis.gates import GatesSection

    gates = GatesSection(**parse_settings(settings))
    if len(targets) == 1 and targets[0].endswith(".toml"):
        findings = last_findings(Path(targets[0]))
    else:
        findings = find(targets, against=against, examples=examples, gates=gates, precision=precision)
    if as_json:
        emit_json({"level": worst(findings), "findings": [found.to_dict() for found in findings]})
    else:
        emit_rows(
            ({"check": found.check, "level": found.level, "found": found.told} for found in findings),
            empty="nothing to check there",
        )
        for found in findings:
            if found.level != "ok":
                for line in (f"{found.level} {found.told}", f"  cause: {found.cause}", f"  mend:  {found.mend}"):
                    stdout.print(line, highlight=False, soft_wrap=True, markup=False)
    if worst(findings) == "stop":
        raise typer.Exit(1)
