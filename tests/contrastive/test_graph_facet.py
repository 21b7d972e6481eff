"""LightGCN through PyG: its propagation by NumPy, and a planted graph that it learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from multifacet.contrastive import ContrastiveValidation, Positives
from multifacet.contrastive.graph_facet import LightGcnConfig, _Propagation, train_lightgcn, train_lightgcn_pairs
from multifacet.graphdb import GraphView
from multifacet.tables.snapshot import Snapshot

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning"),
]


def test_it_propagates_by_the_published_formula_and_learns_planted_groups() -> None:
    generator = np.random.default_rng(0)
    users = np.arange(60).repeat(12)
    pins = np.concatenate([generator.permutation(20)[:12] + user // 12 * 20 for user in range(60)])
    is_held_out = np.arange(len(users)) % 12 >= 10
    train, held_out = (
        Positives.from_pairs(users[mask], pins[mask], num_queries=60, num_items=100) for mask in (~is_held_out, is_held_out)
    )
    rows = torch.from_numpy(generator.normal(size=(160, 4)).astype(np.float32))
    dense = np.zeros((160, 160))
    dense[train.queries, train.items + 60] = 1
    dense += dense.T
    roots = np.sqrt(np.maximum(dense.sum(1), 1))
    dense /= roots[:, None] * roots[None]
    expected = (np.eye(160) + dense + dense @ dense) / 3
    rows.requires_grad_()
    weights = torch.from_numpy(generator.normal(size=(160, 4)).astype(np.float32))

    propagated = _Propagation(train, 2)(rows)
    (propagated * weights).sum().backward()

    np.testing.assert_allclose(propagated.detach().numpy(), expected @ rows.detach().numpy(), atol=1e-5)
    assert rows.grad is not None
    np.testing.assert_allclose(rows.grad.numpy(), expected.T @ weights.numpy(), atol=1e-5)
    config = LightGcnConfig(dim=8, num_layers=2, epochs=15, batch_size=128, positives_per_query=2, num_uniform=16)
    result = train_lightgcn_pairs(train, config, held_out=held_out)
    assert result.metrics["recall@20"] > 0.9  # 0.22 by chance


def test_a_view_becomes_a_snapshot_of_its_own_facet(view: GraphView, tmp_path: Path) -> None:
    rows: list[Mapping[str, float]] = []
    config = LightGcnConfig(
        dim=8,
        epochs=15,
        batch_size=128,
        positives_per_query=2,
        num_uniform=16,
        validation=ContrastiveValidation(num_queries=40, num_latest=3, every=5),
    )

    result = train_lightgcn(view, config, progress=rows.append)
    result.write_snapshot(tmp_path / "lightgcn", view)

    assert ["recall@20" in row for row in rows] == [number % 5 == 0 for number in range(1, 16)]
    assert result.metrics["recall@20"] > 0.7  # 0.18 by chance
    loaded = Snapshot.load(tmp_path / "lightgcn")
    assert (loaded.facet, set(loaded.node_types)) == ("lightgcn", {"user", "pin"})
    for node_type, vectors in result.vectors.items():
        assert torch.equal(loaded.vectors(node_type), vectors)
        assert loaded.ids(node_type).equals(view.node_ids(node_type))
