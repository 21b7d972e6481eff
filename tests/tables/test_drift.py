"""Drift on tables whose change is known by construction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from multifacet.tables import Snapshot, SnapshotTable, compare_snapshots


def rotation(dim: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)))[0]


def write(path: Path, **tables: tuple[list[int], Tensor]) -> Snapshot:
    return Snapshot.write(
        path, facet="kge", tables={name: SnapshotTable(ids=pa.array(ids), vectors=rows) for name, (ids, rows) in tables.items()}
    )


def test_a_rotated_table_is_the_same_table(tmp_path: Path) -> None:
    vectors = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    old = write(tmp_path / "old", pin=(list(range(300)), vectors), user=(list(range(300)), vectors.flip(0)))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    turned = 2.0 * vectors @ rotation(8)
    new = write(tmp_path / "new", pin=(order.tolist(), turned[order]), user=(list(range(300)), turned.flip(0)))

    drift = compare_snapshots(old, new)["pin"]

    assert (drift.num_matched, drift.num_new, drift.num_gone, drift.num_zero) == (300, 0, 0, 0)
    assert abs(drift.cosine["p50"]) < 0.5
    assert drift.aligned_cosine is not None
    assert drift.aligned_cosine["p1"] == pytest.approx(1.0, abs=1e-5)
    assert drift.norm_ratio["p1"] == pytest.approx(2.0, rel=1e-5)
    assert drift.neighbor_overlap == 1.0


def test_the_rotation_is_one_for_all_tables(tmp_path: Path) -> None:
    vectors = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    ids = list(range(300))
    old = write(tmp_path / "old", pin=(ids, vectors), user=(ids, vectors))
    new = write(tmp_path / "new", pin=(ids, vectors @ rotation(8, 1)), user=(ids, vectors @ rotation(8, 2)))

    drift = compare_snapshots(old, new)

    # Each table by itself is only rotated, but a product of a user and a pin is not what it was.
    for table in drift.values():
        assert table.aligned_cosine is not None
        assert table.aligned_cosine["p50"] < 0.9


def test_rows_are_matched_by_id_and_counted(tmp_path: Path) -> None:
    old = write(tmp_path / "old", pin=([1, 2, 3, 4], torch.eye(4)), user=([9], torch.ones(1, 4)))
    moved = torch.tensor([[0.0, 0.0, 3.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    new = write(tmp_path / "new", pin=([3, 7, 2, 1], moved))

    drift = compare_snapshots(old, new, align=False)

    pin, user = drift["pin"], drift["user"]
    assert (pin.num_matched, pin.num_new, pin.num_gone, pin.num_zero) == (3, 1, 1, 1)
    assert (user.num_matched, user.num_new, user.num_gone) == (0, 0, 1)
    assert pin.cosine["mean"] == pytest.approx((1.0 + 1 / np.sqrt(2)) / 2)
    assert pin.norm_ratio["mean"] == pytest.approx((3.0 + np.sqrt(2)) / 2)
    assert pin.aligned_cosine is None
    assert user.cosine == {}


def test_tables_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    old = write(tmp_path / "old", pin=([1, 2], torch.eye(2)))
    with pytest.raises(ValueError, match="'pin' has dimension 2 in the old snapshot and 3"):
        compare_snapshots(old, write(tmp_path / "wide", pin=([1, 2, 3], torch.eye(3))))
    text = Snapshot.write(
        tmp_path / "text", facet="kge", tables={"pin": SnapshotTable(ids=pa.array(["a", "b"]), vectors=torch.eye(2))}
    )
    with pytest.raises(ValueError, match="table 'pin': ids are string; expected int64"):
        compare_snapshots(old, text)
