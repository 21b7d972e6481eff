"""Seconds and peak memory of each stage of `multifacet demo`, from nothing.

The demo runs as its users run it: as a command, in a process of its own, in a folder that is empty before, so that no
stage of an earlier run is used again. There is no peer.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import LOWER, Metric, Row

SECONDS = Metric(name="seconds", unit="s", better=LOWER)
PEAK_MEMORY = Metric(name="peak_rss", unit="bytes", better=LOWER)


def run(quick: bool) -> Iterator[Row]:
    """Run the whole demo once; logs go to stderr.

    Raises:
        FileNotFoundError: If multifacet is not installed in this environment.
        subprocess.CalledProcessError: If the demo fails.
        RuntimeError: If a stage was not run but taken from an earlier run.
    """
    # Not resolved: in a virtual environment the interpreter is a link, and the command lies beside the link.
    command = shutil.which("multifacet", path=str(Path(sys.executable).parent))
    if command is None:
        raise FileNotFoundError("no multifacet command beside this Python; install the project: make venv")
    with tempfile.TemporaryDirectory(prefix="demo_stages-") as work_dir:
        arguments = ["demo", "--json", "--work-dir", work_dir, *(["--quick"] if quick else [])]
        finished = subprocess.run([command, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    document = json.loads(finished.stdout)
    stages = document["stages"]
    if reused := [stage["name"] for stage in stages if stage["reused"]]:
        raise RuntimeError(f"stages {', '.join(reused)} were taken from an earlier run, so their times are not this run's")
    for stage in stages:
        yield Row(case=stage["name"], metric=SECONDS, value=stage["seconds"])
        yield Row(case=stage["name"], metric=PEAK_MEMORY, value=stage["peak_rss_bytes"])
    # Stages that do not wait for each other run at once: the whole takes less than their sum.
    yield Row(case="whole run", metric=SECONDS, value=document["seconds"])
