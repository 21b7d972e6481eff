"""Contrastive tables in an older basis: one rotation of all of them, found and undone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from multifacet import contrastive
from multifacet.tables import Snapshot, SnapshotTable


def make_snapshot(path: Path, rotation: torch.Tensor, noise: float = 0.0, *, facet: str = "contrastive") -> Snapshot:
    """Rows of length 1, one of them untrained; another seed's noise lies on them."""
    generator = torch.Generator().manual_seed(0)
    tables = {}
    for name, size in (("user", 80), ("pin", 60)):
        rows = torch.nn.functional.normalize(torch.randn(size, 16, generator=generator))
        rows = torch.nn.functional.normalize(rows + noise * torch.randn(size, 16, generator=generator))
        rows[3] = 0.0
        tables[name] = SnapshotTable(ids=pa.array(range(size)), vectors=rows @ rotation, trained=rows.any(1))
    return Snapshot.write(path, facet=facet, tables=tables, config={"similarity": "cosine"})


def test_a_rotation_is_undone_and_products_are_kept(tmp_path: Path) -> None:
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0]).float()
    old = make_snapshot(tmp_path / "old", torch.eye(16))
    new = make_snapshot(tmp_path / "new", rotation, noise=0.05)
    aligned = contrastive.align(tmp_path / "aligned", new, old)
    products = [snapshot.vectors("user") @ snapshot.vectors("pin").T for snapshot in (new, aligned)]
    torch.testing.assert_close(products[1], products[0], rtol=0.0, atol=1e-6)
    told = aligned.metrics["alignment"]["tables"]["pin"]
    assert told["residual_before"] > 1.0
    assert told["residual_after"] < 0.1
    assert not aligned.vectors("user")[3].any()  # what was never trained is as it was
    assert aligned.trained("user") is not None


def test_other_facets_are_refused(tmp_path: Path) -> None:
    old = make_snapshot(tmp_path / "old", torch.eye(16), facet="kge")
    new = make_snapshot(tmp_path / "new", torch.eye(16))
    with pytest.raises(ValueError, match="have nothing in common"):
        contrastive.align(tmp_path / "aligned", new, old)
