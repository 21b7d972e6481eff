"""Exports to torch and PyG, against arrays sorted by NumPy."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from multifacet.graphdb import GraphError, GraphSchema, GraphStore, GraphView, NodeType, Relation

NUM_EDGES = 5000


@pytest.fixture
def rows() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    keys = np.unique(generator.integers(0, [200, 60, 40], (NUM_EDGES, 3)), axis=0)
    generator.shuffle(keys)
    return {
        "src": keys[:, 0] * 7919,
        "dst": keys[:, 1] * 104_729,
        "time": (keys[:, 2] * 3600).astype("datetime64[s]").astype("datetime64[us]"),
        "weight": generator.random(len(keys), dtype=np.float32),
    }


@pytest.fixture(params=["bulk", "parts", "compacted"])
def view(store: GraphStore, rows: dict[str, np.ndarray], request: pytest.FixtureRequest) -> GraphView:
    table = pa.table(rows)
    cuts = [0, len(table)] if request.param == "bulk" else [0, 10, 2000, len(table)]
    for start, end in itertools.pairwise(cuts):
        store.load_edges("buys", table.slice(start, end - start))
    if request.param == "compacted":
        assert store.compact()["buys"] > 0
        assert store.stats()["relations"]["buys"]["not_compacted"] == 0
    store.load_edges("in", pa.table({"src": [0, 104_729], "dst": ["x", "x"]}))
    return store.view()


def _oracle(view: GraphView, rows: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    users = {identifier: idx for idx, identifier in enumerate(view.node_ids("user").to_pylist())}
    pins = {identifier: idx for idx, identifier in enumerate(view.node_ids("pin").to_pylist())}
    src = np.array([users[identifier] for identifier in rows["src"].tolist()])
    dst = np.array([pins[identifier] for identifier in rows["dst"].tolist()])
    time = rows["time"].astype(np.int64)
    order = np.lexsort((src, time, dst))
    return src[order], dst[order], time[order], rows["weight"][order]


def test_edges(view: GraphView, rows: dict[str, np.ndarray]) -> None:
    src, dst, time, weight = _oracle(view, rows)
    edges = view.edges("buys")
    assert (edges.src.dtype, edges.dst.dtype) == (torch.int32, torch.int32)
    assert edges.src.tolist() == src.tolist()
    assert edges.dst.tolist() == dst.tolist()
    assert edges.time is not None
    assert edges.time.tolist() == time.tolist()
    assert edges.weight is not None
    assert edges.weight.tolist() == weight.tolist()
    edges.src[0] = -1  # the caller's own copy
    assert view.edges("buys").src[0] != -1


def test_windowed_edges(view: GraphView, rows: dict[str, np.ndarray], store: GraphStore) -> None:
    src, dst, time, _ = _oracle(view, rows)
    since, as_of = np.datetime64(5 * 3600, "s"), np.datetime64(9 * 3600, "s")
    kept = (time >= 5 * 3600 * 10**6) & (time < 9 * 3600 * 10**6)
    edges = store.view(since=since.item(), as_of=as_of.item()).edges("buys")
    assert edges.src.tolist() == src[kept].tolist()
    assert edges.dst.tolist() == dst[kept].tolist()


def test_triples(view: GraphView, rows: dict[str, np.ndarray]) -> None:
    triples = view.triples()
    src, dst, _, _ = _oracle(view, rows)
    assert triples.relation.dtype == torch.int32
    assert torch.bincount(triples.relation).tolist() == [0, len(src), 2]
    assert triples.head[: len(src)].tolist() == src.tolist()
    assert triples.tail[: len(src)].tolist() == dst.tolist()


def test_csc(view: GraphView, rows: dict[str, np.ndarray]) -> None:
    src, dst, time, weight = _oracle(view, rows)
    csc = view.csc("buys")
    assert csc.colptr.dtype == torch.int64
    assert csc.colptr.tolist() == np.searchsorted(dst, np.arange(view.num_nodes["pin"] + 1)).tolist()
    assert csc.row.tolist() == src.tolist()
    assert csc.time is not None
    assert csc.time.tolist() == time.tolist()
    assert csc.weight is not None
    assert csc.weight.tolist() == weight.tolist()


def test_hetero_data(view: GraphView, rows: dict[str, np.ndarray]) -> None:
    data = view.to_hetero_data()
    data.validate()
    assert data["user"].num_nodes == view.num_nodes["user"]
    edge = data["user", "buys", "pin"]
    assert edge.edge_index.dtype == torch.int64
    assert edge.edge_index.tolist() == [array.tolist() for array in _oracle(view, rows)[:2]]
    assert edge.time.shape == edge.edge_weight.shape == (len(rows["src"]),)
    assert "time" not in data["pin", "in", "category"]


def test_an_empty_store_exports_nothing(store: GraphStore, schema: GraphSchema) -> None:
    view = store.view()
    assert len(view.triples()) == 0
    assert view.csc("clicks").colptr.tolist() == [0]
    assert view.node_ids("category").type == pa.string()
    assert view.node_ids("user").type == pa.int64()
    assert len(view.fingerprint) == 64
    assert [len(view.edges(relation.name)) for relation in schema.relations] == [0, 0, 0]


def test_parquet_files(view: GraphView, rows: dict[str, np.ndarray], tmp_path: Path) -> None:
    files = view.write_parquet(tmp_path / "out")
    assert {path.name for path in files} >= {"nodes_user.parquet", "indices_buys.parquet", "indptr_in.parquet"}
    indices = pq.read_table(tmp_path / "out" / "indices_buys.parquet")
    src, _, time, weight = _oracle(view, rows)
    assert indices["src"].to_pylist() == src.tolist()
    assert indices["time"].cast(pa.int64()).to_pylist() == time.tolist()
    assert indices["weight"].to_pylist() == weight.tolist()
    pointers = pq.read_table(tmp_path / "out" / "indptr_buys.parquet")["indptr"]
    assert pointers.to_pylist() == view.csc("buys").colptr.tolist()
    assert pq.read_table(tmp_path / "out" / "nodes_user.parquet")["id"].to_pylist() == view.node_ids("user").to_pylist()
    with pytest.raises(FileExistsError, match="remove it"):
        view.write_parquet(tmp_path / "out")


def test_safetensors(view: GraphView, tmp_path: Path) -> None:
    path = tmp_path / "graph.safetensors"
    view.write_safetensors(path)
    tensors = load_file(path)
    columns = view.csc("buys")
    assert set(tensors) >= {"buys.colptr", "buys.row", "buys.time", "buys.weight", "in.row"}
    assert torch.equal(tensors["buys.colptr"], columns.colptr)
    assert torch.equal(tensors["buys.row"], columns.row)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"fingerprint": view.fingerprint}


def test_pyg_stores(store: GraphStore, view: GraphView) -> None:
    graph, features = view.graph_store(), view.feature_store()
    assert {attr.edge_type for attr in graph.get_all_edge_attrs()} == {relation.triple for relation in view.relations}
    row, pointers = graph.get_edge_index(("user", "buys", "pin"), layout="csc")
    assert row.dtype == pointers.dtype == torch.int64
    assert row.tolist() == view.csc("buys").row.tolist()
    src, dst = graph.get_edge_index(("user", "buys", "pin"), layout="coo")
    assert (src.tolist(), dst.tolist()) == (view.edges("buys").src.tolist(), view.edges("buys").dst.tolist())
    with pytest.raises(GraphError, match="a view does not change"):
        graph.put_edge_index(torch.zeros(2, 1), ("user", "buys", "pin"), layout="coo")
    store.load_nodes("user", pa.table({"id": [0, 7919], "age": [40, None], "country": ["fi", "se"]}))
    view = store.view()
    features = view.feature_store()
    # Each node type has an attribute, or PyG's loaders would not know it; text is in none.
    assert {(attr.group_name, attr.attr_name) for attr in features.get_all_tensor_attrs()} == {
        *((name, "idx") for name in view.num_nodes),
        ("user", "age"),
        (("user", "clicks", "pin"), "edge_time"),
        (("user", "buys", "pin"), "edge_time"),
        (("user", "buys", "pin"), "edge_weight"),
    }
    assert features.get_tensor("pin", "idx", index=None).tolist() == list(range(view.num_nodes["pin"]))
    ages = features.get_tensor("user", "age", index=None)
    assert ages.shape == (view.num_nodes["user"],)
    assert ages[view.node_ids("user").to_pylist().index(0)] == 40
    assert ages.isnan().sum() == len(ages) - 1
    picked = features.get_tensor("user", "age", index=torch.tensor([view.node_ids("user").to_pylist().index(0)]))
    assert picked.tolist() == [40]


@pytest.mark.parametrize("compacted", [False, True])
def test_files_carry_properties(
    create: Callable[[GraphSchema], GraphStore], tmp_path: Path, caplog: pytest.LogCaptureFixture, compacted: bool
) -> None:
    schema = GraphSchema(
        nodes=(NodeType(name="user", properties={"age": "INTEGER", "name": "VARCHAR"}), NodeType(name="pin")),
        relations=(
            Relation(src="user", name="a", dst="pin", properties={"b.row": "DOUBLE", "day": "DATE", "why": "VARCHAR"}),
            Relation(src="user", name="a.property.b", dst="pin", timed=False),
        ),
    )
    store = create(schema)
    store.load_nodes("user", pa.table({"id": [7, 8], "age": [30, None], "name": ["x", None]}))
    days = [dt.datetime(2026, 1, day) for day in (3, 1, 2)]
    edges = {"src": [7, 8, 7], "dst": [1, 1, 2], "time": days, "b.row": [0.5, None, 1.5], "day": [None, days[1].date(), None]}
    edges = pa.table(edges | {"why": ["late", "early", None]})
    store.load_edges("a", edges.slice(0, 2))
    store.load_edges("a", edges.slice(2))
    store.load_edges("a.property.b", pa.table({"src": [7], "dst": [1]}))
    if compacted:
        store.compact()
    view = store.view()
    view.write_parquet(tmp_path / "out")
    nodes = pq.read_table(tmp_path / "out" / "nodes_user.parquet").to_pylist()
    assert nodes == [{"idx": 0, "id": 7, "age": 30, "name": "x"}, {"idx": 1, "id": 8, "age": None, "name": None}]
    indices = pq.read_table(tmp_path / "out" / "indices_a.parquet").to_pylist()
    assert indices == [
        {"src": 1, "time": days[1], "b.row": None, "day": days[1].date(), "why": "early"},
        {"src": 0, "time": days[0], "b.row": 0.5, "day": None, "why": "late"},
        {"src": 0, "time": days[2], "b.row": 1.5, "day": None, "why": None},
    ]
    view.write_safetensors(tmp_path / "graph.safetensors")
    tensors = load_file(tmp_path / "graph.safetensors")
    # Two relations whose names would give one key are kept apart.
    assert torch.equal(tensors["a%2Eproperty%2Eb.row"], torch.tensor([0], dtype=torch.int32))
    torch.testing.assert_close(
        tensors["a.property.b%2Erow"], torch.tensor([math.nan, 0.5, 1.5], dtype=torch.float64), equal_nan=True
    )
    torch.testing.assert_close(
        tensors["node.user.property.age"], torch.tensor([30, math.nan], dtype=torch.float64), equal_nan=True
    )
    assert "holds no text: node.user.property.name, a.property.why are left out" in caplog.text
