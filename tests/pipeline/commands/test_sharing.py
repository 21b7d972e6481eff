"""`multifacet push`, `pull` and `snapshot card`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from multifacet.tables import Snapshot, SnapshotTable


@pytest.fixture
def snapshots(tmp_path: Path) -> list[Snapshot]:
    return [
        Snapshot.write(
            tmp_path / name,
            facet="own",
            tables={"pin": SnapshotTable(ids=pa.array(range(20)), vectors=torch.eye(20) * scale)},
        )
        for name, scale in (("old", 1.0), ("new", 2.0))
    ]


def test_a_snapshot_goes_there_and_back(run: Any, snapshots: list[Snapshot], tmp_path: Path) -> None:
    there = tmp_path / "shelf" / "new"
    code, out, err = run("push", snapshots[1].path, f"file://{there}", "--license", "mit", "--json")
    assert code == 0, err
    assert json.loads(out)["fingerprint"] == snapshots[1].fingerprint
    assert 'license: "mit"' in (there / "README.md").read_text()
    code, out, _ = run("pull", there, tmp_path / "back", "--fingerprint", snapshots[1].fingerprint)
    assert code == 0
    assert "whole and unchanged" in out
    assert Snapshot.load(tmp_path / "back").fingerprint == snapshots[1].fingerprint
    code, _, err = run("push", snapshots[0].path, there, "--no-card")
    assert code == 1
    assert "--replace" in err
    assert run("push", snapshots[0].path, there, "--no-card", "--replace")[0] == 0
    assert not (there / "README.md").exists() or "mit" in (there / "README.md").read_text()
    code, _, err = run("pull", tmp_path / "nowhere", tmp_path / "more")
    assert code == 1
    assert "There is no artifact" in err


def test_a_card_tells_the_drift_when_asked(run: Any, snapshots: list[Snapshot], tmp_path: Path) -> None:
    code, out, _ = run("snapshot", "card", snapshots[1].path)
    assert code == 0
    assert out.startswith("---\nlicense")
    assert "It was not evaluated" in out
    code, out, _ = run(
        *("snapshot", "card", snapshots[1].path, "--against", snapshots[0].path, "--name", "ours"),
        *("--output", tmp_path / "CARD.md", "--json"),
    )
    assert code == 0
    text = (tmp_path / "CARD.md").read_text()
    assert json.loads(out)["card"] == text
    assert "# ours\n" in text
    assert "| pin | 20 | 0 | 0 | 1 |" in text
