"""What the gates of a pipeline found last."""

from __future__ import annotations

from pathlib import Path

from multifacet.pipeline.daily.history import History
from multifacet.pipeline.daily.reading import read_pipeline
from multifacet.pipeline.diagnosis.finding import Finding

__all__ = ["last_findings"]


def last_findings(path: Path) -> list[Finding]:
    """Gives what the gates of a pipeline's last run found.

    Args:
        path: The pipeline's file.

    Raises:
        ValueError: No run has come to its gates.
    """
    runs = History(read_pipeline(path).folder).runs()
    judged = [step for run in runs for step in run.steps if step.name == "gates"]
    if not judged:
        raise ValueError(f"{path}: no run has come to its gates; `multifacet run {path} --day ...` first")
    return [Finding(**fields) for fields in judged[-1].result["findings"]]
