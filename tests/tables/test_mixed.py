from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multifacet.tables import ArtifactError, MixedTable, Precision, decode, encode, plan_precision, row_bytes
from multifacet.tables.mixed import PRECISIONS

DIM = 8
INT4, INT8, FP16, FP32 = range(4)


def random_rows(num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, DIM, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_file_of_one_precision_is_its_rows_and_nothing_else(tmp_path: Path, precision: Precision) -> None:
    vectors = random_rows(100)
    rounding: Any = "refit" if precision.startswith("int") else "minmax"
    table = MixedTable.write(tmp_path / "table", vectors, precision, rounding=rounding)
    files = {path.name: path.stat().st_size for path in (tmp_path / "table").iterdir()}
    assert files.pop("manifest.json") > 0
    assert files == {f"rows.{precision}": 100 * row_bytes(DIM, precision)}
    assert table.num_bytes == sum(files.values())
    rows = np.array([99, 0, 5, 5])
    expected = decode(encode(vectors[rows], precision, rounding), DIM, precision)
    assert torch.equal(MixedTable.load(tmp_path / "table").lookup(rows), expected)


def test_each_row_is_read_at_its_own_precision(tmp_path: Path) -> None:
    vectors = random_rows(300)
    tiers = np.random.default_rng(0).integers(0, 4, 300).astype(np.uint8)
    table = MixedTable.write(tmp_path / "table", vectors, tiers, rounding="greedy")
    found = table.lookup(np.arange(300))
    for tier, precision in enumerate(PRECISIONS):
        rows = np.flatnonzero(tiers == tier)
        expected = decode(encode(vectors[rows], precision, "greedy" if tier == INT4 else "minmax"), DIM, precision)
        assert torch.equal(found[rows], expected)
    assert table.num_bytes == sum(row_bytes(DIM, PRECISIONS[tier]) for tier in tiers) + 4 * 300


def test_a_row_out_of_range_is_refused_instead_of_read_as_row_0(tmp_path: Path) -> None:
    table = MixedTable.write(tmp_path / "table", random_rows(10), "int4")
    for row in (-1, 10):
        with pytest.raises(IndexError, match=f"row {row} is out of range; the table has rows 0 to 9"):
            table.lookup(np.array([0, row]))
    assert table.lookup(np.zeros(0, np.int64)).shape == (0, DIM)


def test_frequent_rows_get_more_bits_within_the_budget(tmp_path: Path) -> None:
    vectors = random_rows(1000)
    frequencies = 1000.0 / np.arange(1, 1001) ** 1.2
    smallest = 1000 * (row_bytes(DIM, "int4") + 4)
    errors = []
    for extra in (0, 1000, 4000, 16_000):
        tiers = plan_precision(vectors, frequencies, smallest + extra)
        table = MixedTable.write(tmp_path / f"table{extra}", vectors, tiers)
        if extra:
            assert smallest < table.num_bytes <= smallest + extra
            assert tiers[:100].mean() > tiers[-100:].mean() or (tiers == FP16).all()
        decoded = table.lookup(np.arange(1000))
        errors.append(float(((decoded - vectors).square().sum(1).numpy() * frequencies).sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.5 * errors[0]
    assert (tiers == FP16).all()


def test_the_plan_is_the_best_there_is_for_a_few_rows() -> None:
    """Brute force over every choice of three precisions for six rows."""
    vectors = random_rows(6) * torch.tensor([1.0, 3.0, 0.2, 1.0, 0.5, 2.0])[:, None]
    frequencies = np.array([5.0, 0.0, 100.0, 1.0, 20.0, 3.0])
    sizes = np.array([row_bytes(DIM, precision) for precision in PRECISIONS[:3]])
    costs = np.stack(
        [
            (decode(encode(vectors, precision, rounding), DIM, precision) - vectors).double().square().sum(1).numpy()
            for precision, rounding in (("int4", "refit"), ("int8", "refit"), ("fp16", "minmax"))
        ]
    )
    budget = 6 * (8 + 4) + 20
    plan = plan_precision(vectors, frequencies, budget)
    assert sizes[plan].sum() + 24 <= budget
    choices = np.stack(np.meshgrid(*[np.arange(3)] * 6), axis=-1).reshape(-1, 6)
    weighted = (costs[choices, np.arange(6)] * frequencies).sum(1)
    best = weighted[sizes[choices].sum(1) + 24 <= budget].min()
    # Steps in the order of their savings leave at most one step's bytes unused.
    assert (costs[plan, np.arange(6)] * frequencies).sum() <= 1.5 * best
    assert plan[1] == INT4


def test_misfits_are_refused(tmp_path: Path) -> None:
    vectors = random_rows(10)
    with pytest.raises(ValueError, match="10 int4 rows take 120 bytes with their addresses; the budget is 119"):
        plan_precision(vectors, np.ones(10), 119)
    with pytest.raises(ValueError, match="expected rising sizes"):
        plan_precision(vectors, np.ones(10), 1000, precisions=("fp16", "int4"))
    with pytest.raises(ValueError, match="none negative"):
        plan_precision(vectors, -np.ones(10), 1000)
    with pytest.raises(ValueError, match=r"expected uint8\[10\] below 4"):
        MixedTable.write(tmp_path / "table", vectors, np.full(10, 4, np.uint8))
    vectors[7] = torch.nan
    with pytest.raises(ValueError, match="among the int4 rows 0 to 9: Row 7 cannot be encoded"):
        MixedTable.write(tmp_path / "table", vectors, "int4")
    assert not (tmp_path / "table").exists()
    with pytest.raises(ArtifactError):
        MixedTable.load(tmp_path / "table")
