"""PyG in anger: a heterogeneous GraphSAGE trained through our sampler, and PyG's own loader over our stores."""

from __future__ import annotations

import datetime as dt
import logging

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch_geometric.typing
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.loader import LinkLoader, NeighborLoader, NodeLoader
from torch_geometric.nn import HeteroConv, SAGEConv
from torch_geometric.sampler import NegativeSampling
from torch_geometric.transforms import ToUndirected

from multifacet.graphdb import GraphSchema, GraphStore, NodeType, Relation

CLICKS = ("user", "clicks", "pin")
NUM_USERS, NUM_PINS, NUM_CLUBS = 80, 60, 4
CUT = dt.datetime(2026, 2, 1)


@pytest.fixture(scope="module")
def clubs(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    """Users click pins of their own club, nine times in ten; a fifth of the clicks come after `CUT`."""
    clicks = Relation(src=CLICKS[0], name=CLICKS[1], dst=CLICKS[2])
    schema = GraphSchema(nodes=(NodeType(name="user"), NodeType(name="pin")), relations=(clicks,))
    generator = np.random.default_rng(0)
    user = generator.integers(0, NUM_USERS, 2400)
    club = np.where(generator.random(2400) < 0.9, user % NUM_CLUBS, generator.integers(0, NUM_CLUBS, 2400))
    pin = generator.integers(0, NUM_PINS // NUM_CLUBS, 2400) * NUM_CLUBS + club
    day = np.where(generator.random(2400) < 0.8, generator.integers(0, 31, 2400), generator.integers(31, 59, 2400))
    time = np.datetime64("2026-01-01", "us") + day * np.timedelta64(1, "D")
    store = GraphStore.create(tmp_path_factory.mktemp("clubs") / "clubs.duckdb", schema)
    # By the ids' order, so that idx and id are one.
    store.load_nodes("user", pa.table({"id": np.arange(NUM_USERS)}))
    store.load_nodes("pin", pa.table({"id": np.arange(NUM_PINS)}))
    store.load_edges("clicks", pa.table({"src": user, "dst": pin, "time": time}))
    return store


class Sage(torch.nn.Module):
    """Two layers over all relations."""

    def __init__(self, edge_types: list[tuple[str, str, str]], dim: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            HeteroConv({edge_type: SAGEConv((-1, -1), dim) for edge_type in edge_types}) for _ in range(2)
        )

    def forward(self, x: dict[str, Tensor], edges: dict[tuple[str, str, str], Tensor]) -> dict[str, Tensor]:
        x = {name: vectors.relu() for name, vectors in self.layers[0](x, edges).items()}
        return self.layers[1](x, edges)


def embed(model: torch.nn.Module, tables: torch.nn.ModuleDict, batch: HeteroData) -> dict[str, Tensor]:
    return model({name: tables[name](batch[name].n_id) for name in tables}, batch.edge_index_dict)


@pytest.mark.slow
def test_graphsage_learns_the_clubs_and_ranks_later_clicks(clubs: GraphStore) -> None:
    view = clubs.view(as_of=CUT)
    data = ToUndirected()(view.to_hetero_data())
    torch.manual_seed(0)
    loader = LinkLoader(
        data,
        view.sampler([8, 4], reverse=True, temporal="uniform"),
        edge_label_index=(CLICKS, data[CLICKS].edge_index),
        edge_label_time=data[CLICKS].time,
        neg_sampling=NegativeSampling("binary", amount=2),
        batch_size=128,
        shuffle=True,
    )
    tables = torch.nn.ModuleDict({name: torch.nn.Embedding(data[name].num_nodes, 16) for name in data.node_types})
    model = Sage(data.edge_types, 16)
    embed(model, tables, next(iter(loader)))  # sizes the lazy layers
    optimizer = torch.optim.Adam([*model.parameters(), *tables.parameters()], lr=0.02)
    for _ in range(6):
        for batch in loader:
            out = embed(model, tables, batch)
            head, tail = batch[CLICKS].edge_label_index
            score = (out["user"][head] * out["pin"][tail]).sum(-1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(score, batch[CLICKS].edge_label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    vectors = {}
    with torch.no_grad():
        for name, total in view.num_nodes.items():
            nodes = NodeLoader(data, view.sampler([-1, -1], reverse=True), (name, torch.arange(total)), batch_size=total)
            vectors[name] = embed(model, tables, next(iter(nodes)))[name][:total]
    later = clubs.view(since=CUT).edges("clicks")
    positive = (vectors["user"][later.src.long()] * vectors["pin"][later.dst.long()]).sum(-1)
    drawn = torch.randint(NUM_PINS, (len(later),), generator=torch.Generator().manual_seed(1))
    negative = (vectors["user"][later.src.long()] * vectors["pin"][drawn]).sum(-1)
    scores, labels = torch.cat([positive, negative]), [1] * len(positive) + [0] * len(negative)
    # Nine in ten positives lie in the club, one in four negatives: knowing the clubs alone gives about 0.82.
    assert roc_auc_score(labels, scores) > 0.75


@pytest.mark.skipif(
    torch_geometric.typing.WITH_PYG_LIB or torch_geometric.typing.WITH_TORCH_SPARSE, reason="PyG's own sampler is installed"
)
def test_pygs_own_loader_is_refused_beforehand_with_the_way_out(clubs: GraphStore, caplog: pytest.LogCaptureFixture) -> None:
    view = clubs.view()
    with caplog.at_level(logging.WARNING, logger="multifacet.graphdb"):
        stores = view.feature_store(), view.graph_store()
    assert "GraphView.sampler" in caplog.text
    with pytest.warns(UserWarning, match="without a 'pyg-lib' installation"):
        loader = NeighborLoader(stores, num_neighbors=[2], input_nodes=("pin", torch.arange(4)), batch_size=4)
    with pytest.raises(ImportError, match="pyg-lib"):
        next(iter(loader))
