"""Frames, messages, manifests, id maps and snapshots from bytes that are led by coverage: crashes, and inputs a second.

Each target (see `benchmarks.harness.fuzzing`) is fuzzed in a process of its own by libFuzzer, through atheris. It has to
refuse what is wrong in the library's own words; any other exception is a crash. Frames are answered twice, by the compiled
kernel and by the general way, and the rows of both must be the same bytes. MULTIFACET_FUZZ_S says how many seconds each target
gets (3,600; 3 when quick). With MULTIFACET_FUZZ_CORPUS=FOLDER the inputs that reached something new stay there, and the next
run begins with them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import HIGHER, LOWER, Metric, Row
from benchmarks.harness.fuzzing import TARGETS

_CRASHES = Metric(name="crashes", unit="", better=LOWER)
_INPUTS = Metric(name="inputs", unit="", better=HIGHER)
_RATE = Metric(name="inputs_per_s", unit="1/s", better=HIGHER)
_COVERED = Metric(name="edges_covered", unit="", better=HIGHER)
_MOST_BYTES = 8192


def run(quick: bool) -> Iterator[Row]:
    """Two of the targets for 3 s each when quick, else all for an hour each."""
    seconds = int(os.environ.get("MULTIFACET_FUZZ_S", "3" if quick else "3600"))
    with tempfile.TemporaryDirectory(prefix="multifacet-fuzz-") as name:
        kept = Path(os.environ.get("MULTIFACET_FUZZ_CORPUS", name))
        for target in ("frames", "manifests") if quick else TARGETS:
            yield from _fuzz(target, kept / target.replace(" ", "-"), seconds)


def _fuzz(target: str, corpus: Path, seconds: int) -> Iterator[Row]:
    command = [sys.executable, "-m", "benchmarks.harness.fuzz_coverage", target, str(corpus), f"-max_total_time={seconds}"]
    crashes = corpus.with_name(f"{corpus.name}-crash-")
    command += [f"-artifact_prefix={crashes}", f"-max_len={_MOST_BYTES}", "-print_final_stats=1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    told = ended.stdout + ended.stderr
    counts = {key: int(value) for key, value in re.findall(r"stat::(\w+):\s+(\d+)", told)}
    if "number_of_executed_units" not in counts:
        raise RuntimeError(f"{target} was not fuzzed: {told[-2000:]}")
    covered = [int(value) for value in re.findall(r"cov: (\d+)", told)]
    config = {"seconds": seconds, "corpus": len(list(corpus.iterdir())), "told": "" if not ended.returncode else told[-1500:]}
    yield Row(case=target, metric=_CRASHES, value=int(ended.returncode != 0), config=config)
    yield Row(case=target, metric=_INPUTS, value=counts["number_of_executed_units"], config=config)
    yield Row(case=target, metric=_RATE, value=counts["average_exec_per_sec"], config=config)
    yield Row(case=target, metric=_COVERED, value=max(covered, default=0), config=config)
