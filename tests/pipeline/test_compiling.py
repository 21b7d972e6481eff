"""`multifacet compile`: the whole flow on a few households."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from multifacet.pipeline import compiling


@pytest.mark.slow
def test_every_stage_of_a_run_is_compiled_for(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    code, _, err = run("compile")
    assert code == 0, err
    told = [line.removeprefix("compiling kernels: ") for line in err.splitlines() if line.startswith("compiling kernels: ")]
    assert told[0] == "graph"
    assert told[-1] == "serving"
    assert {"kge", "contrastive", "pretrained_demand", "quantization", "release"} <= set(told)
    assert not list(tmp_path.glob("multifacet-compile-*"))


def test_a_failure_says_what_the_flow_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="could not be compiled; a run will try again"):
        compiling.compile_kernels(lambda _: None)
