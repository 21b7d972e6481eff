"""Two gloo ranks do what one process does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from tables import Snapshot, SnapshotTable

from .sharded_rank import TRAINED, fill_cases, train_cases

RANK = Path(__file__).with_name("sharded_rank.py")
NUM_RANKS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    vectors = torch.randn(500, 8, generator=torch.Generator().manual_seed(1))
    table = SnapshotTable(ids=pa.array(range(0, 1000, 2)), vectors=vectors)
    Snapshot.write(folder / "snapshot", facet="kge", tables={"pin": table})
    return folder


@pytest.fixture(scope="module")
def parts(folder: Path) -> list[dict[str, Any]]:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(RANK), str(rank), str(NUM_RANKS), str(folder / "rendezvous"), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(NUM_RANKS)
    ]
    outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * NUM_RANKS, "\n".join(outputs)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(NUM_RANKS)]


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    return fill_cases(folder, sharded=False)


@pytest.mark.parametrize("case", ["exact", "hashed", "in_order", "projected"])
def test_two_ranks_fill_the_rows_that_one_process_fills(whole: dict[str, Any], parts: list[dict[str, Any]], case: str) -> None:
    expected = whole[case]
    found = torch.cat([part[case] for part in parts])
    assert found.dtype == expected.dtype
    if case in ("in_order", "exact"):
        assert torch.equal(found[:400], expected[:400])
    # A norm and a mean are sums of parts, so their last bit may differ.
    torch.testing.assert_close(found, expected, rtol=1e-3 if case == "hashed" else 1e-6, atol=1e-6)
    reports = [part[f"{case}_report"] for part in parts]
    assert reports[0] == reports[1]
    for name, value in whole[f"{case}_report"].items():
        assert reports[0][name] == (pytest.approx(value) if isinstance(value, float) else value), name


@pytest.mark.parametrize("case", list(TRAINED))
def test_two_ranks_take_the_steps_that_one_process_takes(parts: list[dict[str, Any]], case: str) -> None:
    whole = {name: value for name, value in train_cases().items() if name.startswith(case)}
    assert {name for name in parts[0] if name.startswith(case)} == set(whole)
    assert len(whole) > 10
    for name, expected in whole.items():
        if name.endswith("_losses"):
            for part in parts:
                assert part[name] == pytest.approx(expected, rel=1e-5), name
            continue
        found = [part[name] for part in parts]
        if found[0].shape != expected.shape:
            found = [torch.cat(found)]  # a table's rows are divided among the ranks
        for values in found:
            torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
