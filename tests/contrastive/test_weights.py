"""Edge weights are repetitions, in positives from graphs and from plain pairs, and in what is trained of them."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.nn import LGConv

from multifacet.contrastive import ComposedTower, ContrastiveConfig, Positives, train, train_pairs
from multifacet.contrastive.config import PositivesConfig
from multifacet.contrastive.lightgcn import LightGcnConfig, _Propagation, train_lightgcn
from multifacet.contrastive.positives.positives import compose, read_positives
from multifacet.graphdb import GraphSchema, GraphStore, NodeType, Relation

pytestmark = [  # PyG's sparse matrices
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning"),
]

START = datetime(2025, 1, 5)


def build(path: Path, weights: list[float], *, repeated: bool = False, duplicates: str = "all") -> GraphStore:
    """Purchases of weights, or repeated as often, and clicks without; pins belong to two advertisers, one of them twice."""
    generator = np.random.default_rng(3)
    chosen = generator.choice(12 * 9, len(weights), replace=False)
    users, pins = np.divmod(chosen, 9)
    days = generator.integers(0, 5, len(weights))
    counts = np.asarray(weights, np.float64)
    if repeated:
        users, pins, days = (np.repeat(column, counts.astype(int)) for column in (users, pins, days))
        counts = np.ones(len(users))
    schema = GraphSchema(
        nodes=(NodeType(name="user"), NodeType(name="pin"), NodeType(name="advertiser")),
        relations=(
            Relation(src="user", name="buys", dst="pin", weighted=True, duplicates=duplicates),
            Relation(src="user", name="clicks", dst="pin"),
            Relation(src="pin", name="made_by", dst="advertiser", timed=False, weighted=True),
        ),
    )
    store = GraphStore.create(path, schema)
    for name, number in (("user", 12), ("pin", 9), ("advertiser", 2)):
        store.load_nodes(name, pa.table({"id": np.arange(number)}))
    times = [START + timedelta(days=int(day)) for day in days]
    store.load_edges("buys", pa.table({"src": users, "dst": pins, "time": times, "weight": counts.astype(np.float32)}))
    store.load_edges("clicks", pa.table({"src": np.arange(12), "dst": np.arange(12) % 9, "time": [START] * 12}))
    both = np.arange(18)
    made = {"src": both // 2, "dst": both % 2, "weight": (1.0 + 2.0 * (both % 2)).astype(np.float32)}
    store.load_edges("made_by", pa.table(made))
    return store


@pytest.mark.slow
@given(weights=st.lists(st.integers(1, 40), min_size=1, max_size=30))
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("relation_weights", [None, {"buys": 0.3, "clicks": 1.7}])
@pytest.mark.parametrize("half_life_days", [None, 3.0])
def test_a_weighted_graph_and_one_of_repeated_edges_have_the_same_positives(
    tmp_path_factory: pytest.TempPathFactory, weights: list[int], relation_weights: Any, half_life_days: float | None
) -> None:
    config = PositivesConfig(relation_weights=relation_weights, half_life_days=half_life_days)
    found = []
    for options in ({}, {"repeated": True}, {"repeated": True, "duplicates": "sum"}):
        with build(tmp_path_factory.mktemp("graph") / "g.duckdb", [float(w) for w in weights], **options) as store:
            found.append(read_positives(store.view(as_of=START + timedelta(days=9)), config))
    for other in found[1:]:
        for name in ("queries", "items", "weights", "first_times"):
            assert np.array_equal(getattr(found[0], name), getattr(other, name))
        assert np.array_equal(found[0].item_weights(), other.item_weights())


@pytest.mark.parametrize("kind", ["contrastive", "lightgcn"])
def test_a_weighted_graph_and_one_of_repeated_edges_train_the_same_bits(tmp_path: Path, kind: str) -> None:
    weights = np.random.default_rng(0).integers(1, 9, 40).astype(float).tolist()
    results = []
    for number, options in enumerate(({}, {"repeated": True}, {"repeated": True, "duplicates": "sum"})):
        with build(tmp_path / f"{number}.duckdb", weights, **options) as store:
            if kind == "contrastive":
                results.append(train(store.view(), ContrastiveConfig(dim=8, epochs=2, batch_size=16)).vectors)
            else:
                config = LightGcnConfig(dim=8, epochs=2, batch_size=16, num_uniform=4, positives_per_query=2)
                results.append(train_lightgcn(store.view(), config).vectors)
    for other in results[1:]:
        for name, table in results[0].items():
            assert torch.equal(table, other[name])
    with build(tmp_path / "ones.duckdb", [1.0] * 40) as store:
        if kind == "contrastive":
            ones = train(store.view(), ContrastiveConfig(dim=8, epochs=2, batch_size=16)).vectors
        else:
            ones = train_lightgcn(store.view(), config).vectors
    assert not torch.equal(ones["pin"], results[0]["pin"])


def test_lightgcn_propagates_along_a_weighted_edge_as_along_repeated_ones() -> None:
    generator = np.random.default_rng(0)
    queries, items = np.divmod(generator.permutation(60 * 40)[:500], 40)
    counts = generator.integers(1, 9, 500)
    weighted = Positives.from_pairs(queries, items, num_queries=60, num_items=40, weights=counts)
    rows = torch.from_numpy(generator.normal(size=(100, 4)).astype(np.float32))
    # PyG's own layers on the graph with an edge for each repetition.
    one_way = torch.from_numpy(np.stack([np.repeat(queries, counts), np.repeat(items, counts) + 60]))
    edges, layer = torch.cat([one_way, one_way.flip(0)], dim=1), LGConv()
    first = layer(rows, edges)
    torch.testing.assert_close(_Propagation(weighted, 2)(rows), (rows + first + layer(first, edges)) / 3, rtol=1e-5, atol=1e-6)
    once = Positives.from_pairs(queries, items, num_queries=60, num_items=40)
    assert torch.equal(_Propagation(weighted, 2, weighted=False)(rows), _Propagation(once, 2)(rows))
    assert not torch.allclose(_Propagation(weighted, 2)(rows), _Propagation(once, 2)(rows), atol=1e-3)


def test_plain_pairs_take_weights() -> None:
    pairs = {"num_queries": 3, "num_items": 4}
    repeated = Positives.from_pairs(np.array([0, 0, 0, 2]), np.array([1, 1, 1, 3]), **pairs)
    weighted = Positives.from_pairs(np.array([0, 2, 1]), np.array([1, 3, 0]), weights=np.array([3, 1, 0]), **pairs)
    assert repeated.weights.tolist() == weighted.weights.tolist() == [3.0, 1.0]
    assert np.array_equal(repeated.queries, weighted.queries)
    config = ContrastiveConfig(dim=4, epochs=2, batch_size=4)
    for name in ("user", "pin"):
        assert torch.equal(train_pairs(repeated, config).vectors[name], train_pairs(weighted, config).vectors[name])
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="edge 1 has"):
            Positives.from_pairs(np.array([0, 1]), np.array([0, 1]), weights=np.array([1.0, wrong]), **pairs)
    with pytest.raises(ValueError, match="one for each of 2"):
        Positives.from_pairs(np.array([0, 1]), np.array([0, 1]), weights=np.ones(3), **pairs)
    with pytest.raises(ValueError, match="no numbers"):
        Positives.from_pairs(np.array([0]), np.array([0]), weights=np.array(["much"]), **pairs)
    with pytest.raises(TypeError, match="integer rows"):
        Positives.from_pairs(np.array(["a"]), np.array([0]), **pairs)


def test_negative_weights_are_refused_and_zeros_are_no_edges(tmp_path: Path) -> None:
    with (
        build(tmp_path / "a.duckdb", [1.0, -3.0, 2.0]) as store,
        pytest.raises(ValueError, match="weights of relation 'buys': edge"),
    ):
        read_positives(store.view(), PositivesConfig())
    with build(tmp_path / "b.duckdb", [1.0, 0.0, 2.5]) as store:
        positives = read_positives(store.view(relations=["buys"]), PositivesConfig())
    assert sorted(positives.weights.tolist()) == [1.0, 2.5]


def test_a_composed_tower_shares_by_the_weights_of_its_relation(tmp_path: Path) -> None:
    with build(tmp_path / "a.duckdb", [1.0, 4.0]) as store:
        view = store.view()
        positives = read_positives(view, PositivesConfig(relation_weights={"buys": 1.0}))
        composed = compose(positives, view, "pin", ComposedTower(node_type="advertiser", through="made_by"))
    assert sorted(composed.weights.tolist()) == [0.25, 0.75, 1.0, 3.0]
