"""PyG's common transforms over a window's data: each runs, and nodes and edges keep what belongs to them.

docs/graphdb.md lists them; the test of the docs compares the two lists.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import NodeLoader

from multifacet.graphdb import GraphError, GraphSchema, GraphStore, NodeType, Relation
from multifacet.graphdb.sampling import MultifacetSampler, SamplerConfig, Topology

FOLLOWS, RATES, BACK = ("user", "follows", "user"), ("user", "rates", "pin"), ("pin", "rev_rates", "user")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> HeteroData:
    """Users who follow each other and rate pins; user 7, pin 7 and all topics have no edge. An edge's time tells its ends."""
    schema = GraphSchema(
        nodes=(
            NodeType(name="user", properties={"age": "INTEGER"}),
            NodeType(name="pin", properties={"price": "DOUBLE"}),
            NodeType(name="topic"),
        ),
        relations=(
            Relation(src="user", name="follows", dst="user", properties={"code": "INTEGER"}),
            Relation(src="user", name="rates", dst="pin", weighted=True, properties={"code": "INTEGER"}),
        ),
    )
    path = tmp_path_factory.mktemp("transforms") / "graph.duckdb"
    generator = torch.Generator().manual_seed(0)
    with GraphStore.create(path, schema) as store:
        store.load_nodes("user", pa.table({"id": range(8), "age": [20 + user for user in range(8)]}))
        store.load_nodes("pin", pa.table({"id": range(8), "price": [1.5 * pin for pin in range(8)]}))
        store.load_nodes("topic", pa.table({"id": range(2)}))
        for name in ("follows", "rates"):
            pairs = torch.unique(torch.randint(0, 7, (30, 2), generator=generator), dim=0)
            pairs = pairs[pairs[:, 0] != pairs[:, 1]]
            src, dst = pairs.t().tolist()
            code = [10 * s + d for s, d in zip(src, dst, strict=True)]
            times = [dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=value) for value in code]
            columns = {"src": src, "dst": dst, "time": times, "code": code}
            store.load_edges(name, pa.table(columns | ({"weight": [1.0 + value for value in code]} if name == "rates" else {})))
        view = store.view()
        data = view.to_hetero_data(reverse=True)
    for name in ("user", "pin"):
        data[name].x = torch.stack([torch.arange(8.0), torch.ones(8)], dim=1)
    data["topic"].x = torch.ones(2, 2)
    return data


def codes_are_right(data: HeteroData, ids: dict[str, torch.Tensor] | None = None) -> None:
    """Every edge carries the time, code and weight of its own ends."""
    for kind in data.edge_types:
        store = data[kind]
        if "code" not in store or not kind[1].endswith(("follows", "rates")):
            continue
        ends = store.edge_index if "edge_index" in store else torch.stack(store.adj_t.t().coo()[:2])
        first, last = (ends[place] if ids is None else ids[kind[2 * place]][ends[place]] for place in (0, 1))
        if kind[1].startswith("rev_"):
            first, last = last, first
        expected = 10 * first + last
        assert store.code.tolist() == expected.tolist()
        assert store.time.tolist() == expected.tolist()
        if "edge_weight" in store:
            assert store.edge_weight.tolist() == (1.0 + expected).tolist()


def undirected(data: HeteroData) -> None:
    assert data["user", "rev_follows", "user"].edge_index.equal(data[FOLLOWS].edge_index.flip(0))
    assert data[BACK].edge_index.equal(data[RATES].edge_index.flip(0))
    codes_are_right(data)


def self_loops(data: HeteroData) -> None:
    src, dst = data[FOLLOWS].edge_index
    assert int((src == dst).sum()) == 8
    assert data[RATES].edge_index.size(1) == len(data[RATES].time)
    # PyG gives the loops no time: such data is refused, not read askew.
    with pytest.raises(GraphError, match=r"times are .* expected integers"):
        Topology.from_data(data)


def no_isolated(data: HeteroData) -> None:
    assert (data["user"].num_nodes, data["pin"].num_nodes, data["topic"].num_nodes) == (7, 7, 0)
    # The first column of x is the id.
    ids = {name: data[name].x[:, 0].long() for name in ("user", "pin")}
    codes_are_right(data, ids)
    assert data["user"].age.tolist() == (20 + ids["user"]).tolist()


def split_nodes(data: HeteroData) -> None:
    assert int(data["user"].train_mask.sum() + data["user"].val_mask.sum() + data["user"].test_mask.sum()) == 8
    codes_are_right(data)


def constants(data: HeteroData) -> None:
    assert data["pin"].x.shape == (8, 3)
    codes_are_right(data)


def normalised(data: HeteroData) -> None:
    assert data["user"].x.sum(1).tolist() == pytest.approx([1.0] * 8)
    assert data["user"].age.tolist() == [20 + user for user in range(8)]


def on_device(data: HeteroData) -> None:
    assert data["user"].age.device == data[FOLLOWS].time.device == torch.device("cpu")
    codes_are_right(data)


