from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig
from torchrec.modules.embedding_configs import DataType

from multifacet.ranking import RankingModel, TableSource, TableSpec, UpperModel, init_tables
from multifacet.ranking.initialize.initialize import init_random
from multifacet.tables import IdMap, Snapshot, SnapshotTable

DIM = 4
WriteSnapshot = Callable[..., Snapshot]


class Tower(nn.Module):
    """Someone else's model: a table of pins in two collections, deep inside."""

    def __init__(self, num_rows: int, dim: int = DIM, data_type: DataType = DataType.FP32) -> None:
        super().__init__()
        shape: dict[str, Any] = {"embedding_dim": dim, "num_embeddings": num_rows, "data_type": data_type}
        bags = [
            EmbeddingBagConfig(name="t_pin", feature_names=["pin"], **shape),
            EmbeddingBagConfig(name="t_user", feature_names=["user"], **shape),
        ]
        sequence = [EmbeddingConfig(name="t_pin", feature_names=["recent_pins"], **shape)]
        self.sparse = nn.ModuleDict(
            {"bags": EmbeddingBagCollection(tables=bags), "sequence": EmbeddingCollection(tables=sequence)}
        )

    @property
    def users(self) -> torch.Tensor:
        return self.sparse["bags"].embedding_bags["t_user"].weight.detach()  # type: ignore[no-any-return,union-attr,index]


@pytest.fixture
def write(tmp_path: Path) -> WriteSnapshot:
    def write(ids: Sequence[int], vectors: torch.Tensor, precision: Any = "fp32") -> Snapshot:
        table = SnapshotTable(ids=pa.array(ids, pa.int64()), vectors=vectors)
        return Snapshot.write(tmp_path / "kge", facet="kge", tables={"user": table}, precision=precision)

    return write


def random_vectors(num_rows: int, dim: int = DIM) -> torch.Tensor:
    return torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(1))


def test_rows_are_filled_by_external_id_scaled_and_the_rest_by_their_mean(write: WriteSnapshot) -> None:
    vectors = random_vectors(3)
    snapshot = write([30, 77, 10], vectors)
    id_map = IdMap.exact([10, 20, 30])
    model = Tower(id_map.num_rows)
    report = init_tables(model, {"t_user": TableSource(snapshot=snapshot, node_type="user", id_map=id_map, norm=2.0)})
    known = vectors[[2, 0]]
    scaled = known * 2.0 / known.square().sum(1).mean().sqrt()
    torch.testing.assert_close(model.users[[0, 2]], scaled)
    torch.testing.assert_close(model.users[[1, 3]], scaled.mean(0).expand(2, DIM))
    coverage = report["t_user"]
    assert (coverage.num_rows, coverage.num_filled, coverage.num_missing, coverage.num_unused) == (4, 2, 2, 1)
    assert coverage.norm_before == pytest.approx(float(known.square().sum(1).mean().sqrt()))
    assert coverage.norm_after == pytest.approx(2.0)
    assert coverage.snapshot == snapshot.fingerprint
    assert json.loads(json.dumps(report.to_dict()))["tables"] == [coverage.to_dict()]
    assert "t_user" in repr(report)
    assert "2 (50.0%)" in repr(report)


@pytest.mark.slow
def test_without_an_id_map_rows_are_the_snapshots_positions_to_the_last_bit(write: WriteSnapshot) -> None:
    vectors = random_vectors(50).half().float()
    snapshot = write(range(50), vectors, "fp16")
    for data_type in (DataType.FP16, DataType.FP32):
        model = Tower(60, data_type=data_type)
        source = TableSource(snapshot=snapshot, node_type="user", missing="zero", rows="position")
        (coverage,) = init_tables(model, {"t_user": source})
        assert torch.equal(model.users[:50].float(), vectors)
        assert torch.equal(model.users[50:].float(), torch.zeros(10, DIM))
        assert (coverage.num_filled, coverage.num_missing) == (50, 10)


def test_other_tables_are_left_alone_and_a_name_of_two_tables_needs_its_path(write: WriteSnapshot) -> None:
    snapshot = write(range(20), random_vectors(20))
    model = Tower(20)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    source = TableSource(snapshot=snapshot, node_type="user", rows="position")
    with pytest.raises(ValueError, match=r"'t_pin' is one of \['sparse.bags.t_pin', 'sparse.sequence.t_pin'\]"):
        init_tables(model, {"t_pin": source})
    init_tables(model, {"sequence.t_pin": source})
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["sparse.sequence.embeddings.t_pin.weight"]
    with pytest.raises(ValueError, match="is named twice"):
        init_tables(model, {"t_user": source, "bags.t_user": source})
    with pytest.raises(KeyError, match="no table 'user'"):
        init_tables(model, {"user": source})
    with pytest.raises(KeyError, match="it holds no TorchRec collection"):
        init_tables(nn.Linear(1, 1), {"user": source})


@pytest.mark.parametrize("rule", ["mean", "weighted", "first"])
def test_ids_that_share_a_hashed_row_are_combined_by_the_stated_rule(write: WriteSnapshot, rule: Any) -> None:
    ids, vectors = list(range(20)), random_vectors(20)
    id_map = IdMap.hashed(6, id_type="int64", seed=3)
    model = Tower(id_map.num_rows)
    weights = torch.arange(1.0, 21.0) if rule == "weighted" else None
    source = TableSource(
        snapshot=write(ids, vectors), node_type="user", id_map=id_map, collisions=rule, weights=weights, missing="keep"
    )
    (coverage,) = init_tables(model, {"t_user": source})
    rows = id_map.rows(ids)
    for row in np.unique(rows):
        chosen = np.flatnonzero(rows == row)
        shares = {"mean": np.ones(len(chosen)), "weighted": chosen + 1.0, "first": (chosen == chosen[0]) * 1.0}[rule]
        expected = np.average(vectors.numpy()[chosen], axis=0, weights=shares)
        np.testing.assert_allclose(model.users[row], expected, rtol=1e-5, atol=1e-6)
    report = id_map.collision_report(ids)
    assert (coverage.num_collided_ids, coverage.num_filled) == (report.colliding_ids, report.rows_used)
    assert coverage.num_unused == 0


