"""Exports to torch and PyG, against arrays sorted by NumPy."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from graphdb import GraphError, GraphSchema, GraphStore, GraphView

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
    assert [(attr.group_name, attr.attr_name) for attr in features.get_all_tensor_attrs()] == [("user", "age")]
    ages = features.get_tensor("user", "age", index=None)
    assert ages.shape == (view.num_nodes["user"],)
    assert ages[view.node_ids("user").to_pylist().index(0)] == 40
    assert ages.isnan().sum() == len(ages) - 1
    picked = features.get_tensor("user", "age", index=torch.tensor([view.node_ids("user").to_pylist().index(0)]))
    assert picked.tolist() == [40]