def metapath(data: HeteroData) -> None:
    assert ("user", "metapath_0", "user") in data.edge_types
    codes_are_right(data)


def split_links(parts: tuple[HeteroData, ...]) -> None:
    train, validation, test = parts
    codes_are_right(train)
    assert len(train[RATES].time) == train[RATES].edge_index.size(1) < len(test[RATES].time)
    assert validation[RATES].edge_label_index.size(1) > 0
    # The sampler of a part walks its own edges only.
    batch = next(iter(NodeLoader(train, sampler_of(train), ("pin", None), batch_size=8)))
    walked = batch[RATES].edge_index
    pairs = zip(batch["user"].n_id[walked[0]].tolist(), batch["pin"].n_id[walked[1]].tolist(), strict=True)
    assert set(pairs) == set(zip(*train[RATES].edge_index.tolist(), strict=True))


def loaded(data: HeteroData) -> None:
    """Whatever the transform did, batches of what it left carry the attributes of their own edges."""
    for kind in (FOLLOWS, RATES, BACK):
        batch = next(iter(NodeLoader(data, sampler_of(data), (kind[2], None), batch_size=8)))
        ids = {name: batch[name].x[:, 0].long() for name in ("user", "pin")}
        codes_are_right(batch, ids)
        assert batch[kind].edge_index.size(1) == data[kind].edge_index.size(1)


def sampler_of(data: HeteroData) -> MultifacetSampler:
    return MultifacetSampler(Topology.from_data(data), SamplerConfig(num_neighbors=[-1]))


#: Name in the docs -> the transform, its check, and whether what it leaves is then sampled.
TRANSFORMS: dict[str, tuple[Any, Callable[[Any], None], bool]] = {
    "ToUndirected(merge=False)": (T.ToUndirected(merge=False), undirected, True),
    "AddSelfLoops": (T.AddSelfLoops(attr=None), self_loops, False),
    "RemoveIsolatedNodes": (T.RemoveIsolatedNodes(), no_isolated, True),
    "RandomNodeSplit": (T.RandomNodeSplit(num_val=2, num_test=2, key=None), split_nodes, True),
    "RandomLinkSplit": (T.RandomLinkSplit(0.2, 0.2, edge_types=RATES, rev_edge_types=BACK), split_links, False),
    "NormalizeFeatures": (T.NormalizeFeatures(), normalised, False),
    "Constant": (T.Constant(), constants, True),
    "AddMetaPaths": (T.AddMetaPaths([[RATES, BACK]]), metapath, False),
    "ToDevice": (T.ToDevice("cpu"), on_device, True),
    "ToSparseTensor": (T.ToSparseTensor(attr="edge_weight", remove_edge_index=False), codes_are_right, False),
}
#: Those that PyG offers for graphs of one type.
OF_ONE_TYPE: dict[str, Any] = {
    "OneHotDegree": T.OneHotDegree(max_degree=100),
    "LocalDegreeProfile": T.LocalDegreeProfile(),
    "GCNNorm": T.GCNNorm(),
    "LargestConnectedComponents": T.LargestConnectedComponents(),
    "RemoveDuplicatedEdges": T.RemoveDuplicatedEdges(key=["time", "code"]),
}
# Torch says this once a process of PyG's sparse products.
quiet = pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning", "ignore:Sparse CSR tensor support:UserWarning")


@quiet
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_keep_what_belongs_to_nodes_and_edges(data: HeteroData, name: str) -> None:
    transform, check, is_loadable = TRANSFORMS[name]
    given = data.clone()
    if name.startswith("ToUndirected"):
        del given[BACK]
        del given["user", "rev_follows", "user"]
    torch.manual_seed(0)
    done = transform(given)
    check(done)
    if is_loadable:
        loaded(done)


@quiet
@pytest.mark.parametrize("name", OF_ONE_TYPE)
def test_transforms_of_one_type_keep_what_belongs_to_edges(data: HeteroData, name: str) -> None:
    """On the users who follow each other, as `Data`."""
    follows = Data(
        x=data["user"].x, edge_index=data[FOLLOWS].edge_index, time=data[FOLLOWS].time, code=data[FOLLOWS].code, num_nodes=8
    )
    done = OF_ONE_TYPE[name](follows)
    if name != "GCNNorm":  # which adds self loops, and has no attribute but its weights
        ids = done.x[:, -2].long() if name == "LargestConnectedComponents" else torch.arange(8)
        assert done.code.tolist() == (10 * ids[done.edge_index[0]] + ids[done.edge_index[1]]).tolist()
        assert done.time.tolist() == done.code.tolist()


def test_the_manual_lists_what_is_tried(repository: Path) -> None:
    manual = (repository / "docs" / "graphdb.md").read_text()
    table = manual[manual.index("| transform of PyG") :].split("\n\n", 1)[0]
    listed = {name for line in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", line.split("|")[1])}
    assert listed == {*TRANSFORMS, *OF_ONE_TYPE, "ToUndirected()"}
