"""LightGCN through PyG: its propagation by NumPy, and a planted graph that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.nn import LGConv

from contrastive import Positives
from contrastive.graph_facet import LightGcnConfig, _normalized_adjacency, _propagate, train_lightgcn


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
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
    expected = (rows.numpy() + dense @ rows.numpy() + dense @ dense @ rows.numpy()) / 3

    propagated = _propagate(rows, _normalized_adjacency(train), LGConv(normalize=False), 2)

    np.testing.assert_allclose(propagated.numpy(), expected, atol=1e-5)
    config = LightGcnConfig(dim=8, num_layers=2, epochs=15, batch_size=128)
    _, _, metrics = train_lightgcn(train, config, held_out=held_out)
    assert metrics["recall@20"] > 0.9  # 0.22 by chance
