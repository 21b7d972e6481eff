from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from ranking import RankingModel, TableSpec, UpperModel, init_tables
from ranking.initialise import init_random
from tables import IdMap, Snapshot, SnapshotTable

DIM = 4
WriteSnapshot = Callable[[Sequence[int], torch.Tensor], Snapshot]


def make_model(num_rows: int) -> RankingModel:
    spec = TableSpec(feature="user", facet="kge", node_type="user", num_rows=num_rows, dim=DIM)
    model = RankingModel([spec], UpperModel(num_dense=1, slots=[("user", "kge")], dim=DIM))
    init_random(model, 1.0, torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def write(tmp_path: Path) -> WriteSnapshot:
    def write(ids: Sequence[int], vectors: torch.Tensor) -> Snapshot:
        table = SnapshotTable(ids=pa.array(ids, pa.int64()), vectors=vectors)
        return Snapshot.write(tmp_path / "kge", facet="kge", tables={"user": table})

    return write


def test_rows_are_filled_by_external_id_and_the_rest_by_their_mean(write: WriteSnapshot) -> None:
    vectors = torch.randn(3, DIM, generator=torch.Generator().manual_seed(1))
    snapshot = write([30, 77, 10], vectors)
    id_map = IdMap.exact([10, 20, 30])
    model = make_model(id_map.num_rows)
    (coverage,) = init_tables(model, [snapshot], {"user": id_map}, norm=2.0)
    table = model.table("user_kge")
    known = vectors[[2, 0]]
    scaled = known * 2.0 / known.square().sum(1).mean().sqrt()
    torch.testing.assert_close(table[[0, 2]], scaled)
    torch.testing.assert_close(table[[1, 3]], scaled.mean(0).expand(2, DIM))
    assert (coverage.num_rows, coverage.num_filled, coverage.num_missing, coverage.num_unused) == (4, 2, 2, 1)
    assert coverage.norm_before == pytest.approx(float(known.square().sum(1).mean().sqrt()))
    assert coverage.norm_after == pytest.approx(2.0)
    assert coverage.to_dict()["snapshot"] == snapshot.fingerprint


def test_ids_that_share_a_hashed_row_get_their_mean(write: WriteSnapshot) -> None:
    ids = list(range(20))
    vectors = torch.randn(20, DIM, generator=torch.Generator().manual_seed(1))
    id_map = IdMap.hashed(6, id_type="int64", seed=3)
    model = make_model(id_map.num_rows)
    (coverage,) = init_tables(model, [write(ids, vectors)], {"user": id_map})
    rows = id_map.rows(ids)
    means = np.stack([vectors.numpy()[rows == row].mean(0) for row in np.unique(rows)])
    means /= np.sqrt((means**2).sum(1).mean())
    np.testing.assert_allclose(model.table("user_kge")[np.unique(rows)], means, rtol=1e-5, atol=1e-6)
    assert coverage.num_filled == len(np.unique(rows))
    assert coverage.num_unused == 0


def test_random_rows_have_the_wanted_norm() -> None:
    model = make_model(5000)
    init_random(model, 0.25, torch.Generator().manual_seed(2))
    norm = model.table("user_kge").square().sum(1).mean().sqrt()
    assert float(norm) == pytest.approx(0.25, rel=0.02)


def test_misfitting_snapshots_are_refused(write: WriteSnapshot) -> None:
    snapshot = write([1, 2], torch.ones(2, DIM))
    id_map = IdMap.exact([1, 2])
    with pytest.raises(ValueError, match="none of the snapshot's 2 ids is known"):
        init_tables(make_model(3), [snapshot], {"user": IdMap.exact([8, 9])})
    with pytest.raises(ValueError, match="expected one a facet"):
        init_tables(make_model(3), [snapshot, snapshot], {"user": id_map})
    other = TableSpec(feature="user", facet="kge", node_type="user", num_rows=3, dim=8)
    model = RankingModel([other], UpperModel(num_dense=1, slots=[("user", "kge")], dim=8))
    with pytest.raises(ValueError, match=r"needs vectors of 'user' with 8 elements; the snapshot has \{'user': 4\}"):
        init_tables(model, [snapshot], {"user": id_map})
