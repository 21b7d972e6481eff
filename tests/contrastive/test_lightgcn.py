"""LightGCN through PyG: its propagation by NumPy, and a planted graph that it learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from multifacet.contrastive import ContrastiveValidation, Positives
from multifacet.contrastive.lightgcn import LightGcnConfig, _loss, _Propagation, train_lightgcn, train_lightgcn_pairs
from multifacet.contrastive.trainer.towers import Tower
from multifacet.graphdb import GraphView
from multifacet.tables import Snapshot

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


@pytest.mark.parametrize("name", ["softmax", "bilateral"])
def test_the_loss_of_a_batch_is_that_of_plain_torch(name: Literal["softmax", "bilateral"]) -> None:
    generator = np.random.default_rng(0)
    positives = Positives.from_pairs(np.arange(12).repeat(3), generator.integers(0, 30, 36), num_queries=12, num_items=30)
    config = LightGcnConfig(
        dim=4,
        num_layers=1,
        batch_size=8,
        positives_per_query=2,
        num_uniform=6,
        loss=name,
        negative_weight=1.22,
        logq=False,
        l2=0.3,
        temperature=0.2,
    )
    batch = Tower("pin", positives, config.contrast(), share=1.0).draw(generator)
    rows = torch.randn(42, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    vectors = _Propagation(positives, 1)(rows)
    loss = _loss(config, batch, rows, vectors, 12)
    (gradient,) = torch.autograd.grad(loss, rows, retain_graph=True)

    candidates, targets = batch.candidates, batch.candidates.targets
    assert candidates.masked is not None
    of_query = np.repeat(np.arange(len(batch.queries)), np.diff(targets.indptr))
    numbers = torch.from_numpy(candidates.rows.astype(np.int64) + 12)
    queries = torch.nn.functional.normalize(vectors[torch.from_numpy(batch.queries[of_query])])
    scores = queries @ torch.nn.functional.normalize(vectors[numbers]).t() / 0.2
    hidden = torch.zeros(len(of_query), len(numbers), dtype=torch.bool)
    for place, number in enumerate(of_query):
        hidden[place, candidates.masked.slots[candidates.masked.indptr[number] : candidates.masked.indptr[number + 1]]] = True
    own = scores[torch.arange(len(of_query)), torch.from_numpy(targets.slots).long()]
    negatives = torch.logsumexp(scores.masked_fill(hidden, -torch.inf), 1)
    if name == "softmax":
        expected = (torch.logaddexp(negatives, own) - own).mean()
    else:
        expected = (1.22 * (negatives - (~hidden).sum(1).log()) - own).mean()
    named = torch.cat([torch.from_numpy(batch.queries).long(), numbers])
    expected = expected + 0.15 / len(of_query) * rows[named].square().sum()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, rows)[0], rtol=1e-3, atol=1e-5)


def test_vectors_for_dot_products_keep_their_lengths() -> None:
    generator = np.random.default_rng(0)
    positives = Positives.from_pairs(np.arange(30).repeat(4), generator.integers(0, 20, 120), num_queries=30, num_items=20)
    config = LightGcnConfig(dim=8, num_layers=1, epochs=2, batch_size=32, positives_per_query=2, num_uniform=4)
    cosine = train_lightgcn_pairs(positives, config).vectors
    dot = train_lightgcn_pairs(positives, config.model_copy(update={"ranking": "dot"})).vectors
    assert float(dot["pin"].norm(dim=1).std()) > 0.01
    for name, vectors in cosine.items():
        torch.testing.assert_close(torch.nn.functional.normalize(dot[name]), vectors)
    assert not {"loss", "negative_weight", "logq", "ranking", "l2"} & config.model_dump().keys()


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
