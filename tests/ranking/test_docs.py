"""The code of docs/ranking.md runs, block after block, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_every_block_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "ranking.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 10
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/ranking.md", "exec"), names)  # noqa: S102
    printed = capsys.readouterr().out
    shown = re.search(r"^```\n(InitReport.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert shown is not None
    # The fingerprint changes with the snapshot's format; all else on the page is what the code prints.
    without = [re.sub(r"kge \w{8}", "kge", text) for text in (shown[1], printed)]
    assert without[0] in without[1]