def test_missing_rows_get_what_was_asked_for(write: WriteSnapshot) -> None:
    vectors = random_vectors(3000)
    snapshot = write(range(3000), vectors)
    id_map = IdMap.exact([*range(3000), *range(10_000, 40_000)])
    for missing in ("mean", "zero", "keep", "normal"):
        model = Tower(id_map.num_rows)
        before = model.users.clone()
        source = TableSource(snapshot=snapshot, node_type="user", id_map=id_map, missing=missing)  # type: ignore[arg-type]
        init_tables(model, {"t_user": source})
        rest = model.users[3000:]
        if missing == "normal":
            norm = float(vectors.square().sum(1).mean().sqrt())
            assert float(rest.square().sum(1).mean().sqrt()) == pytest.approx(norm, rel=0.02)
            assert len(rest.unique(dim=0)) == len(rest)
            continue
        expected = {"mean": vectors.mean(0), "zero": torch.zeros(DIM), "keep": before[3000:]}[missing]
        torch.testing.assert_close(rest, expected.expand_as(rest))


def test_a_matrix_or_a_pca_brings_vectors_to_another_dimension(write: WriteSnapshot) -> None:
    generator = torch.Generator().manual_seed(2)
    # Vectors that lie in 4 of 7 dimensions lose nothing to a PCA: their dot products stay.
    vectors = torch.randn(40, DIM, generator=generator) @ torch.randn(DIM, 7, generator=generator)
    snapshot = write(range(40), vectors)
    model = Tower(40)
    source = TableSource(snapshot=snapshot, node_type="user", projection="pca", rows="position")
    (coverage,) = init_tables(model, {"t_user": source})
    torch.testing.assert_close(model.users @ model.users.T, vectors @ vectors.T, rtol=1e-4, atol=1e-4)
    assert coverage.projection == "pca"
    assert coverage.energy == pytest.approx(1.0)
    assert coverage.norm_after == pytest.approx(coverage.norm_before, rel=1e-5)

    matrix = torch.randn(7, DIM, generator=generator)
    id_map = IdMap.exact(range(39, -1, -1))
    model = Tower(41)
    source = TableSource(snapshot=snapshot, node_type="user", id_map=id_map, projection=matrix, norm=3.0)
    init_tables(model, {"t_user": source})
    expected = vectors.flip(0) @ matrix
    torch.testing.assert_close(model.users[:40], expected * 3 / expected.square().sum(1).mean().sqrt())
    torch.testing.assert_close(model.users[40], model.users[:40].mean(0))


def test_misfits_are_refused_and_nothing_is_written(write: WriteSnapshot, caplog: pytest.LogCaptureFixture) -> None:
    snapshot = write([1, 2], torch.ones(2, DIM))
    model = Tower(3)
    before = model.users.clone()

    def source(**fields: Any) -> dict[str, TableSource]:
        if "id_map" not in fields:
            fields["rows"] = "position"
        return {"t_user": TableSource(**({"snapshot": snapshot, "node_type": "user"} | fields))}

    with pytest.raises(ValueError, match="none of the snapshot's 2 trained ids has a row"):
        init_tables(model, source(id_map=IdMap.exact([8, 9])))
    with pytest.raises(ValueError, match="3 rows, its id map 2"):
        init_tables(model, source(id_map=IdMap.exact([1])))
    with pytest.raises(KeyError, match="no table for 'pin'"):
        init_tables(model, source(node_type="pin"))
    with pytest.raises(ValueError, match=r"8 elements a row, the snapshot's vectors have 4: pass a projection"):
        init_tables(Tower(3, dim=8), source())
    with pytest.raises(ValueError, match=r"the projection is \[4, 4\]; expected finite \[4, 8\]"):
        init_tables(Tower(3, dim=8), source(projection=torch.eye(4)))
    with pytest.raises(ValueError, match="has 1 rows, the snapshot 2 vectors"):
        init_tables(Tower(1), source())
    with pytest.raises(TypeError, match=r"kept as torch.float64"):
        init_tables(Tower(3).double(), source())
    with pytest.raises(ValueError, match="collisions is 'last'; expected one of mean, weighted, first"):
        source(collisions="last")
    with pytest.raises(ValueError, match="weights go with"):
        source(weights=torch.ones(2))
    with pytest.raises(ValueError, match="norm is 0"):
        source(norm=0.0)
    assert torch.equal(model.users, before)
    with caplog.at_level(logging.WARNING):
        init_tables(Tower(10), source())
    assert "only 20.0% of its rows" in caplog.text


def test_random_rows_have_the_wanted_norm() -> None:
    spec = TableSpec(feature="user", facet="kge", node_type="user", num_rows=5000, dim=DIM)
    model = RankingModel([spec], UpperModel(num_dense=1, slots=[("user", "kge")], dim=DIM))
    init_random(model, [spec], 0.25, seed=2)
    norm = model.table("user_kge").square().sum(1).mean().sqrt()
    assert float(norm) == pytest.approx(0.25, rel=0.02)
